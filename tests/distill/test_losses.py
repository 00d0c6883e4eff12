"""The distillation loss against float64, hand-worked numbers and its identities."""

import math

import numpy as np
import pytest
import torch

from toolkit.distill.losses import kd_loss


def logits(seed: int, n: int = 8, c: int = 5) -> torch.Tensor:
    return torch.randn(n, c, generator=torch.Generator().manual_seed(seed)) * 3


LABELS = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2])


def numpy_reference(
    student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, t: float, alpha: float
) -> float:
    """α·T²·Σ p log(p/q) / N + (1−α)·CE in float64, written out."""
    s, q = student.double().numpy(), teacher.double().numpy()

    def log_softmax(x: np.ndarray) -> np.ndarray:
        x = x - x.max(1, keepdims=True)
        return x - np.log(np.exp(x).sum(1, keepdims=True))

    log_p, log_q = log_softmax(q / t), log_softmax(s / t)
    soft = (np.exp(log_p) * (log_p - log_q)).sum() / len(s)
    hard = -log_softmax(s)[np.arange(len(s)), labels.numpy()].mean()
    return float(alpha * t * t * soft + (1 - alpha) * hard)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9, 1.0])
def test_equals_the_float64_reference(temperature: float, alpha: float) -> None:
    student, teacher = logits(0), logits(1)
    got = kd_loss(student, teacher, LABELS, temperature=temperature, alpha=alpha)
    assert got.item() == pytest.approx(numpy_reference(student, teacher, LABELS, temperature, alpha), rel=1e-5)


def test_direction_is_teacher_to_student_by_a_hand_worked_case() -> None:
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3), 0.0]])
    kl = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)  # KL((3/4, 1/4) ‖ (1/2, 1/2))
    loss = kd_loss(student, teacher, torch.tensor([0]), temperature=1.0, alpha=1.0)
    assert loss.item() == pytest.approx(kl, rel=1e-6)


def test_no_soft_loss_where_student_equals_teacher() -> None:
    same = logits(2)
    assert kd_loss(same, same + 5.0, LABELS, temperature=3.0, alpha=1.0).item() == pytest.approx(0, abs=1e-6)


def test_alpha_zero_is_cross_entropy() -> None:
    student = logits(3)
    expected = torch.nn.functional.cross_entropy(student, LABELS)
    torch.testing.assert_close(kd_loss(student, logits(4), LABELS, temperature=20.0, alpha=0.0), expected)


def test_gradient_equals_the_closed_form() -> None:
    student, teacher = logits(5).double().requires_grad_(), logits(6).double()
    kd_loss(student, teacher, LABELS, temperature=4.0, alpha=0.7).backward()
    p, q = torch.softmax(teacher / 4, 1), torch.softmax(student.detach() / 4, 1)
    hard = torch.softmax(student.detach(), 1) - torch.nn.functional.one_hot(LABELS, 5)
    expected = (0.7 * 4 * (q - p) + 0.3 * hard) / len(LABELS)
    torch.testing.assert_close(student.grad, expected)
    assert torch.autograd.gradcheck(
        lambda s: kd_loss(s, teacher, LABELS, temperature=4.0, alpha=0.7), (student,), eps=1e-6, atol=1e-8
    )


def test_half_precision_logits_are_computed_in_float32() -> None:
    student, teacher = logits(7).bfloat16(), logits(8).bfloat16()
    loss = kd_loss(student, teacher, LABELS, temperature=4.0, alpha=0.5)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(numpy_reference(student.float(), teacher.float(), LABELS, 4.0, 0.5), rel=1e-5)
