"""Fidelity against hand-worked numbers and plain numpy in float64."""

import numpy as np
import pytest
from numpy.typing import NDArray

from toolkit.bench.measure.fidelity import CALIBRATION_BINS, Fidelity, measure_fidelity

Array = NDArray[np.float64]


def test_hand_worked() -> None:
    # Three classes; softmax of log p is p, so that the confidences are the numbers below.
    probabilities = np.array([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1], [0.1, 0.9, 0.0], [0.3, 0.3, 0.4]])
    logits = np.log(np.maximum(probabilities, 1e-30)).astype(np.float32)
    labels = np.array([0, 1, 1, 2])
    teacher = np.eye(3, dtype=np.float32)[[0, 1, 1, 1]]
    fidelity = measure_fidelity(logits, labels, teacher)
    assert fidelity.accuracy_top1 == 0.75
    assert fidelity.accuracy_top5 == 1.0
    # class 0: precision 1/2, recall 1 → 2/3; class 1: precision 1, recall 1/2 → 2/3; class 2: 1
    assert fidelity.macro_f1 == pytest.approx((2 / 3 + 2 / 3 + 1) / 3, abs=1e-6)
    # bins: 0.7 twice with accuracy 1/2 → 2/4·0.2; 0.9 right → 1/4·0.1; 0.4 right → 1/4·0.6
    assert fidelity.ece == pytest.approx(0.1 + 0.025 + 0.15, abs=1e-6)
    assert fidelity.teacher_agreement == 0.5


def test_perfect_and_certain() -> None:
    labels = np.array([0, 1, 2, 1])
    logits = (np.eye(3)[labels] * 1000).astype(np.float32)
    found = measure_fidelity(logits, labels, logits)
    assert found == Fidelity(accuracy_top1=1.0, accuracy_top5=1.0, macro_f1=1.0, ece=found.ece, teacher_agreement=1.0)
    assert found.ece == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("num_classes", [2, 4, 5, 6, 11, 100])
def test_against_numpy(num_classes: int) -> None:
    rng = np.random.default_rng(num_classes)
    logits = rng.normal(0, 2, (997, num_classes)).astype(np.float32)
    labels = np.where(rng.random(997) < 0.5, logits.argmax(1), rng.integers(0, num_classes, 997))
    teacher = (logits + rng.normal(0, 1, logits.shape)).astype(np.float32)
    got = measure_fidelity(logits, labels, teacher)
    assert got.accuracy_top1 == np.mean(logits.argmax(1) == labels)  # exactly
    assert got.accuracy_top5 == _accuracy_top_k(logits, labels, 5)
    assert got.macro_f1 == pytest.approx(_macro_f1(logits.argmax(1), labels, num_classes), abs=1e-6)
    assert got.ece == pytest.approx(_ece(logits.astype(np.float64), labels), abs=1e-5)
    assert got.teacher_agreement == np.mean(logits.argmax(1) == teacher.argmax(1))


def test_classes_that_never_occur_do_not_lower_macro_f1() -> None:
    labels = np.array([0, 1, 1])
    logits = np.eye(50, dtype=np.float32)[[0, 1, 1]]
    assert measure_fidelity(logits, labels, logits).macro_f1 == 1.0


def test_logits_between_zero_and_one_are_not_taken_for_probabilities() -> None:
    logits = np.tile(np.array([[1.0, 0.0]], np.float32), (10, 1))
    fidelity = measure_fidelity(logits, np.zeros(10, np.int64), logits)
    assert fidelity.ece == pytest.approx(1 - np.e / (1 + np.e), abs=1e-6)


@pytest.mark.parametrize(("n", "labels", "teacher"), [(0, 0, 0), (3, 2, 3), (3, 3, 2)])
def test_shapes_that_do_not_belong_together(n: int, labels: int, teacher: int) -> None:
    with pytest.raises(ValueError, match="logits"):
        measure_fidelity(np.zeros((n, 4), np.float32), np.zeros(labels, np.int64), np.zeros((teacher, 4), np.float32))


def _accuracy_top_k(logits: NDArray[np.float32], labels: NDArray[np.int64], k: int) -> float:
    best = np.argsort(-logits, axis=1)[:, :k]
    return float(np.mean((best == labels[:, None]).any(axis=1)))


def _macro_f1(predictions: NDArray[np.int64], labels: NDArray[np.int64], num_classes: int) -> float:
    scores = []
    for c in range(num_classes):
        hits = np.sum((predictions == c) & (labels == c))
        either = np.sum(predictions == c) + np.sum(labels == c)
        if either:
            scores.append(2 * hits / either)
    return float(np.mean(scores))


def _ece(logits: Array, labels: NDArray[np.int64]) -> float:
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = exponentials / exponentials.sum(1, keepdims=True)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = [
        abs(right[bins == b].mean() - confidence[bins == b].mean()) * (bins == b).sum()
        for b in range(CALIBRATION_BINS)
        if (bins == b).any()
    ]
    return float(sum(gaps) / len(labels))
