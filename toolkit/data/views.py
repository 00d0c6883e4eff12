"""Training views: seeded random crop, flip and rotation of a whole batch at once, on the device, from uint8.

A view of an image is fixed by (seed, image, view) alone: the same three numbers give the same pixels in any batch,
order or process, and the same part of the picture at any size. Shapes: B images of a batch, N of the split, H W pixels
of the canvas, S side of the crop (data.image_size), R side of the view as it is rendered.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from toolkit.recipe import DataRecipe

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_STREAM = 1
"""Keeps the draws of mixup apart from others of the same seed."""


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
    is drawn as by torchvision's RandomCrop(size, padding, pad_if_needed=True): `crop_padding` px on every side first,
    then, where a side is still shorter than the view, the missing length on both ends of it.
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


def render_views(
    canvas: np.ndarray | Tensor,
    sizes: np.ndarray,
    draw: ViewDraw,
    recipe: DataRecipe,
    device: str = "cpu",
    side: int | None = None,
) -> Tensor:
    """Render the drawn views: uint8 canvas (B, H, W, 3) → float32 (B, 3, R, R) in 0..1, channels last in memory.

    Crop, mirrored border and flip copy pixels exactly. Rotation and the change of size from S to R = `side` px (default
    S) are one bilinear sampling step, which flips too; what turns in from outside the crop is black, as with
    torchvision's RandomRotation.
    """
    side = side or recipe.image_size
    sampled = recipe.rotation_degrees != 0 or side != recipe.image_size
    rows, columns = _crop_places(sizes, draw, recipe, flip=np.zeros_like(draw.flip) if sampled else draw.flip)
    crops = _take(canvas, rows, columns).to(device, non_blocking=True).permute(0, 3, 1, 2)
    if not sampled:
        return crops.float().div_(255)
    # grid_sample is fastest on planes; the networks want channels last
    planes = crops.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    grid = _turned_grid(draw.angle, draw.flip, side).to(device, non_blocking=True)
    views = F.grid_sample(planes, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return views.contiguous(memory_format=torch.channels_last)


def centre_views(crops: np.ndarray, device: str = "cpu") -> Tensor:
    """Evaluation's view: uint8 (B, S, S, 3) → float32 (B, 3, S, S) in 0..1, channels last in memory."""
    return torch.from_numpy(crops).to(device, non_blocking=True).permute(0, 3, 1, 2).float().div_(255)


def _crop_places(
    sizes: np.ndarray, draw: ViewDraw, recipe: DataRecipe, flip: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the image that each crop is made of, int64 (B, S) each; −1 where it is black.

    Columns run backwards where `flip`, bool (B,), says so.
    """
    steps = np.arange(recipe.image_size)
    flipped = np.where(flip[:, None], steps[::-1], steps)
    return (
        _fold(draw.top[:, None] + steps, sizes[:, :1], recipe),
        _fold(draw.left[:, None] + flipped, sizes[:, 1:], recipe),
    )


def _fold(places: np.ndarray, length: np.ndarray, recipe: DataRecipe) -> np.ndarray:
    """Bring places outside 0..length−1 back as the padding mode has it: −1, or mirrored, border pixel repeated.

    torchvision mirrors twice where an image padded by `crop_padding` is still too small: the padded image, then the
    image.
    """
    if recipe.padding_mode == "constant":
        return np.where((places < 0) | (places >= length), -1, places)
    for margin in (recipe.crop_padding, 0) if recipe.crop_padding else (0,):
        span = length + 2 * margin
        folded = (places + margin) % (2 * span)
        places = np.minimum(folded, 2 * span - 1 - folded) - margin
    return places


def _take(canvas: np.ndarray | Tensor, rows: np.ndarray, columns: np.ndarray) -> Tensor:
    """uint8 (B, S, S, 3), where the canvas is; row or column −1 is black."""
    black = rows.min() < 0 or columns.min() < 0
    if isinstance(canvas, np.ndarray):
        crops = np.empty((*rows.shape, rows.shape[1], 3), dtype=np.uint8)
        whole = _is_run(rows) & _is_run(columns)
        for image, crop, row, column, is_whole in zip(canvas, crops, rows, columns, whole, strict=True):
            if is_whole:
                crop[:] = image[row[0] : row[-1] + 1, column[0] : column[-1] + 1]
            else:
                # one axis after the other, and "clip", which checks no bounds: several times faster than indexing
                np.take(np.take(image, column, axis=1, mode="clip"), row, axis=0, out=crop, mode="clip")
        if black:
            crops[(rows < 0)[:, :, None] | (columns < 0)[:, None, :]] = 0
        return torch.from_numpy(crops)
    across, down = (torch.from_numpy(places).to(canvas.device) for places in (columns, rows))
    numbers = torch.arange(len(canvas), device=canvas.device).view(-1, 1, 1)
    taken = canvas[numbers, down.unsqueeze(2).clamp_min(0), across.unsqueeze(1).clamp_min(0)]
    if black:
        taken[(down < 0).unsqueeze(2) | (across < 0).unsqueeze(1)] = 0
    return taken


def _is_run(places: np.ndarray) -> np.ndarray:
    """Which rows of `places`, (B, S), count up by one from 0 or more; neighbours differ by one at most. bool (B,)."""
    run: np.ndarray = (places[:, 0] >= 0) & (places[:, -1] - places[:, 0] == places.shape[1] - 1)
    return run


def _turned_grid(angle: np.ndarray, flip: np.ndarray, side: int) -> Tensor:
    """Where in the crop each pixel of each view lies, float32 (B, R, R, 2), (x, y) in −1..1; `angle` in degrees.

    A pixel at x + iy comes from (x + iy)·e^{iθ}, θ being the angle: the inverse turn, as y points down. Where `flip`,
    bool (B,), says so, it comes from (−x + iy)·e^{−iθ}, the mirror image of that: crops are flipped before they turn.
    """
    places = (torch.arange(side) * 2 + 1) / side - 1
    sign = torch.from_numpy(1 - 2 * flip.astype(np.float32)).view(-1, 1, 1)
    turn = torch.polar(torch.ones_like(sign), sign * torch.from_numpy(np.deg2rad(angle)).float().view(-1, 1, 1))
    return torch.view_as_real(places.view(1, 1, -1) * (sign * turn) + places.view(1, -1, 1) * (1j * turn))


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
