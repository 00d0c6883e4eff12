"""What training minimises, from the recipe: labels alone, or labels and a teacher. N images, C classes."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from toolkit.distill.features import feature_term
from toolkit.distill.losses import cross_entropy, dist_term, dkd_term, hard_term, kd_term, standardize_logits
from toolkit.recipe import DistillRecipe


@dataclass(frozen=True)
class NetworkOutput:
    """A network's logits (B, C), and its tapped feature maps, (B, D, H, W) each."""

    logits: Tensor
    features: tuple[Tensor, ...] = ()


FEATURE_WEIGHTS = {"fitnets": 1.0, "attention": 1000.0, "similarity": 3000.0}
"""Weights of the layers' terms: those the papers' authors used; for fitnets one, as its scale is the network's."""


class Objective(Protocol):
    """(student, target, teacher) → scalar, averaged over images. `target` is int64 (N,) or probabilities (N, C)."""

    def __call__(self, student: NetworkOutput, target: Tensor, teacher: NetworkOutput | None) -> Tensor: ...


def learn_from_labels(label_smoothing: float) -> Objective:
    """Cross-entropy alone: teacher and control."""

    def objective(student: NetworkOutput, target: Tensor, teacher: NetworkOutput | None) -> Tensor:
        return cross_entropy(student.logits, target, label_smoothing=label_smoothing)

    return objective


def learn_from_teacher(section: DistillRecipe) -> Objective:
    """α · the method's term of logits + (1−α) · cross-entropy + feature_weight · the method's term of layers.

    A method of layers alone leaves α out: its term is added to cross-entropy, as in its paper.
    """
    alpha = section.alpha if section.logit_method else 0.0
    feature_method = section.feature_method
    weight = (
        FEATURE_WEIGHTS.get(feature_method or "", 0.0) if section.feature_weight is None else section.feature_weight
    )

    def objective(student: NetworkOutput, target: Tensor, teacher: NetworkOutput | None) -> Tensor:
        assert teacher is not None
        loss = (1 - alpha) * cross_entropy(student.logits, target, label_smoothing=section.label_smoothing)
        if alpha > 0:
            loss = loss + alpha * _logits_term(section, student.logits, target, teacher.logits)
        if feature_method and student.features:  # validation looks at logits alone
            loss = loss + weight * feature_term(feature_method, student.features, teacher.features)
        return loss

    return objective


def _logits_term(section: DistillRecipe, student_logits: Tensor, target: Tensor, teacher_logits: Tensor) -> Tensor:
    if section.standardize:
        student_logits, teacher_logits = standardize_logits(student_logits), standardize_logits(teacher_logits)
    match section.logit_method:
        case "kd":
            return kd_term(student_logits, teacher_logits, temperature=section.temperature)
        case "dkd":
            return dkd_term(
                student_logits,
                teacher_logits,
                target,
                temperature=section.temperature,
                target_weight=section.dkd_target_weight,
                other_weight=section.dkd_other_weight,
            )
        case "dist":
            return dist_term(
                student_logits,
                teacher_logits,
                temperature=section.temperature,
                inter_weight=section.dist_inter_weight,
                intra_weight=section.dist_intra_weight,
            )
        case "hard":
            return hard_term(student_logits, teacher_logits)
        case None:
            raise AssertionError("a method of layers alone has no term of logits")
