"""The proof of an export: the written file, opened in a fresh process, answers as it should.

A float32 or float16 file is compared with the network, an int8 one with the float32 file. A float16 file has to answer
twice: as it is, and rounded to float16 after every operator, which a CPU does not do. N images, S px their side,
C classes.
"""

from dataclasses import dataclass, replace
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

ABSURD = 100
"""times the loss of a guess, ln C: only logits that grew without bound are so wrong"""

EPSILON: dict[FilePrecision, float] = {
    "fp32": float(np.finfo(np.float32).eps),
    "fp16": float(np.finfo(np.float16).eps),
    "int8": float(np.finfo(np.float32).eps),
}
"""Distance of neighbouring numbers, as a fraction of them, in the arithmetic that a file's operators round to."""

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

    precision: FilePrecision
    max_logit_difference: float | None
    min_agreement: float | None
    max_accuracy_drop: float
    prefix: str = "export."
    drop_setting: str = "max_accuracy_drop"

    @classmethod
    def of(cls, recipe: ExportRecipe, precision: FilePrecision) -> Self:
        if precision == "fp32":
            return cls(precision, recipe.max_logit_difference, recipe.min_agreement, recipe.max_accuracy_drop)
        if precision == "fp16":
            difference, agreement = recipe.fp16_max_logit_difference, recipe.fp16_min_agreement
            return cls(precision, difference, agreement, recipe.fp16_max_accuracy_drop, prefix="export.fp16_")
        return cls(precision, None, None, recipe.max_drop, drop_setting="max_drop")


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

    def or_worse(self, other: Self) -> Self:
        """Of two proofs of the same file on the same images, the worse of each measurement."""
        worst = max(self.max_logit_difference, other.max_logit_difference)
        agreement = min(self.agreement, other.agreement)
        accuracy = None
        if self.accuracy_onnx is not None and other.accuracy_onnx is not None:
            accuracy = min(self.accuracy_onnx, other.accuracy_onnx)
        return replace(self, max_logit_difference=worst, agreement=agreement, accuracy_onnx=accuracy)


