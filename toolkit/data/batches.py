"""Batches of training views with their targets: what the student, the teacher and the store of its logits all see.

B images of a batch, N of the split, C classes, R px side of the rendered view.
"""

import functools

import numpy as np
import torch
from torch import Tensor

from toolkit.data.pixels import Pixels
from toolkit.data.resident import ResidentPixels
from toolkit.data.views import MixDraw, draw_mix, draw_views, render_views
from toolkit.recipe import DataRecipe


class TrainingViews:
    """View number v of any image, rendered at any size, on one device; fixed by (seed, image, v).

    `mixup` is α of Beta(α, α), 0 mixes none.
    """

    def __init__(
        self, pixels: Pixels, data: DataRecipe, num_classes: int, *, seed: int, mixup: float, device: str
    ) -> None:
        self.pixels = pixels
        self.data = data
        self.num_classes = num_classes
        self.seed = seed
        self.mixup = mixup
        self.device = device
        self._resident = None if device == "cpu" else ResidentPixels.where_it_fits(pixels, device)
        self._draw_mix = functools.lru_cache(maxsize=1)(self._mix_of_view)

    def __len__(self) -> int:
        return len(self.pixels)

    def render(self, indices: np.ndarray, view: int, side: int | None = None) -> Tensor:
        """float32 (B, 3, R, R) in 0..1, channels last in memory; R is `side` px, data.image_size by default."""
        views = self._render_one(indices, view, side)
        if not self.mixup:
            return views
        mix = self._draw_mix(view)
        weights = torch.from_numpy(mix.weights[indices]).to(self.device).view(-1, 1, 1, 1)
        return torch.lerp(self._render_one(mix.partners[indices], view, side), views, weights)

    def labels(self, indices: np.ndarray) -> Tensor:
        """int64 (B,), the images' own labels."""
        return torch.from_numpy(self.pixels.labels[indices]).to(self.device)

    def targets(self, indices: np.ndarray, view: int) -> Tensor:
        """What the view should be taken for: int64 (B,), or with mixup float32 (B, C) that sum to 1."""
        labels = self.labels(indices)
        if not self.mixup:
            return labels
        mix = self._draw_mix(view)
        weights = torch.from_numpy(mix.weights[indices]).to(self.device)
        targets = torch.zeros(len(indices), self.num_classes, device=self.device)
        targets.scatter_add_(1, labels.unsqueeze(1), weights.unsqueeze(1))
        return targets.scatter_add_(1, self.labels(mix.partners[indices]).unsqueeze(1), 1 - weights.unsqueeze(1))

    def _render_one(self, indices: np.ndarray, view: int, side: int | None) -> Tensor:
        source = self.pixels if self._resident is None else self._resident
        canvas, sizes = source.canvas(indices)
        draw = draw_views(self.data, sizes, indices, self.seed, view)
        return render_views(canvas, sizes, draw, self.data, self.device, side)

    def _mix_of_view(self, view: int) -> MixDraw:
        return draw_mix(self.mixup, len(self.pixels), self.seed, view)
