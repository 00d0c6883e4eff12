"""Training views: seeded random crop, flip and rotation of a whole batch at once, on the device, from uint8.

A view of an image is fixed by (seed, image, view) alone: the same three numbers give the same pixels in any batch,
order or process, and the same part of the picture at any size. Shapes: B images of a batch, N of the split, H W pixels
of an image, S side of the crop (data.image_size), R side of the view as it is rendered.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from toolkit.settings import DataRecipe

Array = TypeVar("Array", np.ndarray, Tensor)
"""Numbers of a batch, in the host's memory or on a device."""

Indices = np.ndarray | Tensor
"""int64 (B,), images of a split: an array, or a tensor on the GPU that has their pixels."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_STREAM = 1
"""Separates the draws of mixup from others of the same seed."""


@dataclass(frozen=True)
class ViewDraw:
    """The random choices of one view for each of B images.

    `top`, `left`: int64 (B,), px; the crop's corner in the image's own coordinates (negative inside the padding).
    `flip`: bool (B,). `angle`: float64 (B,), degrees, counter-clockwise.
    """

    top: np.ndarray
    left: np.ndarray
    flip: np.ndarray
    angle: np.ndarray


def draw_views(recipe: DataRecipe, sizes: np.ndarray, images: np.ndarray, seed: int, view: int) -> ViewDraw:
    """Draw view number `view` of every image.

    `sizes` is int64 (B, 2), each image's (height, width) in px; `images` int64 (B,), its number in the split. The crop
    is drawn as by torchvision's RandomCrop(size, padding, pad_if_needed=True): `crop_padding` px on every side first.
    If a side is still shorter than the view, the missing length is added at both of its ends.
    """
    chance = _uniform(seed, images, view, count=4)
    corner = np.empty_like(sizes)
    for axis in (0, 1):
        padded = sizes[:, axis] + 2 * recipe.crop_padding
        missing = np.maximum(recipe.image_size - padded, 0)
        room = padded + 2 * missing - recipe.image_size + 1
        corner[:, axis] = np.floor(chance[:, axis] * room).astype(np.int64) - missing - recipe.crop_padding
    return ViewDraw(
        top=corner[:, 0],
        left=corner[:, 1],
        flip=(chance[:, 2] < 0.5) & recipe.flip,
        angle=(chance[:, 3] * 2 - 1) * recipe.rotation_degrees,
    )


@dataclass(frozen=True)
class MixDraw:
    """The mixup partners of one view of a whole split (Zhang et al. 2018, arXiv:1710.09412).

    `partners`: int64 (N,), the image that is mixed into each; `weights`: float32 (N,), 0..1, the image's own share.
    """

    partners: np.ndarray
    weights: np.ndarray


def draw_mix(alpha: float, count: int, seed: int, view: int) -> MixDraw:
    """Draw the partners of view number `view` of `count` images: a permutation, and shares from Beta(α, α)."""
    generator = np.random.default_rng((seed, view, _MIX_STREAM))
    return MixDraw(generator.permutation(count), generator.beta(alpha, alpha, count).astype(np.float32))


def mix_views(views: Tensor, partners: Tensor, weights: Tensor) -> Tensor:
    """`weights`, float32 (B,), of each view, (B, 3, R, R), and the rest of its partner's."""
    return torch.lerp(partners, views, weights.view(-1, 1, 1, 1))


def mix_targets(labels: Tensor, partners: Tensor, weights: Tensor, num_classes: int) -> Tensor:
    """The labels int64 (B,) of images and of their partners, mixed as their views are: float32 (B, C)."""
    targets = torch.zeros(len(labels), num_classes, device=labels.device)
    targets.scatter_add_(1, labels.unsqueeze(1), weights.unsqueeze(1))
    return targets.scatter_add_(1, partners.unsqueeze(1), 1 - weights.unsqueeze(1))


def render_views(
    images: Iterable[np.ndarray], sizes: np.ndarray, draw: ViewDraw, recipe: DataRecipe, side: int | None = None
) -> Tensor:
    """Render the drawn views: B images, uint8 (H, W, 3) each → float32 (B, 3, R, R) in 0..1, channels last in memory.

    Crop, mirrored border and flip copy pixels exactly. Rotation and the change of size from S to R = `side` px (default
    S) are one bilinear sampling step, which flips too. Pixels from outside the crop are black, as with torchvision's
    RandomRotation.
    """
    side = side or recipe.image_size
    sampled = is_sampled(recipe, side)
    rows, columns = crop_places(sizes, draw.top, draw.left, None if sampled else draw.flip, recipe)
    crops = np.empty((*rows.shape, rows.shape[1], 3), dtype=np.uint8)
    cut_crops(images, rows, columns, crops)
    return finish_views(torch.from_numpy(crops), view_axes(draw) if sampled else None, side)


def is_sampled(recipe: DataRecipe, side: int) -> bool:
    """Whether views of `side` px are sampled; otherwise they are copied pixel by pixel."""
    return recipe.rotation_degrees != 0 or side != recipe.image_size


