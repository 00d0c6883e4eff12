"""Weights without a description: the network and the preprocessing that they are taken for."""

from pathlib import Path
from typing import Any

from toolkit import __version__, console
from toolkit.data.preprocess import Preprocess
from toolkit.errors import WeightsError
from toolkit.modeldir import Role
from toolkit.networks.classifier import Classifier
from toolkit.networks.depthwise import infer_student
from toolkit.networks.registry import DEPTHWISE, NetworkSpec
from toolkit.networks.weights import ModelInfo, load_into, read_state_dict
from toolkit.recipe import Recipe


def describe_bare_weights(path: Path, recipe: Recipe, classes: tuple[str, ...] | None) -> tuple[Classifier, ModelInfo]:
    """The network that the keys and shapes of `path` describe, and the assumptions about it; a line on stderr says so.

    `classes` names its classes; without them, they are numbered. Raises WeightsError if their number differs, or the
    tensors do not fit the student or the recipe's teacher.
    """
    state_dict = read_state_dict(path)
    role: Role
    if any(name.startswith("cnn.") for name in state_dict):
        num_classes, base, width_mult = infer_student(state_dict)
        spec = NetworkSpec(DEPTHWISE, {"base": base, "width_mult": width_mult})
        role, preprocess = "student", Preprocess.from_recipe(recipe.data)
        assumed = "the depthwise student"
    else:
        num_classes, spec = _head_size(state_dict, path), NetworkSpec.of(recipe.teacher)
        mean, std = recipe.teacher.mean or recipe.data.mean, recipe.teacher.std or recipe.data.std
        preprocess = Preprocess(recipe.data.image_size, recipe.data.resize, mean, std)
        role, assumed = "teacher", f"the recipe's teacher ({spec.architecture})"
    if classes is not None and len(classes) != num_classes:
        raise WeightsError(
            f"{path} has {num_classes} classes, the data has {len(classes)}",
            "give the data those weights were trained on",
        )
    console.say(
        f"{path} does not describe itself: taken for {assumed} with {num_classes} classes, "
        f"{preprocess.image_size} px images, resize {preprocess.resize}, mean {preprocess.mean}, std {preprocess.std}"
    )
    network = spec.build(num_classes, preprocess.image_size)
    load_into(network, state_dict, path, num_classes)
    info = ModelInfo(
        role=role,
        network=spec,
        classes=classes or tuple(str(i) for i in range(num_classes)),
        preprocess=preprocess,
        recipe={},
        recipe_sha256="",
        dataset_sha256="",
        teacher_sha256=None,
        toolkit_version=__version__,
    )
    return Classifier(network, preprocess.mean, preprocess.std).float().eval(), info


def _head_size(state_dict: dict[str, Any], path: Path) -> int:
    """Classes of a torchvision classifier: its state dict ends with the last layer's bias."""
    last = list(state_dict.values())[-1]
    if last.ndim != 1:
        raise WeightsError(
            f"{path}: its last tensor {list(state_dict)[-1]} is not the bias of a last layer",
            "give a state dict of the depthwise student or of the recipe's teacher",
        )
    return len(last)
