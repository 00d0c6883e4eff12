"""Did the teacher help? The student against its control: the same student trained from labels alone.

The seeds are those of a model directory (`toolkit distill --seeds N`). All accuracies are those on the test split, in
torch.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from toolkit import console
from toolkit.bench.measure.images import BenchImages
from toolkit.bench.measure.rows import answer_images, is_control_of
from toolkit.bench.schema import Distillation, ReportRow, SeedGain, find_row
from toolkit.modeldir import ModelDir
from toolkit.networks.weights import ModelInfo, read_info
from toolkit.recipe import Recipe
from toolkit.runtimes.pytorch import TorchPredictor

FROM_TRAINING = ("epochs", "images_seen", "seconds", "train_img_s", "unlabelled_images")
"""Figures about its training in the student's weights file."""


def measure_gain(
    model_dir: ModelDir, seed: int, measured: Sequence[ReportRow], images: BenchImages, device: str
) -> list[SeedGain]:
    """Student and control of each seed, `seed` first; nothing without a control.

    The rows `measured` are of the directory's own student and control, trained from `seed`. Further seeds are measured
    here, on `device`.
    """
    control = find_row(measured, "control", "torch") or next((row for row in measured if row.model == "control"), None)
    student = find_row(measured, "student", control.runtime) if control else None
    if student is None or control is None:
        return []
    found = [_compare(seed, student.accuracy_top1, control.accuracy_top1)]
    for other in (model_dir.of_seed(number) for number in model_dir.seeds() if number != seed):
        if _belongs(other, read_info(model_dir.weights("student"))):
            found.append(_measure_pair(other, images, device))
    return found


def describe_distillation(per_seed: Sequence[SeedGain], training: Mapping[str, Any]) -> Distillation:
    """The report's `distillation`; `training` is what the student's weights file says about its training."""
    gains = [one.gain_top1 for one in per_seed]
    return Distillation(
        control_accuracy_top1=per_seed[0].control_accuracy_top1 if per_seed else None,
        gain_top1=gains[0] if gains else None,
        seeds=tuple(one.seed for one in per_seed) or None,
        mean=statistics.fmean(gains) if gains else None,
        std=statistics.stdev(gains) if len(gains) > 1 else None,
        per_seed=tuple(per_seed),
        **{name: training.get(name) for name in FROM_TRAINING},
    )


def _compare(seed: int, student: float, control: float) -> SeedGain:
    return SeedGain(
        seed=seed, student_accuracy_top1=student, control_accuracy_top1=control, gain_top1=student - control
    )


def _measure_pair(directory: ModelDir, images: BenchImages, device: str) -> SeedGain:
    predictors = [TorchPredictor(directory.weights(role), device) for role in ("student", "control")]
    answers = [answer_images(predictor, images.pixels, images.chosen) for predictor in predictors]
    student, control = (float(np.mean(logits.argmax(1) == images.labels)) for logits in answers)
    return _compare(int(directory.name), student, control)


def _belongs(directory: ModelDir, student: ModelInfo) -> bool:
    """Whether a further seed's student and control are there, trained as `student` was, except for the seed."""
    files = [directory.weights("student"), directory.weights("control")]
    if not all(path.is_file() for path in files):
        return False
    other = read_info(files[0])
    recipes = [
        Recipe.model_validate(info.recipe).with_overrides(["training.seed=0"]).fingerprint("data", "student", "distill")
        for info in (student, other)
    ]
    sources = [
        (info.dataset_sha256, info.teacher_sha256, info.extra.get("unlabelled_set_sha256")) for info in (student, other)
    ]
    same_source = sources[0] == sources[1]
    if recipes[0] == recipes[1] and same_source and is_control_of(read_info(files[1]), other):
        return True
    console.say(f"warning: {directory.path} was trained with other settings than the student and is left out")
    return False
