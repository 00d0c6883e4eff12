"""Accuracy against confidence: bins of confidence, their accuracy, and the reliability diagram.

N images, C classes. Guo et al. 2017, https://arxiv.org/abs/1706.04599, equations 2 and 3.
"""

from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from toolkit.bench.measure.fidelity import CALIBRATION_BINS
from toolkit.plotting import COLOURS, GREY, INK, add_title, dress_axes, start_figure, write_png
from toolkit.runtimes.base import softmax

Z_95 = 1.959964
"""standard deviations on either side of the mean that hold 95 % of a normal distribution"""


@dataclass(frozen=True)
class Bins:
    """CALIBRATION_BINS equal-width bins of the top-1 confidence, and one of confidence 1 alone, as torchmetrics counts.

    Every array has one value per bin, CALIBRATION_BINS + 1 in all.
    """

    images: NDArray[np.int64]
    confidence: NDArray[np.float64]
    """Mean of the bin's images, 0 if it has none."""
    accuracy: NDArray[np.float64]
    """Share of the bin's images whose predicted class is right, 0 if it has none."""

    @classmethod
    def of(cls, logits: NDArray[np.floating], labels: NDArray[np.integer]) -> Self:
        """From logits (N, C) and labels (N,). Raises ValueError if the shapes do not fit or N is 0."""
        if logits.ndim != 2 or len(logits) == 0 or labels.shape != logits.shape[:1]:
            raise ValueError(f"logits {logits.shape} and labels {labels.shape}")
        probabilities = softmax(logits)
        confidences, right = probabilities.max(1), probabilities.argmax(1) == labels
        chosen = np.digitize(confidences, np.linspace(0, 1, CALIBRATION_BINS + 1)) - 1
        images, sure, hits = (
            np.bincount(chosen, weights, CALIBRATION_BINS + 1) for weights in (None, confidences, right.astype(float))
        )
        return cls(images.astype(np.int64), sure / np.maximum(images, 1), hits / np.maximum(images, 1))

    @property
    def ece(self) -> float:
        """Expected calibration error, eq. 3: the mean gap of a bin, weighted by its images; a fraction."""
        return float(np.sum(self.images * np.abs(self.accuracy - self.confidence)) / self.images.sum())

    @property
    def overconfidence(self) -> float:
        """Mean confidence less accuracy over all images; a fraction, below 0 if the network is underconfident."""
        return float(np.sum(self.images * (self.confidence - self.accuracy)) / self.images.sum())


def draw_reliability(
    labels: NDArray[np.integer],
    teacher_logits: NDArray[np.floating] | None,
    student_logits: NDArray[np.floating],
    name: str,
) -> bytes:
    """PNG: accuracy against confidence of teacher and student on the images of data set `name`, and a histogram.

    labels (N,), logits (N, C), None if there is no teacher. The vertical lines are 95 % intervals: a bin with few
    images means little.
    """
    bins: dict[Literal["teacher", "student"], Bins] = {}
    if teacher_logits is not None:
        bins["teacher"] = Bins.of(teacher_logits, labels)
    bins["student"] = Bins.of(student_logits, labels)
    figure = start_figure(7, 7)
    grid = figure.add_gridspec(2, 1, height_ratios=(3, 1), left=0.1, right=0.97, bottom=0.075, top=0.8, hspace=0.1)
    curve, histogram = figure.add_subplot(grid[0]), figure.add_subplot(grid[1])
    curve.plot([0, 100], [0, 100], color=GREY, linewidth=1, linestyle=(0, (4, 3)), label="perfect calibration")
    for role, one in bins.items():
        _draw_curve(curve, one, role)
        _draw_histogram(histogram, one, role)
    dress_axes(curve, "", "accuracy, %")
    curve.set(xlim=(0, 100), ylim=(0, 102))
    curve.tick_params(labelbottom=False)
    curve.text(3, 60, "underconfident", color=GREY, fontsize=9)
    curve.text(97, 26, "overconfident", color=GREY, fontsize=9, ha="right")
    curve.legend(frameon=False, fontsize=9, labelcolor=INK, loc="lower left", bbox_to_anchor=(-0.02, 1.0))
    dress_axes(histogram, "confidence, %", "images, %")
    histogram.set(xlim=(0, 100), ylim=(0, None))
    subtitle = f"{len(labels):,} test images in {CALIBRATION_BINS} bins of confidence · vertical lines: 95 % interval"
    add_title(figure, f"{name}: accuracy against confidence", subtitle)
    return write_png(figure)


def interval_95(accuracy: NDArray[np.float64], images: NDArray[np.int64]) -> tuple[NDArray[np.float64], ...]:
    """Lower and upper end of the accuracy that so many images leave open (Wilson 1927, score interval), n ≥ 1."""
    spread = Z_95**2 / images
    centre = (accuracy + spread / 2) / (1 + spread)
    half = np.sqrt(accuracy * (1 - accuracy) * spread + spread**2 / 4) / (1 + spread)
    return centre - half, centre + half


def _draw_curve(axes: Axes, bins: Bins, role: Literal["teacher", "student"]) -> None:
    full = bins.images > 0
    x, y = 100 * bins.confidence[full], 100 * bins.accuracy[full]
    low, high = interval_95(bins.accuracy[full], bins.images[full])
    axes.vlines(x, 100 * low, 100 * high, color=COLOURS[role], alpha=0.45, linewidth=1.4, zorder=2)
    off = 100 * bins.overconfidence
    difference = f"confidence {abs(off):.1f} points {'above' if off > 0 else 'below'} accuracy"
    label = f"{role}: ECE {bins.ece:.4f}, {difference}"
    axes.plot(x, y, color=COLOURS[role], linewidth=1.6, marker="o", markersize=4.5, label=label, zorder=3)


def _draw_histogram(axes: Axes, bins: Bins, role: Literal["teacher", "student"]) -> None:
    edges = np.linspace(0, 100, CALIBRATION_BINS + 1)
    images = np.append(bins.images[:-2], bins.images[-2:].sum())  # confidence 1 belongs to the last bar
    shares = 100 * images / images.sum()
    axes.stairs(shares, edges, color=COLOURS[role], alpha=0.25, fill=True, zorder=2)
    axes.stairs(shares, edges, color=COLOURS[role], linewidth=1.4, zorder=3)
