"""Answers in a file replayed as the teacher while a student learns, and written from any teacher.

N images of a split, A of them with an answer, C classes.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from toolkit import console
from toolkit.data.answer_file import write_answers
from toolkit.data.answered_images import hash_images, require_most
from toolkit.data.pixels import Pixels
from toolkit.distill import distributed
from toolkit.distill.answers import known_classes, known_logits
from toolkit.distill.evaluation import compute_logits
from toolkit.distill.folds import answer_out_of_fold, folds_of
from toolkit.distill.job import TrainingData, TrainingJob
from toolkit.distill.logit_store import StoredTeacher
from toolkit.distill.teachers import answer_by_label
from toolkit.networks.classifier import Classifier
from toolkit.networks.ensemble import Ensemble
from toolkit.networks.of_answers import Answers
from toolkit.networks.small_maps import place
from toolkit.networks.weights import load_model


def replay_answers(job: TrainingJob, network: Answers) -> StoredTeacher:
    """One answer per image, whatever the view, which a line says; labels answer where the file does not.

    Raises WeightsError if it has no answer for too many of the training images.
    """
    train, valid = job.data.train, job.data.valid
    is_there = network.find(train.names) >= 0
    require_most(is_there, train.names, "teacher.safetensors")
    missing = len(train) - int(is_there.sum())
    rest = f"; labels answer the other {missing:,}" if missing else ""
    console.say(
        f"teacher: a file has one answer per image, whatever the view, for {len(train) - missing:,} of {len(train):,}"
        f" training images{rest}"
    )
    temperature = job.recipe.distill.temperature
    answered = _answer_all(network, train, job.data.num_classes, temperature)
    return StoredTeacher(
        answered[np.newaxis], _answer_all(network, valid, job.data.num_classes, temperature), job.options.device
    )


def _answer_all(network: Answers, pixels: Pixels, num_classes: int, temperature: float) -> np.ndarray:
    """float32 (N, C); by the label if there is no answer, or if the label is a class that the teacher does not know."""
    labels = torch.from_numpy(pixels.labels)
    answers: np.ndarray = answer_by_label(functional.one_hot(labels, num_classes).float(), temperature).numpy()
    known, logits = known_logits(network, pixels)
    knows_label = np.isin(pixels.labels[known], known_classes(network, num_classes))
    answers[known[knows_label]] = logits[knows_label]
    return answers


def save_answers(path: Path, teacher_file: Path, data: TrainingData, device: str) -> int:
    """Write the answers of the teacher in `teacher_file` to the training and validation images; how many there are.

    Each is the answer to the evaluation view, in fp32, by name and, if the images are files, by SHA-256. A teacher of
    folds answers out of fold. Classes that the teacher does not know are left out.
    """
    teacher, info = load_model(teacher_file)
    classes = known_classes(teacher.network, data.num_classes)
    keys: dict[str, list[str]] = {"name": [], "sha256": []}
    logits: list[np.ndarray] = []
    seen = data.seen_by("teacher")
    folds = folds_of(info, seen.train)
    for images, pixels, drawn in ((data.dataset.train, seen.train, folds), (data.dataset.valid, seen.valid, None)):
        known, answers = _answer(teacher, pixels, device, drawn)
        names = [pixels.names[index] for index in known]
        keys["name"] += names
        logits.append(answers[:, classes])
        places = {name: place for place, name in enumerate(images.names)}
        if (hashes := hash_images(images.subset([places[name] for name in names]))) is not None:
            keys["sha256"] += hashes
    if not keys["sha256"]:
        del keys["sha256"]
    if distributed.is_main():
        write_answers(path, keys, np.concatenate(logits), [info.classes[place] for place in classes])
    distributed.barrier()
    return len(keys["name"])


def _answer(
    teacher: Classifier, pixels: Pixels, device: str, folds: np.ndarray | None
) -> tuple[Sequence[int] | np.ndarray, np.ndarray]:
    """The images that have an answer, and the answers, (A, C)."""
    if isinstance(teacher.network, Answers):
        return known_logits(teacher.network, pixels)
    if folds is not None:
        assert isinstance(teacher.network, Ensemble)
        members = teacher.network.classifiers
        return range(len(pixels)), answer_out_of_fold(members, folds, pixels, device)
    place(teacher, device)
    logits: Tensor = compute_logits(teacher, pixels, "fp32", device)
    return range(len(pixels)), logits.cpu().numpy()
