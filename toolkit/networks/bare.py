"""Weights without a description: the network and the preprocessing that they are taken for."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from toolkit import __version__, console
from toolkit.data.preprocess import Preprocess
from toolkit.errors import WeightsError
from toolkit.modeldir import Role
from toolkit.networks.classifier import Classifier
from toolkit.networks.depthwise import infer_student
from toolkit.networks.matching import find_prefixes
from toolkit.networks.registry import DEPTHWISE, NetworkSpec
from toolkit.networks.tensor_files import read_tensors
from toolkit.networks.weights import ModelInfo, find_weights, load_into
from toolkit.recipe import Recipe


def describe_bare_weights(path: Path, recipe: Recipe, classes: tuple[str, ...] | None) -> tuple[Classifier, ModelInfo]:
    """The network that the keys and shapes of `path` describe, and the assumptions about it; a line on stderr says so.

    `classes` names its classes; without them, they are numbered. Raises WeightsError if their number differs, or the
    tensors do not fit the student or the recipe's teacher.
    """
    tensors = read_tensors(path)
    role: Role
    if prefixes := find_prefixes(tensors, "cnn.0.0.weight"):
        below = {name.removeprefix(prefixes[0]): value for name, value in tensors.items()}
        num_classes, base, width_mult = infer_student(below)
        spec = NetworkSpec(DEPTHWISE, {"base": base, "width_mult": width_mult})
        role, preprocess = "student", Preprocess.from_recipe(recipe.data)
        assumed = "the depthwise student"
    else:
        spec, sees = NetworkSpec.of(recipe.teacher), recipe.data_of("teacher")
        num_classes = _count_classes(spec, tensors, path, sees.image_size)
        mean, std = recipe.teacher.mean or recipe.data.mean, recipe.teacher.std or recipe.data.std
        preprocess = Preprocess(sees.image_size, sees.resize, mean, std)
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
    load_into(network, tensors, path, num_classes)
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


def _count_classes(spec: NetworkSpec, tensors: Mapping[str, Tensor], path: Path, image_size: int) -> int:
    """The length of the last layer. Raises WeightsError if the tensors are not those of such a network."""
    weights = find_weights(spec.build(2, image_size), tensors, path).tensors
    return len(list(weights.values())[-1])
