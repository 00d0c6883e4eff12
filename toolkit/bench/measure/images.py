"""The test images of a benchmark. N images, C classes."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from toolkit.bench.schema import ReportDataset
from toolkit.data.dataset import Dataset, spread
from toolkit.data.pixels import Pixels
from toolkit.modeldir import Role


@dataclass(frozen=True)
class BenchImages:
    """The images at `chosen` (N,) of a data set's test split; `pixels` are those of the whole split, decoded.

    `for_teacher` are the same at the teacher's own size; None if that is the student's. `training` are some of the
    training images, for what the teacher knows there.
    """

    dataset: Dataset
    pixels: Pixels
    chosen: NDArray[np.integer]
    for_teacher: Pixels | None = None
    training: "TrainingSample | None" = None

    @classmethod
    def choose(cls, dataset: Dataset, pixels: Pixels, wanted: int, for_teacher: Pixels | None = None) -> Self:
        """`wanted` images (0: all), spread over the split."""
        return cls(dataset, pixels, choose_images(len(pixels), wanted), for_teacher)

    def seen_by(self, role: Role) -> Pixels:
        """The pixels of the whole split, as a role sees them."""
        return self.for_teacher if role == "teacher" and self.for_teacher is not None else self.pixels

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def labels(self) -> NDArray[np.integer]:
        """(N,)"""
        labels: NDArray[np.integer] = self.pixels.labels[self.chosen]
        return labels

    def describe(self) -> ReportDataset:
        return ReportDataset(name=self.dataset.name, split="test", images=len(self), sha256=self.dataset.sha256)


@dataclass(frozen=True)
class TrainingSample:
    """Some training images, decoded as the student sees them, and as the teacher does if that differs.

    `out_of_fold`, float32 (N, C), are the answers of the teachers of folds that have not seen them; None without folds.
    """

    pixels: Pixels
    for_teacher: Pixels | None = None
    out_of_fold: NDArray[np.float32] | None = None

    def seen_by(self, role: Role) -> Pixels:
        return self.for_teacher if role == "teacher" and self.for_teacher is not None else self.pixels


def choose_images(available: int, wanted: int) -> NDArray[np.int64]:
    """Indices of `wanted` images (0: all) spread evenly over the split, so that sorted classes all take part."""
    return spread(available, wanted or available)
