"""The test images of a benchmark. N images, C classes."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from toolkit.bench.schema import ReportDataset
from toolkit.data.dataset import Dataset, spread
from toolkit.data.pixels import Pixels


@dataclass(frozen=True)
class BenchImages:
    """The images at `chosen` (N,) of a data set's test split; `pixels` are those of the whole split, decoded."""

    dataset: Dataset
    pixels: Pixels
    chosen: NDArray[np.integer]

    @classmethod
    def choose(cls, dataset: Dataset, pixels: Pixels, wanted: int) -> Self:
        """`wanted` images (0: all), spread over the split."""
        return cls(dataset, pixels, choose_images(len(pixels), wanted))

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def labels(self) -> NDArray[np.integer]:
        """(N,)"""
        labels: NDArray[np.integer] = self.pixels.labels[self.chosen]
        return labels

    def describe(self) -> ReportDataset:
        return ReportDataset(name=self.dataset.name, split="test", images=len(self), sha256=self.dataset.sha256)


def choose_images(available: int, wanted: int) -> NDArray[np.int64]:
    """Indices of `wanted` images (0: all) spread evenly over the split, so that sorted classes all take part."""
    return spread(available, wanted or available)
