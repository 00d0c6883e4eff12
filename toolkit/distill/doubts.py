"""Whether an imported teacher's outputs mean the data's classes, judged by its answers to the validation images.

Weights say neither in which order their classes stand nor how images were normalised. A guess at either counts only if
it gives many more right answers than the import does, in a paired sign test. N images, C classes.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from toolkit.binomial import tail
from toolkit.data.dataset import spread
from toolkit.data.pixels import Pixels
from toolkit.networks.families import IMAGENET_MEAN, IMAGENET_STD, Channels

LEVEL = 0.01
"""probability that a test finds something where there is nothing, all its guesses together"""
LEAST_GAIN = 0.1
"""of accuracy, below which no guess is worth a word"""
TRIED_IMAGES = 128
"""validation images on which other normalisations are tried"""

NORMALISATIONS: tuple[tuple[Channels, Channels], ...] = (
    (IMAGENET_MEAN, IMAGENET_STD),
    ((0.5,) * 3, (0.5,) * 3),
    ((0.0,) * 3, (1.0,) * 3),
    ((0.0,) * 3, (1 / 255,) * 3),
)
"""Means and standard deviations that most weights are trained with: ImageNet's, and pixels in −1..1, 0..1, 0..255."""

Ask = Callable[[Pixels, Channels, Channels], Tensor]
"""Logits (N, C) of the network for images, with a normalisation."""


@dataclass(frozen=True)
class Order:
    """`classes` in the order in which the network's outputs seem to stand, and the accuracy that has."""

    classes: tuple[str, ...]
    accuracy: float


@dataclass(frozen=True)
class Normalisation:
    """A mean and a standard deviation with which the network seems to have been trained; the accuracies with the given
    one and with this one, on the same images."""

    mean: Channels
    std: Channels
    before: float
    accuracy: float


def is_near_chance(hits: np.ndarray, labels: np.ndarray) -> bool:
    """Whether a network that has `hits` bool (N,) may be no better than one that always gives the commonest class."""
    share = best_constant(labels)
    return tail(int(hits.sum()), len(hits), share) > LEVEL


def best_constant(labels: np.ndarray) -> float:
    """The accuracy of the best answer that is always the same."""
    return float(np.bincount(labels).max() / len(labels))


def find_order(logits: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> Order | None:
    """An order of the outputs with many more right answers, None if there is none.

    The usual orders of these names come first. Another one is fitted on one half of the images and has to hold on the
    other, and the other way round.
    """
    hits = logits.argmax(1) == labels
    guesses = [order for order in _usual_orders(classes) if order != tuple(classes)]
    for order in guesses:
        ours = [order.index(name) for name in classes]
        if is_better(hits, found := logits[:, ours].argmax(1) == labels, labels, len(guesses)):
            return Order(order, float(found.mean()))
    half = np.arange(len(labels)) % 2 == 0  # images lie class by class
    held_out = np.empty_like(hits)
    for part in (half, ~half):
        meaning = _fit_order(logits[part], labels[part])
        held_out[~part] = meaning[logits[~part].argmax(1)] == labels[~part]
    if not is_better(hits, held_out, labels):
        return None
    meaning = _fit_order(logits, labels)
    return Order(tuple(classes[label] for label in meaning), float(held_out.mean()))


def find_normalisation(ask: Ask, valid: Pixels, mean: Channels, std: Channels) -> Normalisation | None:
    """One of NORMALISATIONS with many more right answers than `mean` and `std`, None if there is none."""
    some = _take_some(valid)

    def hits_with(*normalisation: Channels) -> np.ndarray:
        found: np.ndarray = ask(some, *normalisation).argmax(1).cpu().numpy() == some.labels
        return found

    hits = hits_with(mean, std)
    others = [one for one in NORMALISATIONS if not np.allclose(one, (mean, std), atol=1e-3)]
    found = {one: hits_with(*one) for one in others}
    best = max(others, key=lambda one: found[one].sum())
    if not is_better(hits, found[best], some.labels, len(others)):
        return None
    return Normalisation(*best, float(hits.mean()), float(found[best].mean()))


def is_better(hits: np.ndarray, others: np.ndarray, labels: np.ndarray, guesses: int = 1) -> bool:
    """Whether `others` bool (N,), the best of so many guesses, is right much more often than `hits` and than chance."""
    gained, lost = int((others & ~hits).sum()), int((hits & ~others).sum())
    is_large = gained - lost >= LEAST_GAIN * len(hits)
    is_sure = tail(gained, gained + lost, 0.5) * guesses <= LEVEL
    return is_large and is_sure and not is_near_chance(others, labels)


def _usual_orders(classes: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Each once: by the numbers in names, as plain text, without regard to capitals."""
    keys: tuple[Callable[[str], object], ...] = (_by_numbers, str, str.lower)
    yield from dict.fromkeys(tuple(sorted(classes, key=key)) for key in keys)  # type: ignore[arg-type]


def _by_numbers(name: str) -> list[tuple[int, str]]:
    """`class10` → [(0, "class"), (10, ""), (0, "")]"""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name.lower())]


def _fit_order(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """int64 (C,): the class that each output means, each once, by the probabilities of the images of each class.

    Output and class of the largest mean probability find each other first.
    """
    probabilities = torch.from_numpy(logits).double().softmax(1).numpy()
    count = logits.shape[1]
    means = np.zeros((count, count))
    for label in np.unique(labels):
        means[:, label] = probabilities[labels == label].mean(0)
    meaning = np.full(count, -1)
    free = np.ones(count, dtype=bool)
    for place in np.argsort(-means, axis=None, kind="stable"):
        output, label = divmod(int(place), count)
        if meaning[output] < 0 and free[label]:
            meaning[output], free[label] = label, False
    return meaning


def _take_some(pixels: Pixels) -> Pixels:
    """TRIED_IMAGES of them, evenly over the split."""
    return pixels.subset(spread(len(pixels), TRIED_IMAGES))
