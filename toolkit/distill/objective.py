"""The loss that training minimises, from the recipe: labels alone, or labels and a teacher. N images, C classes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from toolkit.distill.class_balance import Batch, ClassBalance
from toolkit.distill.features import attention_term, fitnets_term, match_spatial, similarity_term
from toolkit.distill.losses import (
    at_least_float32,
    cross_entropy,
    dist_term,
    dkd_term,
    hard_term,
    kd_term,
    standardize_logits,
)
from toolkit.settings import DistillRecipe


@dataclass(frozen=True)
class NetworkOutput:
    """A network's logits (B, C), and its tapped feature maps, (B, D, H, W) each."""

    logits: Tensor
    features: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class LogitMethod:
    """A way to learn from the teacher's logits.

    `term` is called with both networks' logits (N, C), with the labels, int64 (N,), if it `needs_labels`, and with its
    `settings`: keyword of the term → key of [distill].
    """

    term: Callable[..., Tensor]
    settings: Mapping[str, str] = field(default_factory=dict)
    needs_labels: bool = False

    def __call__(
        self, section: DistillRecipe, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor
    ) -> Tensor:
        values = {keyword: getattr(section, key) for keyword, key in self.settings.items()}
        return self.term(student_logits, teacher_logits, *([labels] if self.needs_labels else []), **values)


@dataclass(frozen=True)
class FeatureMethod:
    """A way to learn from the teacher's layers.

    `term` is called with a pair of feature maps, of equal height and width if `same_size`. `weight` is the term's if
    the recipe names none: what the paper's authors used. If `projected`, layers bring the student's features to the
    teacher's width first, and are trained with it.
    """

    term: Callable[[Tensor, Tensor], Tensor]
    weight: float
    same_size: bool = True
    projected: bool = False

    def __call__(self, student_features: Sequence[Tensor], teacher_features: Sequence[Tensor]) -> Tensor:
        """The sum over the pairs of layers; RecipeError if the method cannot compare a pair."""
        pairs: Iterator[tuple[Tensor, Tensor]] = zip(student_features, teacher_features, strict=True)
        if self.same_size:
            pairs = (match_spatial(at_least_float32(student), at_least_float32(teacher)) for student, teacher in pairs)
        return torch.stack([self.term(student, teacher) for student, teacher in pairs]).sum()


LOGIT_METHODS = {
    "kd": LogitMethod(kd_term, {"temperature": "temperature"}),
    "dkd": LogitMethod(
        dkd_term,
        {
            "temperature": "temperature",
            "target_weight": "dkd_target_weight",
            "other_weight": "dkd_other_weight",
        },
        needs_labels=True,
    ),
    "dist": LogitMethod(
        dist_term,
        {
            "temperature": "temperature",
            "inter_weight": "dist_inter_weight",
            "intra_weight": "dist_intra_weight",
        },
    ),
    "hard": LogitMethod(hard_term),
}
FEATURE_METHODS = {
    "fitnets": FeatureMethod(fitnets_term, 1.0, projected=True),  # one, as its scale is the network's
    "attention": FeatureMethod(attention_term, 1000.0),
    "similarity": FeatureMethod(similarity_term, 3000.0, same_size=False),
}
METHODS: Mapping[str, LogitMethod | FeatureMethod] = {**LOGIT_METHODS, **FEATURE_METHODS}
"""Every way to learn from a teacher; a new one is a function, a line here and a name in toolkit/settings.py."""

UNBALANCED = ClassBalance()
"""Every label counts alike."""


class Objective(Protocol):
    """(student, target, teacher) → scalar, averaged over images. `target` is int64 (N,) or probabilities (N, C).

    In training `batch` is what the N images are a part of; the target may then be that of the first ones alone, which
    are labelled. Without it, as in validation, classes count alike and logits are as they are.
    """

    def __call__(
        self, student: NetworkOutput, target: Tensor, teacher: NetworkOutput | None, batch: Batch | None = None
    ) -> Tensor: ...


def learn_from_labels(label_smoothing: float, balance: ClassBalance = UNBALANCED) -> Objective:
    """Cross-entropy alone: teacher and control."""

    def objective(
        student: NetworkOutput, target: Tensor, teacher: NetworkOutput | None, batch: Batch | None = None
    ) -> Tensor:
        if batch is None:
            return cross_entropy(student.logits, target, label_smoothing=label_smoothing)
        return balance.cross_entropy(student.logits, target, batch, label_smoothing=label_smoothing)

    return objective


def learn_from_teacher(section: DistillRecipe, balance: ClassBalance = UNBALANCED) -> Objective:
    """α · the method's term of logits + (1−α) · cross-entropy + feature_weight · the method's term of layers.

    A method of layers alone leaves α out: its term is added to cross-entropy, as in its paper. Cross-entropy is of the
    labelled images, the teacher's terms are of all, and of plain logits.
    """
    of_labels = learn_from_labels(section.label_smoothing, balance)
    logit_method = LOGIT_METHODS[section.logit_method] if section.logit_method else None
    feature_method = FEATURE_METHODS[section.feature_method] if section.feature_method else None
    alpha = section.alpha if logit_method else 0.0

    def objective(
        student: NetworkOutput, target: Tensor, teacher: NetworkOutput | None, batch: Batch | None = None
    ) -> Tensor:
        assert teacher is not None
        loss = (1 - alpha) * of_labels(student, target, None, batch)
        if logit_method and alpha > 0:
            logits = student.logits, teacher.logits
            if section.standardize:
                logits = standardize_logits(student.logits), standardize_logits(teacher.logits)
            loss = loss + alpha * logit_method(section, *logits, target)
        if feature_method and student.features:  # validation looks at logits alone
            weight = feature_method.weight if section.feature_weight is None else section.feature_weight
            loss = loss + weight * feature_method(student.features, teacher.features)
        return loss

    return objective
