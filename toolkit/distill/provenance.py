"""A given teacher: where its weights lie, which images it was trained on, and whether it fits the data.

A given teacher is not trained here: a file, a teacher that ships with the toolkit, or the notebook's. `imagenet` is not
given: its head is new.
"""

import json
from pathlib import Path
from typing import Any

from toolkit import console, shipped
from toolkit.architectures import ANSWERS, ENSEMBLE, LITE0, ONNX, TIMM, family_of
from toolkit.data import food11
from toolkit.data.answer_file import is_answer_file, read_classes
from toolkit.data.dataset import Dataset
from toolkit.data.preprocess import Preprocess
from toolkit.data.sources import load_dataset
from toolkit.distill.answers import is_answered, require_answers
from toolkit.errors import ArtifactError, RecipeError, WeightsError, did_you_mean, letters_and_digits
from toolkit.networks.class_map import UNKNOWN, map_classes, show
from toolkit.networks.ensemble import describe_member
from toolkit.networks.hub_directory import read_directory
from toolkit.networks.of_onnx import is_onnx
from toolkit.networks.onnx_file import ONE, ZERO, read_onnx
from toolkit.networks.registry import NetworkSpec
from toolkit.networks.weights import ModelInfo, carries_info, given_classes, read_info, teacher_spec
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
    return bool(recipe.teacher.members) or recipe.teacher.source not in ("", IMAGENET)


def find_weights(recipe: Recipe) -> Path | None:
    """The file that `teacher.weights` names, or that is in its directory.

    None if the teacher is to be trained here, and for several weights (`members`).

    The notebook's is downloaded if it is not in the cache. Raises WeightsError if there is no such file.
    """
    weights = recipe.teacher.source
    if not is_given(recipe) or not weights:
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


def find_sources(recipe: Recipe) -> list[tuple[Recipe, Path]]:
    """The files to import with a recipe for each; several weights have several. None if the teacher is trained here."""
    recipes = members(recipe) or [recipe]
    return [(one, path) for one in recipes if (path := find_weights(one)) is not None]


def has_onnx(recipe: Recipe) -> bool:
    """Whether the teacher is an ONNX file, or one of several weights is."""
    names = recipe.teacher.members or (recipe.teacher.source,)
    return any(is_onnx(Path(name)) for name in names)


def local_weights(recipe: Recipe) -> Path | None:
    """`find_weights` without a download: None for the notebook's, which say nothing of themselves."""
    return None if recipe.teacher.source == FOOD_11 else find_weights(recipe)


def is_directory(recipe: Recipe) -> bool:
    """Whether `teacher.weights` names a directory."""
    weights = recipe.teacher.source
    return bool(weights) and weights not in (IMAGENET, *shipped.weights_files(), FOOD_11) and Path(weights).is_dir()


def follow_fine_tuning(recipe: Recipe) -> tuple[Recipe, str]:
    """`recipe` with FINE_TUNING, and a line that says so, if it fine-tunes and leaves the optimiser open.

    torchvision's networks are fine-tuned by the defaults, as they always were. The line is empty if nothing changes.
    """
    section = recipe.teacher
    is_torchvisions = family_of(section.architecture) != TIMM and section.architecture != LITE0
    if section.source != IMAGENET or is_torchvisions or any(map(recipe.states, FINE_TUNING)):
        return recipe, ""
    settings = " ".join(f"{name}={value}" for name, value in FINE_TUNING.items())
    return recipe.with_overrides(FINE_TUNING), f"settings of fine-tuning: {settings} (if you --set one, none of them)"


def follow_source(recipe: Recipe) -> Recipe:
    """`recipe` with the network and normalisation of the file or folder that `teacher.weights` names, if it says them.

    What the recipe states of them stays. Raises WeightsError if it states another architecture.
    """
    if is_onnx(Path(recipe.teacher.source)):
        return _with_network(recipe, ONNX, {})
    if is_answer_file(Path(recipe.teacher.source)):
        return _with_network(recipe, ANSWERS, {})
    if not is_directory(recipe):
        return recipe
    found = read_directory(Path(recipe.teacher.source))
    network = {f"teacher.{key}": value for key, value in found.settings.items()}
    channels = {"teacher.mean": found.mean, "teacher.std": found.std}
    return _with_network(
        recipe,
        found.architecture,
        network | {name: list(value) for name, value in channels.items() if value is not None},
    )


