"""Quality of predictions: accuracy, calibration, and agreement with the teacher.

N images, C classes.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torchmetrics.functional.classification import (
    multiclass_calibration_error,
    multiclass_f1_score,
    multiclass_stat_scores,
)

from toolkit.bench.schema import Fidelity

CALIBRATION_BINS = 15
"""Equal-width bins of confidence, as in Guo et al. 2017, https://arxiv.org/abs/1706.04599."""


def measure_fidelity(
    logits: NDArray[np.floating], labels: NDArray[np.integer], teacher_logits: NDArray[np.floating] | None
) -> Fidelity:
    """Compare logits (N, C) with labels (N,) and, if there are any, the teacher's logits (N, C) on the same images.

    The ECE is equation 3 of Guo et al. 2017. Raises ValueError if the shapes do not fit or N is 0.
    """
    teacher = logits if teacher_logits is None else teacher_logits
    if logits.ndim != 2 or len(logits) == 0 or logits.shape != teacher.shape or labels.shape != logits.shape[:1]:
        raise ValueError(f"logits {logits.shape}, labels {labels.shape} and teacher_logits {teacher.shape}")
    num_classes = logits.shape[1]
    scores = torch.from_numpy(logits.astype(np.float64))
    target = torch.from_numpy(labels.astype(np.int64))
    f1 = multiclass_f1_score(scores, target, num_classes, average="macro")
    # Softmax here: torchmetrics takes scores that happen to lie in 0..1 for probabilities.
    ece = multiclass_calibration_error(scores.softmax(1), target, num_classes, n_bins=CALIBRATION_BINS, norm="l1")
    agreement = None if teacher_logits is None else float(np.mean(logits.argmax(1) == teacher_logits.argmax(1)))
    return Fidelity(
        accuracy_top1=_accuracy(scores, target, 1),
        accuracy_top5=_accuracy(scores, target, min(5, num_classes)),
        macro_f1=float(f1),
        ece=float(ece),
        teacher_agreement=agreement,
    )


def _accuracy(scores: torch.Tensor, target: torch.Tensor, k: int) -> float:
    """Share of images whose class is among the k best; from counts, so that it is exact and not rounded to float32."""
    if k == scores.shape[1]:
        return 1.0
    hits = multiclass_stat_scores(scores, target, scores.shape[1], average="micro", top_k=k)[0]
    return int(hits) / len(target)
