"""Did the teacher help? The student against its control: the same student trained from labels alone.

Works on a model directory and on the further seeds in it (`toolkit distill --seeds N`); all accuracies are of the test
split, in torch.
"""

import statistics
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit import console
from toolkit.bench.rows import answer_images, is_control_of
from toolkit.data.pixels import Pixels
from toolkit.modeldir import ModelDir
from toolkit.networks.weights import ModelInfo, read_info
from toolkit.predictor import TorchPredictor
from toolkit.recipe import Recipe

FROM_TRAINING = ("epochs", "images_seen", "seconds", "train_img_s")
"""Figures that the student's weights file tells of its training."""


def measure_gain(model_dir: ModelDir, pixels: Pixels, indices: NDArray[np.integer], device: str) -> dict[str, Any]:
    """The report's `distillation`: accuracies and gain (fractions), None for what was not trained.

    `control_accuracy_top1` and `gain_top1` are of the directory's own seed; `mean` and `std` (of the sample) are of the
    gain over all `seeds`, which are listed one by one in `per_seed`.
    """
    student = read_info(model_dir.weights("student"))
    first = int(student.recipe["distill"]["seed"])
    directories = {first: model_dir} | {seed: model_dir.of_seed(seed) for seed in model_dir.seeds() if seed != first}
    per_seed = []
    for seed, directory in directories.items():
        if seed != first and not _is_same_but_for_the_seed(directory, student):
            continue
        if measured := _measure_pair(directory, seed, pixels, indices, device):
            per_seed.append(measured)
    gains = [one["gain_top1"] for one in per_seed]
    own = per_seed[0] if per_seed and per_seed[0]["seed"] == first else None
    return {
        "control_accuracy_top1": own["control_accuracy_top1"] if own else None,
        "gain_top1": own["gain_top1"] if own else None,
        "seeds": len(gains) or None,
        "mean": statistics.fmean(gains) if gains else None,
        "std": statistics.stdev(gains) if len(gains) > 1 else None,
        "per_seed": per_seed,
        **{name: student.extra.get(name) for name in FROM_TRAINING},
    }


def describe_gain(distillation: dict[str, Any]) -> str:
    """One sentence on what the teacher was worth, or on what is missing to say it."""
    per_seed = distillation.get("per_seed") or []
    if not per_seed:
        return (
            "What the teacher was worth is not measured: there is no control, the same student trained without it;"
            " make one with toolkit distill --set distill.control=true"
        )
    students, controls = ([100 * one[f"{role}_accuracy_top1"] for one in per_seed] for role in ("student", "control"))
    gains = [student - control for student, control in zip(students, controls, strict=True)]
    if len(gains) == 1:
        return (
            f"The teacher was worth {gains[0]:+.2f} points: top-1 {students[0]:.2f} % with it, {controls[0]:.2f} %"
            " without (one seed: toolkit distill --seeds 3 tells how much of that is luck)."
        )
    return (
        f"The teacher was worth {statistics.fmean(gains):+.2f} ± {statistics.stdev(gains):.2f} points"
        f" (mean ± standard deviation over {len(gains)} seeds): top-1 {_spread(students)} % with it,"
        f" {_spread(controls)} % without."
    )


def _spread(values: list[float]) -> str:
    return f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f}"


def _measure_pair(
    directory: ModelDir, seed: int, pixels: Pixels, indices: NDArray[np.integer], device: str
) -> dict[str, Any] | None:
    files = [directory.weights("student"), directory.weights("control")]
    if not all(path.is_file() for path in files):
        return None
    if not is_control_of(read_info(files[1]), read_info(files[0])):
        console.say(
            f"careful: {files[1]} was trained with other settings than the student beside it and is left out;"
            " make it again with toolkit distill --set distill.control=true --force"
        )
        return None
    student, control = (_accuracy(path, pixels, indices, device) for path in files)
    return {
        "seed": seed,
        "student_accuracy_top1": student,
        "control_accuracy_top1": control,
        "gain_top1": student - control,
    }


def _is_same_but_for_the_seed(directory: ModelDir, student: ModelInfo) -> bool:
    path = directory.weights("student")
    if not path.is_file():
        return False
    other = read_info(path)
    recipes = [
        Recipe.model_validate(info.recipe).with_overrides(["distill.seed=0"]).fingerprint("data", "student", "distill")
        for info in (student, other)
    ]
    same_source = (other.dataset_sha256, other.teacher_sha256) == (student.dataset_sha256, student.teacher_sha256)
    if recipes[0] == recipes[1] and same_source:
        return True
    console.say(f"careful: {path} was trained with other settings than the student and is left out")
    return False


def _accuracy(path: Path, pixels: Pixels, indices: NDArray[np.integer], device: str) -> float:
    (logits,) = answer_images([TorchPredictor(path, device)], pixels, indices)
    return float(np.mean(logits.argmax(1) == pixels.labels[indices]))
