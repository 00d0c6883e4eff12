"""Answers in a file as the teacher: what they can teach, their import, and which image has which. C classes."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from toolkit import console
from toolkit.architectures import ANSWERS
from toolkit.data.answer_file import AnswerFile, is_answer_file, read_answers
from toolkit.data.answered_images import AnsweredImages, match_answers
from toolkit.data.dataset import Dataset
from toolkit.data.pixels import Pixels
from toolkit.errors import RecipeError, WeightsError
from toolkit.networks.class_map import UNKNOWN
from toolkit.networks.of_answers import Answers
from toolkit.networks.registry import NetworkSpec, PickColumns, spec_of
from toolkit.networks.weights import Imported, find_columns, given_classes, load_model
from toolkit.recipe import Recipe

MIXES = ("mixup", "cutmix")
"""settings of [distill] that make one image of two"""


def is_answered(recipe: Recipe) -> bool:
    """Whether the recipe's teacher is a file of answers."""
    return recipe.teacher.architecture == ANSWERS


def require_one_answer(recipe: Recipe) -> None:
    """RecipeError if the student would have to be taught what no file of answers says."""
    section = recipe.distill
    if recipe.data.unlabelled:
        raise RecipeError(
            "data.unlabelled needs a network as the teacher, and a file of answers knows the labelled images alone",
            "leave data.unlabelled out, or give a network",
        )
    if section.feature_method:
        raise RecipeError(
            f"{section.feature_method} reads the teacher's layers, and a file of answers has none",
            f"use a method of logits: distill.method={section.logit_method or 'kd'}",
        )
    if mixed := [name for name in MIXES if getattr(section, name)]:
        raise RecipeError(
            f"distill.{mixed[0]} makes one image of two, and a file of answers has one answer per image",
            f"use distill.{mixed[0]}=0, or a network as the teacher",
        )


def require_answers(path: Path, recipe: Recipe, dataset: Dataset) -> None:
    """WeightsError or RecipeError unless the answers at `path` can teach a student of these images by this recipe."""
    require_one_answer(recipe)
    answers = _read(path)
    _find_columns(answers, recipe, dataset)
    match_answers(answers, dataset)


def import_answers(path: Path, recipe: Recipe, dataset: Dataset) -> Imported:
    """The answers for the training and validation images; a line counts them. Raises WeightsError."""
    answers = _read(path)
    columns = _find_columns(answers, recipe, dataset)
    matched = match_answers(answers, dataset)
    console.say(f"teacher: {matched.describe()}")
    network = _keep(answers.logits, matched, dataset)
    vars(network)["spec"] = NetworkSpec(ANSWERS, {}, 1, answers.logits.shape[1], columns)
    named = given_classes(recipe) or answers.classes
    return Imported(network, recipe.data.mean, recipe.data.std, classes=named)


def _find_columns(answers: AnswerFile, recipe: Recipe, dataset: Dataset) -> tuple[int, ...]:
    named = given_classes(recipe) or answers.classes
    return find_columns(answers.path, named, answers.logits.shape[1], dataset.classes)


def _read(path: Path) -> AnswerFile:
    """A file of answers, or a teacher.safetensors that was made of one."""
    if is_answer_file(path):
        return read_answers(path)
    teacher, info = load_model(path)
    if not isinstance(teacher.network, Answers):
        raise WeightsError(
            f"{path} is a {info.architecture}, the recipe's teacher a file of answers",
            f"use teacher.architecture={info.architecture}",
        )
    known = known_classes(teacher.network, len(info.classes))
    logits = _by_class(teacher.network, teacher.network.logits).numpy()[:, known]
    return AnswerFile(
        path, tuple(teacher.network.image_names), None, logits, tuple(info.classes[place] for place in known)
    )


def known_classes(network: nn.Module, num_classes: int) -> list[int]:
    """The places of those of the data's classes that a teacher's network knows."""
    columns = spec_of(network).columns or range(num_classes)
    return [place for place, column in enumerate(columns) if column != UNKNOWN]


def _by_class(network: Answers, logits: Tensor) -> Tensor:
    """Logits of the file, (N, outputs), as logits of the data's classes, (N, C)."""
    columns = spec_of(network).columns
    return PickColumns(columns)(network, (), logits) if columns else logits


def _keep(logits: np.ndarray, matched: AnsweredImages, dataset: Dataset) -> Answers:
    """The answers to these images alone, under the names that the data set has for them."""
    rows = np.concatenate((matched.train, matched.valid))
    names = [name for name, row in zip((*dataset.train.names, *dataset.valid.names), rows, strict=True) if row >= 0]
    return Answers(names, torch.from_numpy(logits[rows[rows >= 0]]))


def known_logits(network: Answers, pixels: Pixels) -> tuple[np.ndarray, np.ndarray]:
    """The images that it has an answer for, int64 (A,), and the answers by the data's classes, float32 (A, C)."""
    rows = network.find(pixels.names)
    known = np.flatnonzero(rows >= 0)
    return known, _by_class(network, network.logits[torch.from_numpy(rows[known])]).numpy()
