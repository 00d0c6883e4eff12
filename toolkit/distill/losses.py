"""Distillation losses: pure functions of logits. N images, C classes."""

from torch import Tensor
from torch.nn import functional as F


def kd_loss(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, temperature: float, alpha: float
) -> Tensor:
    """α·T²·KL(softmax(teacher/T) ‖ softmax(student/T)) + (1−α)·CE(student, labels), a scalar.

    Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network" (arXiv:1503.02531), section 2: T² keeps
    the soft term's gradient at one scale as T changes. KL is summed over classes, averaged over images (`batchmean`).
    Logits are (N, C), labels int64 (N,); temperature > 0, alpha in 0..1. Computed in float32 or wider.
    """
    student_logits, teacher_logits = _at_least_float32(student_logits), _at_least_float32(teacher_logits)
    soft = F.kl_div(
        F.log_softmax(student_logits / temperature, dim=1),
        F.log_softmax(teacher_logits / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    hard = F.cross_entropy(student_logits, labels)
    return alpha * temperature**2 * soft + (1 - alpha) * hard


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits if logits.dtype.itemsize >= 4 else logits.float()
