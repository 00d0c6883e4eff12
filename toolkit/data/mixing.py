"""Views and labels of two images in one: mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019).

B images of a batch, N of the split, C classes, R px side of a view.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from toolkit.data.boxes import coverage
from toolkit.settings import Mix

_STREAM = 1
"""Separates these draws from others of the same seed."""


@dataclass(frozen=True)
class MixDraw:
    """The partners of one view of a whole split.

    `partners`: int64 (N,), the image that is mixed into each; `weights`: float32 (N,), 0..1, the image's own share.
    `boxes`: float32 (N, 4), the part that CutMix takes from the partner, without area in a view of mixup; None without
    CutMix (arXiv:1710.09412, arXiv:1905.04899).
    """

    partners: np.ndarray
    weights: np.ndarray
    boxes: np.ndarray | None = None


def draw_mix(mix: Mix, count: int, seed: int, view: int) -> MixDraw:
    """Draw the partners of view number `view` of `count` images: a permutation, and shares from Beta(α, α).

    With mixup and CutMix, one of the two is drawn for each view. CutMix's box has the partner's share of the area
    around a random place. What lies outside the image is cut off, and the shares are those of the rest.
    """
    generator = np.random.default_rng((seed, view, _STREAM))
    partners = generator.permutation(count)
    weights = np.ones(count, np.float32)
    if mix.mixup:
        weights = generator.beta(mix.mixup, mix.mixup, count).astype(np.float32)
    if not mix.cutmix:
        return MixDraw(partners, weights)
    half = np.sqrt(1 - generator.beta(mix.cutmix, mix.cutmix, (count, 1))) / 2
    place = generator.random((count, 2))
    boxes = np.concatenate((place - half, place + half), axis=1).clip(0, 1).astype(np.float32)
    if mix.mixup:
        boxes[generator.random(count) < 0.5] = 0
    top, left, bottom, right = boxes.T
    area = (bottom - top) * (right - left)
    return MixDraw(partners, np.where(area > 0, 1 - area, weights), boxes)


def mix_views(views: Tensor, partners: Tensor, weights: Tensor, boxes: Tensor | None = None) -> Tensor:
    """`weights`, float32 (B,), of each view, (B, 3, R, R), and the rest of its partner's, over all of it or by boxes.

    A pixel on the border of a box, float32 (B, 4), is mixed by its share of the box, so that weights hold at any R.
    """
    own = weights.view(-1, 1, 1, 1)
    if boxes is not None:
        outside = 1 - coverage(boxes, views.shape[-1])
        own = torch.where((boxes[:, 2] > boxes[:, 0]).view(-1, 1, 1, 1), outside, own)
    return torch.lerp(partners, views, own)


def mix_targets(labels: Tensor, partners: Tensor, weights: Tensor, num_classes: int) -> Tensor:
    """The labels int64 (B,) of images and of their partners, mixed as their views are: float32 (B, C)."""
    targets = torch.zeros(len(labels), num_classes, device=labels.device)
    targets.scatter_add_(1, labels.unsqueeze(1), weights.unsqueeze(1))
    return targets.scatter_add_(1, partners.unsqueeze(1), 1 - weights.unsqueeze(1))
