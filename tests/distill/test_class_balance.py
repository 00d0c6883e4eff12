"""Unequal classes: against torch's own weight=, the paper's formula, and scikit-learn's definition of balanced."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from toolkit.distill.class_balance import Batch, ClassBalance
from toolkit.distill.losses import kd_term
from toolkit.distill.objective import NetworkOutput, learn_from_labels, learn_from_teacher
from toolkit.settings import DistillRecipe

LABELS = np.repeat([0, 1, 2], [60, 30, 10])
LOGITS = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).float()
TARGET = torch.tensor([0, 0, 1, 2, 0, 1, 0, 0])
SOFT = torch.eye(3)[TARGET] * 0.7 + torch.eye(3)[TARGET.flip(0)] * 0.3
BALANCED = torch.tensor([100 / (3 * 60), 100 / (3 * 30), 100 / (3 * 10)])
"""n/(C·n_c)"""


def balance_of(**settings: object) -> ClassBalance:
    return ClassBalance.of(DistillRecipe.model_validate(settings), LABELS, 3, "cpu")


def whole(target: Tensor = TARGET) -> Batch:
    return Batch(len(target), len(target), lambda: TARGET)


def test_by_default_nothing_is_done_about_the_classes() -> None:
    assert balance_of() == ClassBalance(None, None)


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    weights = balance_of(class_weights="balanced").weights
    assert weights is not None
    torch.testing.assert_close(weights, BALANCED)
    assert weights[LABELS].mean().item() == pytest.approx(1), "the loss keeps its scale"


def test_a_class_without_training_images_counts_as_if_it_had_one() -> None:
    section = DistillRecipe.model_validate({"class_weights": "balanced", "logit_adjustment": 1.0})
    made = ClassBalance.of(section, np.array([0, 0, 2, 2]), 3, "cpu")
    assert made.weights is not None
    assert made.shift is not None
    assert made.weights.isfinite().all()
    assert made.shift.isfinite().all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("target", [TARGET, SOFT], ids=["labels", "mixup"])
def test_the_weighted_loss_is_torch_s(target: Tensor, smoothing: float) -> None:
    objective = learn_from_labels(smoothing, balance_of(class_weights="balanced"))
    expected = torch.nn.CrossEntropyLoss(weight=BALANCED, label_smoothing=smoothing)(LOGITS, target)
    torch.testing.assert_close(objective(NetworkOutput(LOGITS), target, None, whole(target)), expected)


@pytest.mark.parametrize("tau", [1.0, 0.5])
def test_the_adjusted_loss_is_the_paper_s(tau: float) -> None:
    """Equation 10 of arXiv:2007.07314: log(1 + Σ_{y'≠y} (π_y'/π_y)^τ · e^(f_y' − f_y))."""
    priors = [0.6, 0.3, 0.1]
    losses = [
        np.log1p(sum((priors[c] / priors[y]) ** tau * np.exp(row[c] - row[y]) for c in range(3) if c != y))
        for row, y in zip(LOGITS.double().numpy(), TARGET.tolist(), strict=True)
    ]
    objective = learn_from_labels(0.0, balance_of(logit_adjustment=tau))
    assert objective(NetworkOutput(LOGITS), TARGET, None, whole()).item() == pytest.approx(np.mean(losses), rel=1e-6)


def test_validation_has_plain_logits_and_equal_classes() -> None:
    objective = learn_from_labels(0.0, balance_of(class_weights="balanced", logit_adjustment=1.0))
    assert torch.equal(objective(NetworkOutput(LOGITS), TARGET, None), functional.cross_entropy(LOGITS, TARGET))


def test_the_teacher_s_term_is_of_plain_logits() -> None:
    section = DistillRecipe.model_validate({"logit_adjustment": 1.0, "alpha": 0.25, "temperature": 2.0})
    balance = ClassBalance.of(section, LABELS, 3, "cpu")
    student, teacher = NetworkOutput(LOGITS), NetworkOutput(LOGITS.flip(0))
    labels = learn_from_labels(0.0, balance)(student, TARGET, None, whole())
    term = kd_term(student.logits, teacher.logits, temperature=2.0)
    got = learn_from_teacher(section, balance)(student, TARGET, teacher, whole())
    torch.testing.assert_close(got, 0.25 * term + 0.75 * labels)


@pytest.mark.parametrize("settings", [{}, {"class_weights": "balanced"}, {"logit_adjustment": 1.0}], ids=str)
@pytest.mark.parametrize("soft", [False, True])
def test_parts_of_a_batch_with_unlabelled_images_add_up_to_it(settings: dict[str, object], soft: bool) -> None:
    """Eight labelled images, whose loss torch takes alone, among seven without labels; the third part has no label."""
    others = torch.randn(7, 3, generator=torch.Generator().manual_seed(1))
    section = DistillRecipe.model_validate({**settings, "label_smoothing": 0.1, "alpha": 0.4})
    balance = ClassBalance.of(section, LABELS, 3, "cpu")
    objective, target = learn_from_teacher(section, balance), SOFT if soft else TARGET
    batch = Batch(15, 8, lambda: TARGET)
    total = torch.zeros(())
    for images, unlabelled in ((slice(0, 5), slice(0, 1)), (slice(5, 8), slice(1, 4)), (slice(8, 8), slice(4, 7))):
        logits = torch.cat([LOGITS[images], others[unlabelled]])
        loss = objective(NetworkOutput(logits), target[images], NetworkOutput(logits.flip(1)), batch)
        total = total + loss * len(logits) / 15
    shifted = LOGITS + (balance.shift if balance.shift is not None else 0)
    labels = torch.nn.CrossEntropyLoss(weight=balance.weights, label_smoothing=0.1)(shifted, target)
    every = torch.cat([LOGITS, others])
    expected = 0.6 * labels + 0.4 * kd_term(every, every.flip(1), temperature=section.temperature)
    torch.testing.assert_close(total, expected)
