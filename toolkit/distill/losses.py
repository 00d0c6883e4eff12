"""Distillation losses: pure functions of logits. N images, C classes.

Student and teacher logits are (N, C) of any float type; everything is computed in float32 or wider and every loss is a
scalar. Temperatures T are > 0, weights ≥ 0. Nothing is detached: pass a teacher's logits without gradient.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

CONSTANT = 1e-6
"""A vector whose spread is less than this share of its length counts as constant: the rest is float32's rounding."""


def cross_entropy(student_logits: Tensor, target: Tensor, *, label_smoothing: float) -> Tensor:
    """−Σ_c q_c·log softmax(student)_c, averaged over images, with q = (1−ε)·target + ε/C and ε = `label_smoothing`.

    Target is int64 (N,), or probabilities (N, C) as mixup makes them. Label smoothing (ε in 0..1): Szegedy et al. 2016,
    "Rethinking the Inception Architecture for Computer Vision" (arXiv:1512.00567), section 7.
    """
    student_logits = at_least_float32(student_logits)
    if target.is_floating_point():
        target = target.to(student_logits.dtype)
    return F.cross_entropy(student_logits, target, label_smoothing=label_smoothing)


def kd_term(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """T²·KL(softmax(teacher/T) ‖ softmax(student/T)), summed over classes, averaged over images.

    Hinton, Vinyals, Dean 2015 (arXiv:1503.02531), section 2: T² keeps the gradient at one scale as T changes. Range
    0 to ∞; 0 if student equals teacher up to a constant per image.
    """
    student_logits, teacher_logits = at_least_float32(student_logits), at_least_float32(teacher_logits)
    divergence = _kl(
        F.log_softmax(teacher_logits / temperature, dim=1), F.log_softmax(student_logits / temperature, dim=1)
    )
    return temperature**2 * divergence


def dkd_term(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    temperature: float,
    target_weight: float,
    other_weight: float,
) -> Tensor:
    """T²·(target_weight·TCKD + other_weight·NCKD), averaged over images.

    Zhao et al. 2022, "Decoupled Knowledge Distillation" (arXiv:2203.08679), equation 7 with α and β as the two weights.
    TCKD is the KL divergence of (p_t, 1−p_t), the label's probability and its complement; NCKD is that of the softmax
    over the C−1 other classes. KL = TCKD + (1−p_t)·NCKD with the teacher's p_t, so `kd_term` is this loss with
    target_weight 1 and other_weight 1−p_t. labels int64 (N,), C ≥ 2. Range 0 to ∞; 0 if student equals teacher.
    """
    student = _split_target(at_least_float32(student_logits) / temperature, labels)
    teacher = _split_target(at_least_float32(teacher_logits) / temperature, labels)
    tckd, nckd = _kl(teacher[0], student[0]), _kl(teacher[1], student[1])
    return temperature**2 * (target_weight * tckd + other_weight * nckd)


def dist_term(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float, inter_weight: float, intra_weight: float
) -> Tensor:
    """T²·(inter_weight·mean(1 − ρ of rows) + intra_weight·mean(1 − ρ of columns)) of the softened probabilities.

    Huang et al. 2022, "Knowledge Distillation from A Stronger Teacher" (arXiv:2205.10536), equations 8 to 10 without
    the classification loss. ρ is Pearson's correlation of student and teacher: over the classes of an image, and over
    the images of a class. T² is not in the paper but in its authors' code. Range 0 to 2·T²·(inter_weight +
    intra_weight). A constant row or column, as every column is if N is 1, correlates with nothing: ρ and its
    gradient are 0.
    """
    student = F.softmax(at_least_float32(student_logits) / temperature, dim=1)
    teacher = F.softmax(at_least_float32(teacher_logits) / temperature, dim=1)
    inter = 1 - _correlate(student, teacher, dim=1).mean()
    intra = 1 - _correlate(student, teacher, dim=0).mean()
    return temperature**2 * (inter_weight * inter + intra_weight * intra)


def hard_term(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """CE(student, argmax teacher), averaged over images.

    Touvron et al. 2021, "Training data-efficient image transformers & distillation through attention"
    (arXiv:2012.12877), equation 3: its half that follows the teacher's decision, without the factor ½.
    """
    return cross_entropy(student_logits, teacher_logits.argmax(dim=1), label_smoothing=0.0)


def standardize_logits(logits: Tensor) -> Tensor:
    """Each image's logits (N, C) less their mean, over their standard deviation: a switch before any term.

    Sun et al. 2024, "Logit Standardization in Knowledge Distillation" (arXiv:2403.01427), algorithm 1, with
    the standard deviation of the population (1/C); the authors' code takes that of the sample. The algorithm divides
    by the temperature too, which each term does here. Rows that are constant up to rounding become 0, with gradient 0.
    """
    logits = at_least_float32(logits)
    return math.sqrt(logits.shape[1]) * _centred_units(logits, dim=1)


def at_least_float32(values: Tensor) -> Tensor:
    return values if values.dtype.itemsize >= 4 else values.float()


def unit_vectors(vectors: Tensor, dim: int, floor: Tensor | float = 1e-12) -> Tensor:
    """Vectors along `dim` at Euclidean length 1; if the length is `floor` or less, 0 with gradient 0."""
    length: Tensor = torch.linalg.vector_norm(vectors, dim=dim, keepdim=True)
    return vectors / length.masked_fill(length <= floor, torch.inf)


def _centred_units(vectors: Tensor, dim: int) -> Tensor:
    size = torch.linalg.vector_norm(vectors, dim=dim, keepdim=True)
    return unit_vectors(vectors - vectors.mean(dim=dim, keepdim=True), dim, floor=CONSTANT * size)


def _correlate(first: Tensor, second: Tensor, dim: int) -> Tensor:
    """Pearson's correlation along `dim`, in −1..1."""
    return (_centred_units(first, dim) * _centred_units(second, dim)).sum(dim=dim)


def _kl(log_teacher: Tensor, log_student: Tensor) -> Tensor:
    """KL(teacher ‖ student) of log-probabilities, summed over dimension 1, averaged over images."""
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def _split_target(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities (N, 2) of the label and of all else together, and (N, C−1) of the others among themselves."""
    columns = torch.arange(logits.shape[1] - 1, device=logits.device)
    others = logits.gather(1, columns + (columns >= labels.unsqueeze(1)))
    target = logits.gather(1, labels.unsqueeze(1))
    either = torch.cat((target, others.logsumexp(dim=1, keepdim=True)), dim=1)
    return F.log_softmax(either, dim=1), F.log_softmax(others, dim=1)