def _with_network(recipe: Recipe, architecture: str, told: dict[str, Any]) -> Recipe:
    stated = recipe.teacher.architecture
    if recipe.states("teacher.architecture") and stated != architecture:
        raise WeightsError(
            f"{recipe.teacher.source}: its architecture is {architecture}, and the recipe's teacher is a {stated}",
            f"use teacher.architecture={architecture}, or leave it out",
        )
    left = {name: value for name, value in told.items() if not recipe.states(name)}
    return recipe.with_overrides({"teacher.architecture": architecture} | left)


def members(recipe: Recipe) -> list[Recipe]:
    """A recipe for each of several weights: with that one alone, its network and its own size."""
    return [_member(recipe, weights) for weights in recipe.teacher.members]


def _member(recipe: Recipe, weights: str) -> Recipe:
    alone = recipe.with_overrides({"teacher.weights": weights})
    path = find_weights(alone)
    info = describe(path) if path else None
    if path and (is_answer_file(path) or (info and info.architecture == ANSWERS)):
        raise WeightsError(
            f"{path} is a file of answers, which cannot be one of several teachers",
            "give it alone, with the mean of several teachers' answers in it",
        )
    if path is None:
        raise WeightsError(
            f"teacher.weights: {weights!r} cannot be one of several", "give files or folders of finished teachers"
        )
    settings: dict[str, Any] = {"teacher.image_size": info.preprocess.image_size if info else _size_in(path, alone)}
    if info:
        settings["teacher.architecture"] = info.architecture
    elif is_onnx(path):
        settings["teacher.architecture"] = ONNX
    stated = recipe.data_of("teacher").image_size
    settings["teacher.image_size"] = settings["teacher.image_size"] or stated
    if not recipe.data.resize:
        del settings["teacher.image_size"]
    return follow_source(alone.with_overrides(settings))


def teacher_network(recipe: Recipe) -> NetworkSpec:
    """The teacher's network as the recipe or its given file says; nothing is downloaded to find that out."""
    if several := members(recipe):
        described = [
            describe_member(teacher_network(one).to_json(), ZERO, ONE, one.data_of("teacher").image_size)
            for one in several
        ]
        return NetworkSpec(ENSEMBLE, {"combine": recipe.teacher.combine, "members": described})
    path = local_weights(recipe)
    return teacher_spec(recipe, describe(path) if path else None)


def describe(path: Path) -> ModelInfo | None:
    """The description in a weights file; None if it has none. Raises WeightsError if it is damaged."""
    if is_onnx(path) or is_answer_file(path):
        return None
    return read_info(path) if carries_info(path) else None


def at_own_size(recipe: Recipe, path: Path | None) -> Recipe:
    """The recipe with the teacher's own size as its weights at `path` say, unless the recipe states it.

    Several weights see the largest of their sizes. If they say none, and with pictures that are not resized, the
    teacher sees what the student sees.
    """
    if recipe.states("teacher.image_size") or not recipe.data.resize:
        return recipe
    if recipe.teacher.members:
        size: int | None = max(one.data_of("teacher").image_size for one in members(recipe))
    else:
        size = None if path is None else _size_in(path, recipe)
    return recipe if size in (None, recipe.data.image_size) else recipe.with_overrides({"teacher.image_size": size})


def _size_in(path: Path, recipe: Recipe) -> int | None:
    """px"""
    if info := describe(path):
        return None if info.architecture == ANSWERS else info.preprocess.image_size
    if is_onnx(path):
        return read_onnx(path).size
    return read_directory(path.parent).image_size if is_directory(recipe) else None


def require_fitting(recipe: Recipe, dataset: Dataset, *, is_member: bool = False) -> None:
    """WeightsError if the given teacher's classes are known and are not the data's; nothing is downloaded for that.

    A file that does not name its classes is left to the import, which counts them. A member of several has to know all
    classes of the data: what it says of others would count against those that do. RecipeError for names of classes
    without a given teacher, and for settings that need one who knows all classes.
    """
    for one in members(recipe):
        require_fitting(one, dataset, is_member=True)
    weights = recipe.teacher.source
    who = f"teacher.weights = {json.dumps(weights)}"
    if weights == FOOD_11:
        classes = food11.CLASSES
        ours, theirs = (tuple(map(letters_and_digits, names)) for names in (dataset.classes, classes))
        if ours in (theirs, _numbers(len(classes))):
            return  # the notebook's flat files have numbers for names, and its archive has Noodles-Pasta
        require_same_classes(classes, dataset, who, TRAIN_ONE)
    elif path := find_weights(recipe):
        if named := given_classes(recipe) or _classes_in(path, recipe):
            columns = map_classes(named, dataset.classes, who)
            if UNKNOWN in columns:
                require_no_unknown_classes(recipe)
            if UNKNOWN in columns and is_member:
                unknown = [name for name, column in zip(dataset.classes, columns, strict=True) if column == UNKNOWN]
                raise WeightsError(
                    f"{who} does not know {show(unknown)}, and cannot be one of several teachers",
                    "give teachers that know all classes of the data",
                )
        if is_answered(recipe):
            require_answers(path, recipe, dataset)
    elif recipe.teacher.classes and not is_given(recipe):
        raise RecipeError(
            "teacher.classes names the outputs of a given teacher, and this one is trained here",
            "set teacher.weights, or leave teacher.classes out",
        )