def crop_places(sizes: Array, top: Array, left: Array, flip: Array | None, recipe: DataRecipe) -> tuple[Array, Array]:
    """Rows and columns of the image that make up each crop, int64 (B, S) each; −1 for black.

    `sizes` (B, 2) and the rest as in ViewDraw, all of them arrays or all of them tensors of one device. Columns run
    backwards if `flip` is set.
    """
    side = recipe.image_size
    if isinstance(top, np.ndarray):
        library: Any = np
        steps = np.arange(side)
    else:
        library, steps = torch, torch.arange(side, device=top.device)
    across = steps if flip is None else library.where(flip[:, None], side - 1 - steps, steps)
    return (
        _fold(top[:, None] + steps, sizes[:, :1], recipe, library),
        _fold(left[:, None] + across, sizes[:, 1:], recipe, library),
    )


def view_axes(draw: ViewDraw) -> Tensor:
    """The directions of each view's axes, right and down, in its crop: complex64 (B, 2), x + iy.

    A pixel at x + iy comes from (x + iy)·e^{iθ}, with the angle θ: the inverse turn, because y points down. If `flip`
    is set, it comes from (−x + iy)·e^{−iθ}, the mirror image of that: crops are flipped before they turn.
    """
    sign = torch.from_numpy(1 - 2 * draw.flip.astype(np.float32))
    turn = torch.polar(torch.ones_like(sign), sign * torch.from_numpy(np.deg2rad(draw.angle)).float())
    return torch.stack((sign * turn, 1j * turn), dim=1)


def finish_views(crops: Tensor, axes: Tensor | None, side: int) -> Tensor:
    """Crops, uint8 (B, S, S, 3) → views, float32 (B, 3, R, R) in 0..1, channels last in memory, on the same device.

    If `axes` (`view_axes`) are given, they are sampled at R = `side` px along them.
    """
    crops = crops.permute(0, 3, 1, 2)
    if axes is None:
        return crops.float().div_(255)
    # grid_sample is fastest on planes; the networks want channels last
    planes = crops.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    grid = _sampling_grid(axes, side)
    views = F.grid_sample(planes, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return views.contiguous(memory_format=torch.channels_last)


def centre_views(crops: Tensor) -> Tensor:
    """Evaluation's view: uint8 (B, S, S, 3) → float32 (B, 3, S, S) in 0..1, channels last in memory."""
    return finish_views(crops, None, crops.shape[1])


def _fold(places: Any, length: Any, recipe: DataRecipe, library: Any) -> Any:
    """Map places outside 0..length−1 by the padding mode: to −1, or mirrored with the border pixel repeated.

    torchvision mirrors twice if an image padded by `crop_padding` is still too small: the padded image, then the
    image. `library` is numpy or torch.
    """
    if recipe.padding_mode == "constant":
        return library.where((places < 0) | (places >= length), -1, places)
    for margin in (recipe.crop_padding, 0) if recipe.crop_padding else (0,):
        span = length + 2 * margin
        folded = (places + margin) % (2 * span)
        places = library.minimum(folded, 2 * span - 1 - folded) - margin
    return places


def cut_crops(images: Iterable[np.ndarray], rows: np.ndarray, columns: np.ndarray, crops: np.ndarray) -> None:
    """Fill `crops`, uint8 (B, S, S, 3), from B `images`, uint8 (H, W, 3) each; row or column −1 is black."""
    whole = _is_run(rows) & _is_run(columns)
    for image, crop, row, column, is_whole in zip(images, crops, rows, columns, whole, strict=True):
        if is_whole:
            crop[:] = image[row[0] : row[-1] + 1, column[0] : column[-1] + 1]
        else:
            # one axis after the other, and "clip", which checks no bounds, is several times faster than indexing
            np.take(np.take(image, column, axis=1, mode="clip"), row, axis=0, out=crop, mode="clip")
    if rows.min() < 0 or columns.min() < 0:
        crops[(rows < 0)[:, :, None] | (columns < 0)[:, None, :]] = 0


def _is_run(places: np.ndarray) -> np.ndarray:
    """Which rows of `places`, (B, S), count up by one from 0 or more; neighbours differ by one at most. bool (B,)."""
    run: np.ndarray = (places[:, 0] >= 0) & (places[:, -1] - places[:, 0] == places.shape[1] - 1)
    return run


def _sampling_grid(axes: Tensor, side: int) -> Tensor:
    """Each view's pixels' places in the crop, float32 (B, R, R, 2), (x, y) in −1..1; on the device of `axes`."""
    places = (torch.arange(side, device=axes.device) * 2 + 1) / side - 1
    across, down = axes.view(-1, 2, 1, 1).unbind(1)
    return torch.view_as_real(places.view(1, 1, -1) * across + places.view(1, -1, 1) * down)


def _uniform(seed: int, images: np.ndarray, view: int, count: int) -> np.ndarray:
    """Float64 (B, count) in [0, 1), a hash of (seed, image, view, place): splitmix64 (Steele, Lea, Flood 2014)."""
    run = _mix(np.array([seed], np.uint64) + _GOLDEN) ^ _mix(np.array([view], np.uint64) * _GOLDEN + np.uint64(1))
    state = _mix(images.astype(np.uint64) * _GOLDEN + run)
    places = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    bits = _mix(state[:, None] + places)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(state: np.ndarray) -> np.ndarray:
    """Scramble uint64 values; overflow wraps, as it should."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = state ^ (state >> np.uint64(31))
    return mixed
