"""The proof of an export: the written file, opened in a fresh process, answers as it should.

A float32 or float16 file is compared with the network, an int8 one with the float32 file. N images, S px their side,
C classes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from toolkit.errors import GateError
from toolkit.export.replay import Replay
from toolkit.export.samples import Samples, large_batch, read_batches
from toolkit.modeldir import FilePrecision
from toolkit.networks.classifier import Classifier
from toolkit.settings import ExportRecipe

ROUNDING = 1e-9
"""By how much a difference of two fractions may exceed a bound: 0.90 - 0.89 is a little more than 0.01."""

ODD_BATCH = 7
SINGLES = 4
"""Images that are also run alone."""

SOFTMAX_TOLERANCE = 1e-5
"""Largest error of `probabilities` against a float64 softmax of the file's own logits."""


@dataclass(frozen=True)
class Reference:
    """Images, the logits (N, C) for them that a file is to reproduce, and whose those are.

    `whose` is `the network's` or `the fp32 file's`.
    """

    samples: Samples
    logits: NDArray[np.float32]
    whose: str


@dataclass(frozen=True)
class Bounds:
    """Bounds for a file of one precision; None means no bound. `prefix` goes before the settings' names."""

    max_logit_difference: float | None
    min_agreement: float | None
    max_accuracy_drop: float
    prefix: str = "export."
    drop_setting: str = "max_accuracy_drop"

    @classmethod
    def of(cls, recipe: ExportRecipe, precision: FilePrecision) -> Self:
        if precision == "fp32":
            return cls(recipe.max_logit_difference, recipe.min_agreement, recipe.max_accuracy_drop)
        if precision == "fp16":
            difference, agreement = recipe.fp16_max_logit_difference, recipe.fp16_min_agreement
            return cls(difference, agreement, recipe.fp16_max_accuracy_drop, prefix="export.fp16_")
        return cls(None, None, recipe.max_drop, drop_setting="max_drop")


@dataclass(frozen=True)
class Proof:
    """The measurements: fractions, and logits in their own unit. Accuracies are None on synthetic images.

    `accuracy_reference` is the accuracy of the reference.
    """

    images: int
    max_logit_difference: float
    agreement: float
    accuracy_reference: float | None
    accuracy_onnx: float | None


@dataclass(frozen=True)
class _Outputs:
    """Logits (N, C) of reference and file for the same images, and their names."""

    names: tuple[str, ...]
    reference: NDArray[np.float32]
    onnx: NDArray[np.float32]
    probabilities: NDArray[np.float32]


def refer_to_network(classifier: Classifier, samples: Samples) -> Reference:
    """The classifier's logits (evaluation mode, CPU) for every image."""
    answers = []
    for images in read_batches(samples):
        with torch.inference_mode():
            planes = torch.from_numpy(images).permute(0, 3, 1, 2)
            answers.append(classifier(planes.float() / 255).numpy())
    return Reference(samples, np.concatenate(answers), "the network's")


def prove_file(path: Path, title: str, reference: Reference, bounds: Bounds) -> tuple[Proof, NDArray[np.float32]]:
    """Compare the file at `path`, called `title` in messages, with the reference; the proof, and the file's logits.

    The file answers every image in large batches, some images alone, and an odd batch. Raises GateError, naming the
    worst image, if a bound is not met.
    """
    samples = reference.samples
    everything, large = np.arange(len(samples)), large_batch(samples)
    with Replay(path, title) as replay:
        answers = _answer(replay, reference, everything, large)
        worst = _require_close(answers, f"in batches of {large}", title, bounds)
        for batch, chosen in ((1, np.resize(everything, SINGLES)), (ODD_BATCH, np.resize(everything, ODD_BATCH))):
            few = _answer(replay, reference, chosen, batch)
            worst = max(worst, _require_close(few, f"in a batch of {batch}", title, bounds))
    agreement = _require_agreement(answers, title, bounds)
    accuracies = _require_accuracy(answers, reference, title, bounds)
    return Proof(len(samples), worst, agreement, *accuracies), answers.onnx


def _answer(replay: Replay, reference: Reference, chosen: NDArray[np.int64], batch: int) -> _Outputs:
    logits, probabilities = zip(*map(replay.answer, read_batches(reference.samples, chosen, batch)), strict=True)
    names = tuple(reference.samples.names[place] for place in chosen)
    return _Outputs(names, reference.logits[chosen], np.concatenate(logits), np.concatenate(probabilities))


def _require_close(answers: _Outputs, how: str, title: str, bounds: Bounds) -> float:
    """The largest difference on any logit."""
    differences = _largest_each(answers.onnx, answers.reference)
    worst = int(differences.argmax())
    allowed = np.inf if bounds.max_logit_difference is None else bounds.max_logit_difference
    if differences[worst] > allowed or not np.isfinite(differences[worst]):
        raise _gate(
            title,
            f"its logits are off by {differences[worst]:.2g} on {answers.names[worst]} ({how}), "
            f"{allowed:g} is allowed ({bounds.prefix}max_logit_difference)",
        )
    logits = answers.onnx.astype(np.float64)
    softmax = np.exp(logits - logits.max(axis=1, keepdims=True))
    errors = _largest_each(answers.probabilities, softmax / softmax.sum(axis=1, keepdims=True))
    if errors.max() > SOFTMAX_TOLERANCE:
        name = answers.names[int(errors.argmax())]
        raise _gate(title, f"its probabilities are off by {errors.max():.2g} from its own logits' softmax on {name}")
    return float(differences[worst])


def _largest_each(answer: NDArray[Any], reference: NDArray[Any]) -> NDArray[np.float64]:
    """Largest |answer − reference| of each image; infinite if either is not a finite number."""
    difference = np.abs(answer.astype(np.float64) - reference)
    largest: NDArray[np.float64] = np.where(np.isfinite(difference), difference, np.inf).max(axis=1)
    return largest


def _require_agreement(answers: _Outputs, title: str, bounds: Bounds) -> float:
    same = answers.onnx.argmax(1) == answers.reference.argmax(1)
    agreement = float(same.mean())
    if bounds.min_agreement is not None and agreement < bounds.min_agreement:
        raise _gate(
            title,
            f"it predicts the same class as the network on {int(same.sum())} of {len(same)} images, but not on "
            f"{answers.names[int(same.argmin())]}; {bounds.min_agreement:g} is required ({bounds.prefix}min_agreement)",
        )
    return agreement


def _require_accuracy(
    answers: _Outputs, reference: Reference, title: str, bounds: Bounds
) -> tuple[float, float] | tuple[None, None]:
    labels = reference.samples.labels
    if labels is None:
        return None, None
    in_reference, in_file = (answer.argmax(1) == labels for answer in (answers.reference, answers.onnx))
    before, after = float(in_reference.mean()), float(in_file.mean())
    if before - after > bounds.max_accuracy_drop + ROUNDING:
        raise _gate(
            title,
            f"its accuracy is {after:.4f}, {reference.whose} {before:.4f} on {len(in_file)} validation images (wrong"
            f" on {answers.names[int((in_reference & ~in_file).argmax())]}); "
            f"a drop of {bounds.max_accuracy_drop:g} is allowed ({bounds.prefix}{bounds.drop_setting})",
        )
    return before, after


def _gate(title: str, problem: str) -> GateError:
    return GateError(
        f"{title} does not answer as its weights do: {problem}",
        "the file was not kept; try another export.opset (18 to 23), leave out a smaller precision that is not "
        "good enough, and see `toolkit doctor` for the versions",
    )
