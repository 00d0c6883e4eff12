"""Teachers that answer images they have not seen: K of them, each trained without one part of the training images.

A network that has memorised its training images says there hardly more than their labels. So each image is taught by
the teacher whose training left it out (cross-fitting; Dao et al. 2021, "Knowledge Distillation as Semiparametric
Inference", ICLR). Other images are answered by all K together. N images, K folds, C classes.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from toolkit import console
from toolkit.data.pixels import Pixels
from toolkit.data.views import Indices
from toolkit.distill.evaluation import compute_logits
from toolkit.distill.job import TrainingData
from toolkit.distill.objective import NetworkOutput
from toolkit.distill.teachers import Teacher
from toolkit.errors import DataError
from toolkit.networks.classifier import Classifier
from toolkit.networks.small_maps import place
from toolkit.networks.weights import ModelInfo

FEWEST_LEFT = 1
"""images of each class that every teacher has to learn from"""


def draw_folds(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """The fold, int64 (N,) in 0..K−1, of each training image: of each class nearly the same number in every fold.

    `labels` is int64 (N,). The same every time. Raises DataError if a class has so few images that a teacher would see
    none of them, and if there are fewer images than folds.
    """
    if len(labels) < count:
        raise DataError(
            f"teacher.folds = {count} is more than there are training images ({len(labels)})",
            "use fewer folds, such as 5",
        )
    folds = np.empty(len(labels), dtype=np.int64)
    draw, start = np.random.default_rng([seed, count, 2]), 0
    for label in np.unique(labels):
        members = draw.permutation(np.flatnonzero(labels == label))
        if len(members) <= FEWEST_LEFT:
            raise DataError(
                f"a class has {console.count(len(members), 'training image')}, and teacher.folds = {count} leaves some"
                " out of each training",
                "use teacher.folds=0, or add images of that class",
            )
        folds[members] = (start + np.arange(len(members))) % count
        start += len(members)  # so that folds are equally large too
    return folds


def without_fold(data: TrainingData, folds: np.ndarray, fold: int) -> TrainingData:
    """The data with the training images of all other folds; validation images stay."""
    kept = np.flatnonzero(folds != fold)
    inner = None if data.for_teacher is None else without_fold(data.for_teacher, folds, fold)
    return replace(data, train=data.train.subset(kept), for_teacher=inner)


def folds_of(info: ModelInfo, pixels: Pixels) -> np.ndarray | None:
    """The folds, int64 (N,), of the training images that a teacher learned; None if it was not trained in folds."""
    count = info.extra.get("folds")
    return draw_folds(pixels.labels, count, info.recipe["data"]["split_seed"]) if count else None


def answer_out_of_fold(members: Sequence[Classifier], folds: np.ndarray, pixels: Pixels, device: str) -> np.ndarray:
    """Logits, float32 (N, C), of the training images in their evaluation view, each by the member that has not seen it.

    `folds` is int64 (N,).
    """
    parts = [np.flatnonzero(folds == fold) for fold in range(len(members))]
    answers = []
    for member, held_out in zip(members, parts, strict=True):
        place(member, device)
        answers.append(compute_logits(member, pixels.subset(held_out), "fp32", device).cpu().numpy())
    logits = np.empty((len(pixels), answers[0].shape[1]), np.float32)
    logits[np.concatenate(parts)] = np.concatenate(answers)
    return logits


class OutOfFoldTeacher:
    """Each training image is answered by the one of `members` that has not seen it, others by the `whole` of them."""

    def __init__(self, members: Sequence[Teacher], folds: np.ndarray, whole: Teacher) -> None:
        self._members, self._folds, self._whole = members, folds, whole

    @property
    def is_capturable(self) -> bool:
        return False

    def show(self, view: int) -> None:
        for member in self._members:
            member.show(view)

    def expect(self, coming: Sequence[Indices], view: int) -> None:
        """Does nothing: the parts of each member are not known before."""

    def answer(self, indices: Indices, view: int, student_images: Tensor) -> NetworkOutput:
        chosen = indices.cpu().numpy() if isinstance(indices, Tensor) else np.asarray(indices)
        folds = self._folds[chosen]
        logits: Tensor | None = None
        for fold in np.unique(folds).tolist():
            places = np.flatnonzero(folds == fold)
            images = _rows(student_images, places) if len(student_images) == len(chosen) else student_images
            own: Indices = _rows(indices, places) if isinstance(indices, Tensor) else chosen[places]
            part = self._members[fold].answer(own, view, images).logits
            if logits is None:
                logits = part.new_empty(len(chosen), part.shape[1])
            logits[torch.from_numpy(places).to(part.device)] = part
        assert logits is not None
        return NetworkOutput(logits)

    def valid_logits(self) -> Tensor:
        return self._whole.valid_logits()


def _rows(values: Tensor, places: np.ndarray) -> Tensor:
    return values[torch.from_numpy(places).to(values.device)]
