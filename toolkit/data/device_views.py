"""Training views on a GPU. If the pixels lie there too, a step sends nothing over the bus.

The labels lie on the GPU, and the draws of one view of every image, which go up once per epoch. The pixels lie there
too (resident.py), or else crops come from the host (host_crops.py). The views equal those of TrainingViews on the CPU.
B images of a batch, N of the split, C classes, S px side of the crop, R px side of the rendered view.
"""

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from toolkit.data.alterations import alter
from toolkit.data.host_crops import ViewCrops
from toolkit.data.mixing import MixDraw, draw_mix, mix_targets, mix_views
from toolkit.data.resident import ResidentPixels, send
from toolkit.data.view_draws import draw_views
from toolkit.data.views import Indices, crop_places, finish_views, is_sampled, resample, resized_places

if TYPE_CHECKING:
    from toolkit.data.batches import TrainingViews


_OF_MIX = {field.name for field in fields(MixDraw)}
"""Names of the draws that concern two images."""


class DeviceViews:
    """The views of `views`, on its device; `resident` are its pixels there, None if there is no room."""

    def __init__(self, views: "TrainingViews", resident: ResidentPixels | None) -> None:
        pixels = views.pixels
        self._data, self._num_classes, self._seed, self._mix = views.data, views.num_classes, views.seed, views.mix
        self._device = views.device
        self._sizes = pixels.sizes
        self.resident = resident
        self._host = None
        if resident is None:
            self._host = ViewCrops(pixels, views.data, views.seed, pinned=self._device.startswith("cuda"))
        self._labels = torch.from_numpy(pixels.labels).to(self._device)
        self._drawn: dict[str, Tensor] = {}
        self._partners = np.empty(0, np.int64)
        self._view = -1

    def show(self, view: int) -> None:
        """Copy the draws of view number `view` to the device, in place, so that a captured step finds them there."""
        if view == self._view:
            return
        images = np.arange(len(self._sizes))
        drawn = draw_views(self._data, self._sizes, images, self._seed, view).tensors()
        if any(self._mix):
            mix = draw_mix(self._mix, len(images), self._seed, view)
            drawn |= {name: torch.from_numpy(values) for name, values in vars(mix).items() if values is not None}
            self._partners = mix.partners
        for name, values in drawn.items():
            if name not in self._drawn:
                self._drawn[name] = torch.empty_like(values, device=self._device)
            self._drawn[name].copy_(values)
        self._view = view

    def expect(self, batches: Sequence[Indices], view: int) -> None:
        """Start the host's work for `render` of these batches."""
        if self._host is None:
            return
        self.show(view)
        arrays = [np.asarray(indices) for indices in batches]
        both = [(indices, self._partners[indices]) if any(self._mix) else (indices,) for indices in arrays]
        self._host.expect([part for parts in both for part in parts], view)

    def render(self, indices: Indices, view: int, side: int) -> Tensor:
        """float32 (B, 3, R, R) in 0..1, channels last in memory; R is `side` px."""
        self.show(view)
        views = self._render_one(indices, side)
        if not any(self._mix):
            return views
        chosen = self.upload(indices)
        partners = self._drawn["partners"][chosen] if self._host is None else self._partners[indices]
        boxes = self._drawn["boxes"][chosen] if self._mix.cutmix else None
        return mix_views(views, self._render_one(partners, side), self._drawn["weights"][chosen], boxes)

    def labels(self, indices: Indices) -> Tensor:
        """int64 (B,), the images' own labels."""
        return self._labels[self.upload(indices)]

    def targets(self, indices: Indices, view: int) -> Tensor:
        """int64 (B,), or with a mix float32 (B, C) that sum to 1."""
        chosen = self.upload(indices)
        labels = self._labels[chosen]
        if not any(self._mix):
            return labels
        self.show(view)
        partners, weights = self._drawn["partners"][chosen], self._drawn["weights"][chosen]
        return mix_targets(labels, self._labels[partners], weights, self._num_classes)

    def upload(self, indices: Indices) -> Tensor:
        """The same numbers on the device."""
        return indices if isinstance(indices, Tensor) else send(indices, self._device)

    def _render_one(self, indices: Indices, side: int) -> Tensor:
        chosen = self.upload(indices)
        drawn = {name: values[chosen] for name, values in self._drawn.items() if name not in _OF_MIX}
        sampled = is_sampled(self._data, side)
        flip = None if sampled else drawn["flip"]
        if self.resident is None:
            crops = self._fetch(np.asarray(indices), flip)
        else:
            crops = self._cut(self.resident, chosen, drawn, flip)
        views = finish_views(resample(crops, drawn, self._data), drawn["warp"] if sampled else None, side)
        return alter(views, drawn, self._data, whole=True)

    def _cut(self, resident: ResidentPixels, chosen: Tensor, drawn: dict[str, Tensor], flip: Tensor | None) -> Tensor:
        """uint8 (B, S, S, 3), or twice as many for a random resized crop."""
        if self._data.has_resized_crop:
            rows, columns = resized_places(resident.sizes[chosen], drawn, self._data)
            return resident.crops(chosen, rows, columns, black=False)
        rows, columns = crop_places(resident.sizes[chosen], drawn["top"], drawn["left"], flip, self._data)
        return resident.crops(chosen, rows, columns, black=self._data.padding_mode == "constant")

    def _fetch(self, indices: np.ndarray, flip: Tensor | None) -> Tensor:
        """As `_cut`, from the host."""
        assert self._host is not None
        crops = self._host.take(indices, self._view).to(self._device, non_blocking=True)
        return crops if flip is None else torch.where(flip.view(-1, 1, 1, 1), crops.flip(2), crops)