@dataclass(frozen=True)
class _Outputs:
    """Logits (N, C) of reference and file for the same images, their names, and their labels (N,) if there are any.

    `operators` is how many operators of the file may round its numbers, one after the other.
    """

    names: tuple[str, ...]
    labels: NDArray[np.int64] | None
    operators: int
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

    The file answers every image in large batches, some images alone, and an odd batch. A float16 file does so twice,
    the second time rounded as round_as_half says; the proof has the worse figures. Raises GateError, naming the worst
    image, if a bound is not met, or if the reference's own logits are those of a training that diverged.
    """
    with Replay(path, title) as replay:
        proof, logits = _prove(replay, title, reference, bounds)
    if bounds.precision == "fp16":
        title = f"{title} in float16 arithmetic"
        with Replay(path, title, rounded=True) as replay:
            proof = proof.or_worse(_prove(replay, title, reference, bounds)[0])
    return proof, logits


def _prove(replay: Replay, title: str, reference: Reference, bounds: Bounds) -> tuple[Proof, NDArray[np.float32]]:
    samples = reference.samples
    everything, large = np.arange(len(samples)), large_batch(samples)
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
    samples = reference.samples
    names = tuple(samples.names[place] for place in chosen)
    labels = None if samples.labels is None else samples.labels[chosen]
    answers = reference.logits[chosen], np.concatenate(logits), np.concatenate(probabilities)
    return _Outputs(names, labels, replay.operators, *answers)


def _require_close(answers: _Outputs, how: str, title: str, bounds: Bounds) -> float:
    """The largest difference on any logit."""
    differences = _largest_each(answers.onnx, answers.reference)
    worst = int(differences.argmax())
    allowed = np.inf if bounds.max_logit_difference is None else bounds.max_logit_difference
    if differences[worst] > allowed or not np.isfinite(differences[worst]):
        size = float(_largest_each(answers.reference, np.zeros(1)).max())
        rounding = size * EPSILON[bounds.precision] * answers.operators
        if not np.isfinite(size) or rounding > allowed:
            _refuse_diverged(answers, title)
        problem = (
            f"its logits are off by {differences[worst]:.2g} on {answers.names[worst]} ({how}), "
            f"{allowed:g} is allowed ({bounds.prefix}max_logit_difference)"
        )
        raise _gate(title, bounds, problem, (size, rounding) if differences[worst] <= rounding else None)
    logits = answers.onnx.astype(np.float64)
    softmax = np.exp(logits - logits.max(axis=1, keepdims=True))
    errors = _largest_each(answers.probabilities, softmax / softmax.sum(axis=1, keepdims=True))
    if errors.max() > SOFTMAX_TOLERANCE:
        name = answers.names[int(errors.argmax())]
        problem = f"its probabilities are off by {errors.max():.2g} from its own logits' softmax on {name}"
        raise _gate(title, bounds, problem)
    return float(differences[worst])


def _largest_each(answer: NDArray[Any], reference: NDArray[Any]) -> NDArray[np.float64]:
    """Largest |answer − reference| of each image; infinite if either is not a finite number."""
    with np.errstate(invalid="ignore"):
        difference = np.abs(answer.astype(np.float64) - reference)
    largest: NDArray[np.float64] = np.where(np.isfinite(difference), difference, np.inf).max(axis=1)
    return largest


def _require_agreement(answers: _Outputs, title: str, bounds: Bounds) -> float:
    same = answers.onnx.argmax(1) == answers.reference.argmax(1)
    agreement = float(same.mean())
    if bounds.min_agreement is not None and agreement < bounds.min_agreement:
        raise _gate(
            title,
            bounds,
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
            bounds,
            f"its accuracy is {after:.4f}, {reference.whose} {before:.4f} on {len(in_file)} validation images (wrong"
            f" on {answers.names[int((in_reference & ~in_file).argmax())]}); "
            f"a drop of {bounds.max_accuracy_drop:g} is allowed ({bounds.prefix}{bounds.drop_setting})",
        )
    return before, after


def _refuse_diverged(answers: _Outputs, title: str) -> None:
    """Raise if the reference's own logits are the reason why nothing comes near them: infinite, or absurdly wrong.

    Without labels they are as wrong as they are on average over all labels.
    """
    sizes = _largest_each(answers.reference, np.zeros(1))
    worst = int(sizes.argmax())
    logits = answers.reference.astype(np.float64)
    guess = np.log(logits.shape[1])
    if not np.isfinite(sizes[worst]):
        problem = f"are not finite on {answers.names[worst]}"
    elif (loss := _compute_loss(logits, answers.labels)) > ABSURD * guess:
        problem = (
            f"reach {sizes[worst]:.1e} on {answers.names[worst]} and make a loss of {loss:.2g} (a guess {guess:.2g})"
        )
    else:
        return
    raise GateError(
        f"{title} was not written: the network's own logits {problem}, so its training diverged",
        "train it again, longer or with a lower learning rate (teacher.learning_rate, distill.learning_rate)",
    )


def _compute_loss(logits: NDArray[np.float64], labels: NDArray[np.int64] | None) -> float:
    """Mean cross-entropy, in nats, with the labels (N,); without them, with every class of each image in turn."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(axis=1, keepdims=True)) - shifted
    return float(losses.mean() if labels is None else losses[np.arange(len(labels)), labels].mean())


def _gate(title: str, bounds: Bounds, problem: str, rounded: tuple[float, float] | None = None) -> GateError:
    """`rounded`: how large the logits are, and how far rounding alone may move them, if that explains the problem."""
    remedy = "try another export.opset (18 to 23), and see `toolkit doctor` for the versions"
    if bounds.precision != "fp32":
        remedy = f"leave out {bounds.precision}, or allow more with a setting of [export]"
    elif rounded is not None:
        remedy = "allow more with that setting, or train the network to smaller logits (label_smoothing, weight_decay)"
    if rounded is not None:
        numbers = "float16" if bounds.precision == "fp16" else "float32"
        remedy = f"rounding to {numbers} moves logits of {rounded[0]:.2g} by up to {rounded[1]:.2g}: {remedy}"
    return GateError(f"{title} does not answer as its weights do: {problem}", f"the file was not kept; {remedy}")
