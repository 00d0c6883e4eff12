"""A given teacher: where its weights lie, which images it was trained on, and whether it fits the data.

A given teacher is not trained here: a file, a teacher that ships with the toolkit, or the notebook's. `imagenet` is not
given: its head is new.
"""

import json
from pathlib import Path
from typing import Any

from toolkit import console, shipped
from toolkit.architectures import LITE0, TIMM, family_of
from toolkit.data import food11
from toolkit.data.dataset import Dataset
from toolkit.data.preprocess import Preprocess
from toolkit.data.sources import load_dataset
from toolkit.errors import WeightsError, did_you_mean
from toolkit.networks.hub_directory import read_directory
from toolkit.networks.registry import NetworkSpec
from toolkit.networks.weights import ModelInfo, carries_info, read_info, teacher_spec
from toolkit.recipe import Recipe
from toolkit.settings import FOOD_11, IMAGENET

SPLIT_SETTINGS = ("split_seed", "validation_fraction", "test_fraction")
"""Keys of [data] that decide which images are held out of training."""

SHIPPED_ACCURACY = "shipped_valid_accuracy"
"""In `extra`, by scripts/ship_teacher.py: accuracy of the file as it ships, in fp32, on its validation images."""

FINE_TUNING = {
    "teacher.optimizer": "adamw",
    "teacher.learning_rate": 0.001,
    "teacher.weight_decay": 0.02,
    "teacher.label_smoothing": 0.1,
}
"""Chosen on validation images of ten classes of food: docs/networks.md."""

TRAIN_ONE = "train a teacher here: --set 'teacher.weights=\"\"', or give the data that this one was trained on"


def is_given(recipe: Recipe) -> bool:
    """Whether the teacher is imported and not trained here; no file is read."""
    return recipe.teacher.weights not in ("", IMAGENET)


def find_weights(recipe: Recipe) -> Path | None:
    """The file that `teacher.weights` names, or that is in its directory; None if the teacher is to be trained here.

    The notebook's is downloaded if it is not in the cache. Raises WeightsError if there is no such file.
    """
    weights = recipe.teacher.weights
    if not is_given(recipe):
        return None
    if weights == FOOD_11:
        return food11.teacher_weights()
    path = shipped.weights_files().get(weights) or Path(weights)
    if path.is_dir():
        return read_directory(path).weights
    if not path.is_file():
        names = [*shipped.weights_files(), FOOD_11, IMAGENET]
        raise WeightsError(
            f"teacher.weights: there is no file {path}",
            f"{did_you_mean(weights, names)}give a .safetensors or .pt/.bin file, one of {', '.join(names)}, or leave"
            " it empty to train one",
        )
    return path


def follow_fine_tuning(recipe: Recipe) -> tuple[Recipe, str]:
    """`recipe` with FINE_TUNING, and a line that says so, if it fine-tunes and leaves the optimiser open.

    torchvision's networks are fine-tuned by the defaults, as they always were. The line is empty if nothing changes.
    """
    section = recipe.teacher
    is_torchvisions = family_of(section.architecture) != TIMM and section.architecture != LITE0
    if section.weights != IMAGENET or is_torchvisions or any(map(recipe.states, FINE_TUNING)):
        return recipe, ""
    settings = " ".join(f"{name}={value}" for name, value in FINE_TUNING.items())
    return recipe.with_overrides(FINE_TUNING), f"settings of fine-tuning: {settings} (if you --set one, none of them)"


def follow_directory(recipe: Recipe) -> Recipe:
    """`recipe` with the network and normalisation of the directory that `teacher.weights` names, if it names one.

    What the recipe states of them stays. Raises WeightsError if it states another architecture.
    """
    weights = recipe.teacher.weights
    if not is_given(recipe) or weights in (*shipped.weights_files(), FOOD_11) or not Path(weights).is_dir():
        return recipe
    found, stated = read_directory(Path(weights)), recipe.teacher.architecture
    if recipe.states("teacher.architecture") and stated != found.architecture:
        raise WeightsError(
            f"{weights} is a {found.architecture}, the recipe's teacher a {stated}",
            f"use teacher.architecture={found.architecture}, or leave it out",
        )
    network = {f"teacher.{key}": value for key, value in found.settings.items()}
    channels = {"teacher.mean": found.mean, "teacher.std": found.std}
    told = network | {name: list(value) for name, value in channels.items() if value is not None}
    left = {name: value for name, value in told.items() if not recipe.states(name)}
    return recipe.with_overrides({"teacher.architecture": found.architecture} | left)


def teacher_network(recipe: Recipe) -> NetworkSpec:
    """The teacher's network as the recipe or its given file says; nothing is downloaded to find that out."""
    path = None if recipe.teacher.weights == FOOD_11 else find_weights(recipe)
    return teacher_spec(recipe, describe(path) if path else None)


def describe(path: Path) -> ModelInfo | None:
    """The description in a weights file; None if it has none. Raises WeightsError if it is damaged."""
    return read_info(path) if carries_info(path) else None


