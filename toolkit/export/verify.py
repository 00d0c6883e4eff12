"""The proof of an export: the written file, opened anew in onnxruntime, answers as the network does.

N images, S px their side, C classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from toolkit.data.pixels import Pixels
from toolkit.environment import available_cores
from toolkit.errors import ArtifactError, DataError, GateError
from toolkit.networks.classifier import Classifier
from toolkit.recipe import ExportRecipe

BATCH_PIXELS = 32 * 256 * 256
LARGEST_BATCH = 64
ODD_BATCH = 7
SINGLES = 4
"""Images that are also run alone."""

SYNTHETIC_IMAGES = 32
SOFTMAX_TOLERANCE = 1e-5
"""Largest error of `probabilities` against a float64 softmax of the file's own logits."""


@dataclass(frozen=True)
class Samples:
    """Images to compare on: `read` turns indices (B,) into uint8 (B, S, S, 3); real images have labels (N,)."""

    names: tuple[str, ...]
    labels: NDArray[np.int64] | None
    read: Callable[[NDArray[np.int64]], NDArray[np.uint8]]


@dataclass(frozen=True)
class Proof:
    """What was measured; fractions, and logits in their own unit. Accuracies are None on synthetic images."""

    images: int
    max_logit_difference: float
    agreement: float
    accuracy_torch: float | None
    accuracy_onnx: float | None


@dataclass(frozen=True)
class _Answers:
    """Logits (N, C) of network and file for the same images."""

    torch: NDArray[np.float32]
    onnx: NDArray[np.float32]
    probabilities: NDArray[np.float32]


def choose_samples(pixels: Pixels | None, image_size: int, num_classes: int, limit: int) -> Samples:
    """At most `limit` validation images, spread evenly over the split; without pixels, seeded synthetic ones.

    Raises ArtifactError where the pixels were prepared for another size, DataError where they hold more classes.
    """
    if pixels is None:
        images = draw_images(min(limit, SYNTHETIC_IMAGES), image_size)
        return Samples(tuple(f"synthetic image {i}" for i in range(len(images))), None, lambda chosen: images[chosen])
    prepared = pixels.preprocess.image_size
    if prepared != image_size:
        raise ArtifactError(
            f"the validation images are prepared at {prepared} px, the weights want {image_size} px",
            f"use the recipe of those weights, or --set data.image_size={image_size}",
        )
    if int(pixels.labels.max()) >= num_classes:
        raise DataError(
            f"the validation images have {int(pixels.labels.max()) + 1} classes, the weights {num_classes}",
            "give the data those weights were trained on with --data",
        )
    spread = np.unique(np.linspace(0, len(pixels) - 1, min(limit, len(pixels))).round().astype(np.int64))
    return Samples(
        tuple(pixels.names[i] for i in spread), pixels.labels[spread], lambda chosen: pixels.centre(spread[chosen])
    )