def require_no_unknown_classes(recipe: Recipe) -> None:
    """RecipeError if a teacher that does not know all classes cannot teach by `recipe`."""
    if recipe.data.unlabelled:
        raise RecipeError(
            "data.unlabelled needs a teacher that knows all classes of the data",
            "leave data.unlabelled out, or give another teacher",
        )
    if recipe.distill.standardize:
        raise RecipeError(
            "distill.standardize needs a teacher that knows all classes of the data",
            "use distill.standardize=false",
        )


def _classes_in(path: Path, recipe: Recipe) -> tuple[str, ...] | None:
    if info := describe(path):
        return info.classes
    if is_onnx(path):
        return read_onnx(path).classes
    if is_answer_file(path):
        return read_classes(path)
    return read_directory(path.parent).classes if is_directory(recipe) else None


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


def has_learned_these(info: ModelInfo, recipe: Recipe, dataset: Dataset) -> bool:
    """Whether the training images of weights are those of `dataset`, in the same splits."""
    trained_on = find_training_images(info)
    if trained_on is None or trained_on["dataset_sha256"] != dataset.sha256:
        return False
    if all(getattr(recipe.data, key) == value for key, value in _split_of(trained_on).items()):
        return True
    return _names_trained_on(trained_on, recipe) == dataset.train.names


def _split_of(trained_on: dict[str, Any]) -> dict[str, Any]:
    """SPLIT_SETTINGS and `share`; all of the images in files that do not say it."""
    return {key: trained_on[key] for key in SPLIT_SETTINGS} | {"share": trained_on.get("share", 1.0)}


def _names_trained_on(trained_on: dict[str, Any], recipe: Recipe) -> tuple[str, ...]:
    """The training images of the recipe's data in the split that weights were trained on."""
    return load_dataset(recipe.data.model_copy(update=_split_of(trained_on))).train.names


def require_known_folds(path: Path, recipe: Recipe, dataset: Dataset) -> None:
    """ArtifactError if the teacher at `path` was trained in folds of other images: which part has seen which?"""
    info = read_info(path)
    if info.extra.get("folds") and not has_learned_these(info, recipe, dataset):
        raise ArtifactError(
            f"{path} was trained in folds of other training images, so no part of it can answer for the images that it"
            " has not seen",
            "train it again with toolkit teacher --force, or import it into another directory, where all of its parts"
            " answer together",
        )


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
    data = recipe.data_of("teacher")
    sees = Preprocess(data.image_size, data.resize, section.mean or seen.mean, section.std or seen.std)
    same = (sees, section.enlarge or info.network.enlarge) == (seen, info.network.enlarge)
    same = same and all(theirs.get(key) == value for key, value in split.items())
    return float(info.extra[SHIPPED_ACCURACY]) if same else None


def warn_of_differences(source: Path, recipe: Recipe, dataset: Dataset) -> None:
    """Warn if the teacher in `source` was trained at another size than it teaches at, or has seen held-out images."""
    if (info := describe(source)) is None:
        return
    data = recipe.data_of("teacher")
    if (info.preprocess.image_size, info.preprocess.resize) != (data.image_size, data.resize):
        sizes = [f"{it.image_size} px (resize {it.resize})" for it in (info.preprocess, data)]
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
    seen = set(_names_trained_on(trained_on, recipe))
    counts = [
        f"{count:,} of these {len(images):,} {split} images"
        for split, images in (("validation", dataset.valid), ("test", dataset.test))
        if (count := len(seen.intersection(images.names)))
    ]
    if counts:
        settings = " ".join(f"--set data.{key}={value}" for key, value in theirs.items())
        console.say(f"warning: {who} was trained on {' and '.join(counts)}; it held out those of {settings}")


def _numbers(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(count)))
