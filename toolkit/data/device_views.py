"""Training views on a GPU: all that a step needs lies there, and a step sends it nothing.

What lies there: the pixels (resident.py), the labels, and the draws of one view of every image, which go up once an
epoch. Images are chosen by an index tensor on the device. What comes out is what TrainingViews renders on the CPU.
B images of a batch, N of the split, C classes, R px side of the rendered view.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from toolkit.data.resident import ResidentPixels
from toolkit.data.views import (
    crop_places,
    draw_mix,
    draw_views,
    finish_views,
    is_sampled,
    mix_targets,
    mix_views,
    view_axes,
)

if TYPE_CHECKING:
    from toolkit.data.batches import TrainingViews


class DeviceViews:
    """The views of `views`, made from `resident`, its pixels on the device. Every index is int64 (B,) there."""

    def __init__(self, views: "TrainingViews", resident: ResidentPixels) -> None:
        pixels = views.pixels
        self._data, self._num_classes, self._seed, self._mixup = views.data, views.num_classes, views.seed, views.mixup
        self._sizes = np.stack((pixels.heights, pixels.widths), axis=1)
        self._resident = resident
        self._device = resident.sizes.device
        self._labels = torch.from_numpy(pixels.labels).to(self._device)
        self._drawn: dict[str, Tensor] = {}
        self._view = -1

    def show(self, view: int) -> None:
        """Have the draws of view number `view` on the device: in place, so that a captured step finds them there."""
        if view == self._view:
            return
        images = np.arange(len(self._sizes))
        draw = draw_views(self._data, self._sizes, images, self._seed, view)
        drawn = {name: torch.from_numpy(values) for name, values in vars(draw).items() if name != "angle"}
        drawn["axes"] = view_axes(draw)
        if self._mixup:
            mix = draw_mix(self._mixup, len(images), self._seed, view)
            drawn |= {name: torch.from_numpy(values) for name, values in vars(mix).items()}
        for name, values in drawn.items():
            if name not in self._drawn:
                self._drawn[name] = torch.empty_like(values, device=self._device)
            self._drawn[name].copy_(values)
        self._view = view

    def render(self, chosen: Tensor, view: int, side: int) -> Tensor:
        """float32 (B, 3, R, R) in 0..1, channels last in memory; R is `side` px."""
        self.show(view)
        views = self._render_one(chosen, side)
        if not self._mixup:
            return views
        partners, weights = self._drawn["partners"][chosen], self._drawn["weights"][chosen]
        return mix_views(views, self._render_one(partners, side), weights)

    def labels(self, chosen: Tensor) -> Tensor:
        """int64 (B,), the images' own labels."""
        return self._labels[chosen]

    def targets(self, chosen: Tensor, view: int) -> Tensor:
        """int64 (B,), or with mixup float32 (B, C) that sum to 1."""
        labels = self.labels(chosen)
        if not self._mixup:
            return labels
        self.show(view)
        partners, weights = self._drawn["partners"][chosen], self._drawn["weights"][chosen]
        return mix_targets(labels, self.labels(partners), weights, self._num_classes)

    def _render_one(self, chosen: Tensor, side: int) -> Tensor:
        top, left, flip, axes = (self._drawn[name][chosen] for name in ("top", "left", "flip", "axes"))
        sampled = is_sampled(self._data, side)
        places = crop_places(self._resident.sizes[chosen], top, left, None if sampled else flip, self._data)
        crops = self._resident.crops(chosen, *places, black=self._data.padding_mode == "constant")
        return finish_views(crops, axes if sampled else None, side)
