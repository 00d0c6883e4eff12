"""Did the teacher help? The student against its control: the same student trained from labels alone.

Works on a model directory and on the further seeds in it (`toolkit distill --seeds N`); all accuracies are of the test
split, in torch.
"""

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit import console
from toolkit.bench.measure.rows import Row, answer_images, is_control_of
from toolkit.bench.schema import ReportRow, find_row
from toolkit.data.pixels import Pixels
from toolkit.modeldir import ModelDir
from toolkit.networks.weights import ModelInfo, read_info
from toolkit.recipe import Recipe
from toolkit.runtimes.pytorch import TorchPredictor

FROM_TRAINING = ("epochs", "images_seen", "seconds", "train_img_s")
"""Figures that the student's weights file tells of its training."""


def measure_gain(
    model_dir: ModelDir,
    seed: int,
    rows: Sequence[Row],
    measured: Sequence[ReportRow],
    pixels: Pixels,
    indices: NDArray[np.integer],
    device: str,
) -> dict[str, Any]:
    """The report's `distillation`: accuracies and gain (fractions), None for what was not trained.

    `rows` and what was `measured` of them are of the directory's own student and control, trained from `seed`:
    `control_accuracy_top1` and `gain_top1`. Further seeds are measured here. `mean` and `std` (of the sample) are of
    the gain over all `seeds`, which `per_seed` lists one by one.
    """
    extra = next(row.extra for row in rows if row.model == "student")
    control = find_row(measured, "control", "torch") or next((r for r in measured if r["model"] == "control"), None)
    student = find_row(measured, "student", control["runtime"]) if control else None
    per_seed = []
    if student and control:
        per_seed.append(_pair(seed, student["accuracy_top1"], control["accuracy_top1"]))
        for other in (model_dir.of_seed(number) for number in model_dir.seeds() if number != seed):
            if _belongs(other, read_info(model_dir.weights("student"))):
                per_seed.append(_measure_pair(other, pixels, indices, device))
    gains = [one["gain_top1"] for one in per_seed]
    return {
        "control_accuracy_top1": control["accuracy_top1"] if control else None,
        "gain_top1": gains[0] if gains else None,
        "seeds": [one["seed"] for one in per_seed] or None,
        "mean": statistics.fmean(gains) if gains else None,
        "std": statistics.stdev(gains) if len(gains) > 1 else None,
        "per_seed": per_seed,
        **{name: extra.get(name) for name in FROM_TRAINING},
    }


def _pair(seed: int, student: float, control: float) -> dict[str, Any]:
    return {
        "seed": seed,
        "student_accuracy_top1": student,
        "control_accuracy_top1": control,
        "gain_top1": student - control,
    }


def _measure_pair(directory: ModelDir, pixels: Pixels, indices: NDArray[np.integer], device: str) -> dict[str, Any]:
    predictors = [TorchPredictor(directory.weights(role), device) for role in ("student", "control")]
    labels = pixels.labels[indices]
    accuracies = [float(np.mean(logits.argmax(1) == labels)) for logits in answer_images(predictors, pixels, indices)]
    return _pair(int(directory.name), accuracies[0], accuracies[1])


def _belongs(directory: ModelDir, student: ModelInfo) -> bool:
    """Whether a further seed's student and control are there, and trained as `student` was but for the seed."""
    files = [directory.weights("student"), directory.weights("control")]
    if not all(path.is_file() for path in files):
        return False
    other = read_info(files[0])
    recipes = [
        Recipe.model_validate(info.recipe).with_overrides(["distill.seed=0"]).fingerprint("data", "student", "distill")
        for info in (student, other)
    ]
    same_source = (other.dataset_sha256, other.teacher_sha256) == (student.dataset_sha256, student.teacher_sha256)
    if recipes[0] == recipes[1] and same_source and is_control_of(read_info(files[1]), other):
        return True
    console.say(f"warning: {directory.path} was trained with other settings than the student and is left out")
    return False
