"""Cross-entropy with labels whose classes are of unequal size, and in batches of which only a part has labels.

B images of a batch, L of them labelled; n images of a part of it, the first l of them labelled; C classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from toolkit.distill.losses import at_least_float32, cross_entropy
from toolkit.settings import StageRecipe


@dataclass(frozen=True)
class Batch:
    """The batch that a part belongs to: B = `size`, L = `labelled`; `labels()` is int64 (L,), of all its processes."""

    size: int
    labelled: int
    labels: Callable[[], Tensor]


@dataclass(frozen=True)
class ClassBalance:
    """What cross-entropy does about the classes' sizes; nothing if both are None.

    `weights`, float32 (C,): the weight of a label of each class. `shift`, float32 (C,): added to the logits.
    """

    weights: Tensor | None = None
    shift: Tensor | None = None

    @classmethod
    def of(cls, section: StageRecipe, labels: np.ndarray, num_classes: int, device: str) -> Self:
        """By the settings of `section`, for training images with these `labels`, int64 (N,); tensors on `device`.

        A class without a training image counts as if it had one.
        """
        counts = torch.from_numpy(np.bincount(labels, minlength=num_classes)).clamp_min(1).double()
        weights = balanced_weights(counts) if section.class_weights == "balanced" else None
        shift = section.logit_adjustment * log_priors(counts) if section.logit_adjustment else None
        return cls(*(None if values is None else values.float().to(device) for values in (weights, shift)))

    def cross_entropy(self, logits: Tensor, target: Tensor, batch: Batch, *, label_smoothing: float) -> Tensor:
        """A part's share of the batch's cross-entropy, times B/n: the mean over parts, weighted by n, is the batch's.

        `logits` (n, C); `target` int64 (l,), or probabilities (l, C). The batch's is the mean over its L labelled
        images, or with weights torch's CrossEntropyLoss(weight=): the sum of the weighted terms over the sum of the
        labels' weights. (For probabilities torch divides by L.)
        """
        total = len(logits)
        if not len(target):
            return logits.sum() * 0
        logits = at_least_float32(logits[: len(target)])
        if self.shift is not None:
            logits = logits + self.shift
        if self.weights is None:
            mean = cross_entropy(logits, target, label_smoothing=label_smoothing)
            return mean * (len(target) * batch.size / (total * batch.labelled))
        soft = target.is_floating_point()
        target = target.to(logits.dtype) if soft else target
        weighted = F.cross_entropy(
            logits, target, weight=self.weights, label_smoothing=label_smoothing, reduction="sum"
        )
        return weighted * (batch.size / total) / (batch.labelled if soft else self.weights[batch.labels()].sum())


def balanced_weights(counts: Tensor) -> Tensor:
    """n/(C·n_c) for classes of `counts` n_c images, n in all: scikit-learn's class_weight="balanced"."""
    return counts.sum() / (len(counts) * counts)


def log_priors(counts: Tensor) -> Tensor:
    """log π_c, the share of class c of all images.

    Menon et al. 2021, "Long-tail learning via logit adjustment" (arXiv:2007.07314), equation 10: cross-entropy of the
    logits + τ·log π in training, and the plain logits afterwards.
    """
    return (counts / counts.sum()).log()
