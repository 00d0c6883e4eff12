"""Batches of training views with their targets: the same for the student, the teacher and the store of its logits.

B images of a batch, N of the split, C classes, R px side of the rendered view.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from toolkit.data.device_views import DeviceViews
from toolkit.data.mixing import MixDraw, draw_mix, mix_targets, mix_views
from toolkit.data.pixels import Pixels
from toolkit.data.resident import ResidentPixels
from toolkit.data.view_draws import draw_views
from toolkit.data.views import Indices, render_views
from toolkit.settings import DataRecipe, Mix

Items = TypeVar("Items", bound=np.ndarray | Tensor)


def batches(order: Items, batch_size: int, least: int) -> Iterator[Items]:
    """Consecutive batches; a last batch of fewer than `least` images joins the one before.

    Batch statistics need two images, and every process needs its share of each batch.
    """
    starts = list(range(0, len(order), batch_size))
    if len(starts) > 1 and len(order) - starts[-1] < least:
        starts.pop()
    for start, end in itertools.pairwise((*starts, len(order))):
        yield cast(Items, order[start:end])


class TrainingViews:
    """View number v of any image, rendered at any size, on one device; fixed by (seed, image, v).

    `mix` says whether two images share a view. On a GPU `on_device` makes the views; this class makes them on the CPU.
    """

    def __init__(self, pixels: Pixels, data: DataRecipe, num_classes: int, *, seed: int, mix: Mix, device: str) -> None:
        self.pixels = pixels
        self.data = data
        self.num_classes = num_classes
        self.seed = seed
        self.mix = mix
        self.device = device
        self._drawn_mix: tuple[int, MixDraw] | None = None
        self.on_device: DeviceViews | None = None
        if device != "cpu":
            self.on_device = DeviceViews(self, ResidentPixels.where_it_fits(pixels, device))

    def __len__(self) -> int:
        return len(self.pixels)

    def render(self, indices: Indices, view: int, side: int | None = None) -> Tensor:
        """float32 (B, 3, R, R) in 0..1, channels last in memory; R is `side` px, data.image_size by default."""
        if self.on_device is not None:
            return self.on_device.render(indices, view, side or self.data.image_size)
        indices = np.asarray(indices)
        views = self._render_one(indices, view, side)
        if not any(self.mix):
            return views
        mix = self._draw_mix(view)
        weights = torch.from_numpy(mix.weights[indices])
        boxes = None if mix.boxes is None else torch.from_numpy(mix.boxes[indices])
        return mix_views(views, self._render_one(mix.partners[indices], view, side), weights, boxes)

    def labels(self, indices: Indices) -> Tensor:
        """int64 (B,), the images' own labels."""
        if self.on_device is not None:
            return self.on_device.labels(indices)
        return torch.from_numpy(self.pixels.labels[np.asarray(indices)])

    def targets(self, indices: Indices, view: int) -> Tensor:
        """The targets of the view: int64 (B,), or with a mix float32 (B, C) that sum to 1."""
        if self.on_device is not None:
            return self.on_device.targets(indices, view)
        indices = np.asarray(indices)
        labels = self.labels(indices)
        if not any(self.mix):
            return labels
        mix = self._draw_mix(view)
        weights = torch.from_numpy(mix.weights[indices])
        return mix_targets(labels, self.labels(mix.partners[indices]), weights, self.num_classes)

    @property
    def is_resident(self) -> bool:
        """Whether the pixels are in a GPU's memory."""
        return self.on_device is not None and self.on_device.resident is not None

    def upload(self, indices: Indices) -> Indices:
        """`indices` on the device that has the pixels, for a step."""
        return self.on_device.upload(indices) if self.on_device is not None and self.is_resident else indices

    def show(self, view: int) -> None:
        """Send the draws of view `view` to the GPU, before a captured step needs them."""
        if self.on_device is not None:
            self.on_device.show(view)

    def expect(self, batches: Sequence[Indices], view: int) -> None:
        """View `view` of these batches comes next: start the work for which a GPU would wait."""
        if self.on_device is not None:
            self.on_device.expect(batches, view)

    def _render_one(self, indices: np.ndarray, view: int, side: int | None) -> Tensor:
        sizes = self.pixels.sizes[indices]
        draw = draw_views(self.data, sizes, indices, self.seed, view)
        return render_views([self.pixels.whole(index) for index in indices], sizes, draw, self.data, side)

    def _draw_mix(self, view: int) -> MixDraw:
        if self._drawn_mix is None or self._drawn_mix[0] != view:
            self._drawn_mix = view, draw_mix(self.mix, len(self.pixels), self.seed, view)
        return self._drawn_mix[1]