def draw_images(count: int, side: int, seed: int = 0) -> NDArray[np.uint8]:
    """uint8 (count, side, side, 3): patches of random colours under noise, so they differ coarsely and finely."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (count, 4, 4, 3))
    places = np.arange(side) * 4 // side
    noise = generator.integers(-40, 41, (count, side, side, 3))
    images: NDArray[np.uint8] = np.clip(coarse[:, places[:, None], places] + noise, 0, 255).astype(np.uint8)
    return images


def prove_file(path: Path, title: str, classifier: Classifier, samples: Samples, bounds: ExportRecipe) -> Proof:
    """Compare the file at `path`, called `title` in messages, with the classifier (evaluation mode, CPU).

    Every image in large batches, some alone, and an odd batch. Raises GateError, naming the worst image, where a bound
    of `[export]` is not met.
    """
    session = _open_session(path)
    count = len(samples.names)
    side = samples.read(np.zeros(1, dtype=np.int64)).shape[1]
    large = max(1, min(LARGEST_BATCH, BATCH_PIXELS // side**2))
    everything = np.arange(count)
    answers = _answer(session, classifier, samples, everything, large)
    worst = _require_close(answers, everything, f"in batches of {large}", title, samples, bounds)
    for batch, chosen in ((1, np.resize(everything, SINGLES)), (ODD_BATCH, np.resize(everything, ODD_BATCH))):
        few = _answer(session, classifier, samples, chosen, batch)
        worst = max(worst, _require_close(few, chosen, f"in a batch of {batch}", title, samples, bounds))
    agreement = _require_agreement(answers, title, samples, bounds)
    accuracies = _require_accuracy(answers, title, samples, bounds)
    return Proof(count, worst, agreement, *accuracies)


def _open_session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = available_cores()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _answer(session: Any, classifier: Classifier, samples: Samples, chosen: NDArray[np.int64], batch: int) -> _Answers:
    ours, theirs, probabilities = [], [], []
    for start in range(0, len(chosen), batch):
        images = samples.read(chosen[start : start + batch])
        with torch.inference_mode():
            planes = torch.from_numpy(images).permute(0, 3, 1, 2)
            ours.append(classifier(planes.float() / 255).numpy())
        logits, shares = session.run(["logits", "probabilities"], {"image": images})
        theirs.append(logits)
        probabilities.append(shares)
    return _Answers(np.concatenate(ours), np.concatenate(theirs), np.concatenate(probabilities))


def _require_close(
    answers: _Answers, chosen: NDArray[np.int64], how: str, title: str, samples: Samples, bounds: ExportRecipe
) -> float:
    """The largest difference on any logit."""
    differences = _largest_each(answers.onnx, answers.torch)
    worst = int(differences.argmax())
    name = samples.names[chosen[worst]]
    if differences[worst] > bounds.max_logit_difference:
        raise _gate(
            title,
            f"its logits are off by {differences[worst]:.2g} on {name} ({how}), "
            f"allowed is {bounds.max_logit_difference:g} (export.max_logit_difference)",
        )
    logits = answers.onnx.astype(np.float64)
    softmax = np.exp(logits - logits.max(axis=1, keepdims=True))
    errors = _largest_each(answers.probabilities, softmax / softmax.sum(axis=1, keepdims=True))
    if errors.max() > SOFTMAX_TOLERANCE:
        name = samples.names[chosen[int(errors.argmax())]]
        raise _gate(title, f"its probabilities are off by {errors.max():.2g} from its own logits' softmax on {name}")
    return float(differences[worst])


def _largest_each(answer: NDArray[Any], reference: NDArray[Any]) -> NDArray[np.float64]:
    """Largest |answer − reference| of each image; infinite where either is not a finite number."""
    difference = np.abs(answer.astype(np.float64) - reference)
    largest: NDArray[np.float64] = np.where(np.isfinite(difference), difference, np.inf).max(axis=1)
    return largest


def _require_agreement(answers: _Answers, title: str, samples: Samples, bounds: ExportRecipe) -> float:
    same = answers.onnx.argmax(1) == answers.torch.argmax(1)
    agreement = float(same.mean())
    if agreement < bounds.min_agreement:
        raise _gate(
            title,
            f"it names the same class as the network on {int(same.sum())} of {len(same)} images, not on "
            f"{samples.names[int(same.argmin())]}; wanted is {bounds.min_agreement:g} (export.min_agreement)",
        )
    return agreement


def _require_accuracy(
    answers: _Answers, title: str, samples: Samples, bounds: ExportRecipe
) -> tuple[float, float] | tuple[None, None]:
    if samples.labels is None:
        return None, None
    in_torch, in_file = (answer.argmax(1) == samples.labels for answer in (answers.torch, answers.onnx))
    before, after = float(in_torch.mean()), float(in_file.mean())
    if before - after > bounds.max_accuracy_drop:
        raise _gate(
            title,
            f"its accuracy is {after:.4f}, the network's {before:.4f} on {len(in_file)} validation images (wrong on "
            f"{samples.names[int((in_torch & ~in_file).argmax())]}); "
            f"allowed is a drop of {bounds.max_accuracy_drop:g} (export.max_accuracy_drop)",
        )
    return before, after


def _gate(title: str, problem: str) -> GateError:
    return GateError(
        f"{title} does not answer as its weights do: {problem}",
        "the file was not kept; try another --set export.opset=18 (to 23), and `toolkit doctor` for the versions",
    )
