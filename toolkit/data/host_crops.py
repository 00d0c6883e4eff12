"""Crops of images for which a GPU has no room: threads cut them from the host's memory, one batch ahead.

B images of a batch, S px the side of what is cut. numpy copies outside Python's lock, so that threads cut side by side.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from toolkit.data.pixels import Pixels
from toolkit.data.preprocess import crop_start
from toolkit.data.view_draws import draw_views
from toolkit.data.views import cut_crops, cut_side, draw_places
from toolkit.settings import DataRecipe

Key = tuple[int, bytes]
"""The number of a view, and the bytes of its images' indices."""


class HostCrops(ABC):
    """uint8 crops of S px, cut by threads for the batches of `expect`; with `pinned`, a GPU fetches them by itself."""

    def __init__(self, side: int, *, pinned: bool) -> None:
        self._side, self._pinned = side, pinned
        self._workers = torch.get_num_threads()  # this process's share of the cores
        self._pool = ThreadPoolExecutor(self._workers)
        self._expected: dict[Key, tuple[Tensor, list[Future[None]]]] = {}

    def expect(self, batches: Sequence[np.ndarray], view: int) -> None:
        """Start with these batches, each int64 (B,), in this order; forget all others."""
        before, self._expected = self._expected, {}
        for indices in batches:
            key = view, indices.tobytes()
            self._expected[key] = before[key] if key in before else self._begin(indices, view)

    def take(self, indices: np.ndarray, view: int) -> Tensor:
        """uint8 (B, S, S, 3), after waiting for them if necessary; raises any exception of the threads."""
        crops, parts = self._expected.get((view, indices.tobytes())) or self._begin(indices, view)
        for part in parts:
            part.result()
        return crops

    def _begin(self, indices: np.ndarray, view: int) -> tuple[Tensor, list[Future[None]]]:
        crops = torch.empty(len(indices), self._side, self._side, 3, dtype=torch.uint8, pin_memory=self._pinned)
        place, length = crops.numpy(), max(1, -(-len(indices) // self._workers))
        parts = [slice(start, start + length) for start in range(0, len(indices), length)]
        return crops, [self._pool.submit(self._cut, indices[part], view, place[part]) for part in parts]

    @abstractmethod
    def _cut(self, indices: np.ndarray, view: int, crops: np.ndarray) -> None:
        """Fill `crops`, uint8 (B, S, S, 3); in a thread."""


class ViewCrops(HostCrops):
    """Crops of the views of draw_views, not yet flipped."""

    def __init__(self, pixels: Pixels, data: DataRecipe, seed: int, *, pinned: bool) -> None:
        super().__init__(cut_side(data), pinned=pinned)
        self._pixels, self._data, self._seed = pixels, data, seed

    def _cut(self, indices: np.ndarray, view: int, crops: np.ndarray) -> None:
        sizes = self._pixels.sizes[indices]
        draw = draw_views(self._data, sizes, indices, self._seed, view)
        rows, columns = draw_places(sizes, draw, self._data, flip=None)
        cut_crops([self._pixels.whole(index) for index in indices], rows, columns, crops)


class CentreCrops(HostCrops):
    """The crops of Pixels.centre, for evaluation; every view is the same."""

    def __init__(self, pixels: Pixels, *, pinned: bool) -> None:
        super().__init__(pixels.preprocess.image_size, pinned=pinned)
        self._pixels = pixels

    def _cut(self, indices: np.ndarray, view: int, crops: np.ndarray) -> None:
        sizes = self._pixels.sizes[indices]
        places = crop_start(sizes, self._side)[:, :, None] + np.arange(self._side)
        inside = (places >= 0) & (places < sizes[:, :, None])
        rows, columns = np.where(inside, places, -1).transpose(1, 0, 2)
        cut_crops([self._pixels.whole(index) for index in indices], rows, columns, crops)