def require_fitting(recipe: Recipe, dataset: Dataset) -> None:
    """WeightsError if the given teacher's classes are known and are not the data's; nothing is downloaded for that.

    A file that does not name its classes is left to the import, which counts them.
    """
    weights = recipe.teacher.weights
    who = f"teacher.weights = {json.dumps(weights)}"
    if weights == FOOD_11:
        classes = food11.CLASSES
        if tuple(map(_letters, dataset.classes)) in (tuple(map(_letters, classes)), _numbers(len(classes))):
            return  # the notebook's flat files have numbers for names, and its archive has Noodles-Pasta
        require_same_classes(classes, dataset, who, TRAIN_ONE)
    elif (path := find_weights(recipe)) and (info := describe(path)):
        require_same_classes(info.classes, dataset, who, TRAIN_ONE)


def require_same_classes(classes: tuple[str, ...], dataset: Dataset, who: str, remedy: str) -> None:
    """WeightsError unless `classes`, those of the teacher `who`, are the data's, in their order."""
    if len(classes) != len(dataset.classes):
        raise WeightsError(f"{who} has {len(classes)} classes, {dataset.name} has {len(dataset.classes)}", remedy)
    for number, (theirs, ours) in enumerate(zip(classes, dataset.classes, strict=True)):
        if theirs != ours:
            raise WeightsError(f"class {number} of {who} is {theirs!r}, of {dataset.name} {ours!r}", remedy)


def find_training_images(info: ModelInfo) -> dict[str, Any] | None:
    """`dataset_sha256`, SPLIT_SETTINGS and `share` of the images that weights were trained on; None if not known.

    An imported file describes what it was imported for; facts that were known about it then are passed on.
    """
    if "trained_on" in info.extra:
        passed_on: dict[str, Any] | None = info.extra["trained_on"]
        return passed_on
    data = info.recipe.get("data", {})
    if any(key not in data for key in SPLIT_SETTINGS):
        return None
    settings = {key: data[key] for key in SPLIT_SETTINGS} | {"share": data.get("share", 1.0)}
    return {"dataset_sha256": info.dataset_sha256} | settings


def known_accuracy(path: Path, recipe: Recipe, dataset: Dataset) -> float | None:
    """The validation accuracy (a fraction) in the file of a teacher that ships, if it holds here too.

    That is so for the same images in the same split, at the same size, normalised and enlarged in the same way. None
    otherwise, and for files without one: their accuracy is to be measured.
    """
    info, section = describe(path), recipe.teacher
    if info is None or SHIPPED_ACCURACY not in info.extra:
        return None
    split = {"dataset_sha256": dataset.sha256} | {key: getattr(recipe.data, key) for key in SPLIT_SETTINGS}
    theirs = find_training_images(info) or {}
    seen = info.preprocess
    sees = Preprocess(recipe.data.image_size, recipe.data.resize, section.mean or seen.mean, section.std or seen.std)
    same = (sees, section.enlarge or info.network.enlarge) == (seen, info.network.enlarge)
    same = same and all(theirs.get(key) == value for key, value in split.items())
    return float(info.extra[SHIPPED_ACCURACY]) if same else None


def warn_of_differences(source: Path, recipe: Recipe, dataset: Dataset) -> None:
    """Warn if the teacher in `source` was trained at another size than it teaches at, or has seen held-out images."""
    if (info := describe(source)) is None:
        return
    if (info.preprocess.image_size, info.preprocess.resize) != (recipe.data.image_size, recipe.data.resize):
        sizes = [f"{it.image_size} px (resize {it.resize})" for it in (info.preprocess, recipe.data)]
        console.say(f"warning: {source.name} was trained at {sizes[0]} and teaches at {sizes[1]}")
    if trained_on := find_training_images(info):
        warn_of_seen_images(source.name, trained_on, recipe, dataset)


def warn_of_seen_images(who: str, trained_on: dict[str, Any], recipe: Recipe, dataset: Dataset) -> None:
    """Warn how many validation and test images the teacher was trained on, if another split was held out then."""
    if trained_on["dataset_sha256"] != dataset.sha256:
        console.say(f"warning: {who} was trained on other images; it is not known whether it has seen any of these")
        return
    theirs = {key: trained_on[key] for key in SPLIT_SETTINGS}
    if theirs == {key: getattr(recipe.data, key) for key in SPLIT_SETTINGS}:
        return
    share = trained_on.get("share", 1.0)
    seen = set(load_dataset(recipe.data.model_copy(update=theirs | {"share": share})).train.names)
    counts = [
        f"{count:,} of these {len(images):,} {split} images"
        for split, images in (("validation", dataset.valid), ("test", dataset.test))
        if (count := len(seen.intersection(images.names)))
    ]
    if counts:
        settings = " ".join(f"--set data.{key}={value}" for key, value in theirs.items())
        console.say(f"warning: {who} was trained on {' and '.join(counts)}; it held out those of {settings}")


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))


def _numbers(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(count)))
