"""Training views: seeded random crop, flip and rotation of a whole batch at once, on the device, from uint8.

A view of an image is fixed by (seed, image, view) alone: the same three numbers give the same pixels in any batch,
order or process. Shapes: B images of a batch, H W pixels of the canvas, S side of the view.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from toolkit.recipe import DataRecipe

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


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


def render_views(
    canvas: np.ndarray, sizes: np.ndarray, draw: ViewDraw, recipe: DataRecipe, device: str = "cpu"
) -> Tensor:
    """Render the drawn views: uint8 canvas (B, H, W, 3) → float32 (B, 3, S, S) in 0..1, channels last in memory.

    Crop, flip and rotation are one sampling step. Without rotation it copies pixels exactly; with it, bilinearly, and
    what turns in from outside the crop is black, as in torchvision's RandomRotation.
    """
    pixels = torch.from_numpy(canvas).to(device, non_blocking=True)
    rows, columns, inside = _source_coordinates(draw, recipe, device)
    height, width = (torch.from_numpy(sizes[:, axis]).to(device).view(-1, 1, 1) for axis in (0, 1))
    if recipe.padding_mode == "constant":
        inside = inside & (rows > -1) & (rows < height) & (columns > -1) & (columns < width)
    rows, columns = _mirror(rows, height, recipe.crop_padding), _mirror(columns, width, recipe.crop_padding)
    views = _copy(pixels, rows, columns) if recipe.rotation_degrees == 0 else _interpolate(pixels, rows, columns)
    return torch.where(inside.unsqueeze(1), views, 0.0).contiguous(memory_format=torch.channels_last)


def centre_views(crops: np.ndarray, device: str = "cpu") -> Tensor:
    """Evaluation's view: uint8 (B, S, S, 3) → float32 (B, 3, S, S) in 0..1, channels last in memory."""
    return torch.from_numpy(crops).to(device, non_blocking=True).permute(0, 3, 1, 2).float().div_(255)


def _source_coordinates(draw: ViewDraw, recipe: DataRecipe, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Where each pixel of each view comes from: rows, columns (B, S, S) in the image's px, and bool "in the crop"."""
    side = recipe.image_size
    centre = (side - 1) / 2
    y, x = torch.meshgrid(*(torch.arange(side, device=device, dtype=torch.float32) - centre,) * 2, indexing="ij")
    radians = torch.from_numpy(np.deg2rad(draw.angle)).float().to(device).view(-1, 1, 1)
    cos, sin = radians.cos(), radians.sin()
    row, column = cos * y + sin * x + centre, cos * x - sin * y + centre  # the inverse turn; y points down
    inside = (row > -0.5) & (row < side - 0.5) & (column > -0.5) & (column < side - 0.5)
    flip = torch.from_numpy(draw.flip).to(device).view(-1, 1, 1)
    column = torch.where(flip, side - 1 - column, column)
    top, left = (torch.from_numpy(corner).to(device).view(-1, 1, 1) for corner in (draw.top, draw.left))
    return row + top, column + left, inside


def _mirror(position: Tensor, length: Tensor, padding: int) -> Tensor:
    """Fold positions outside 0..length−1 back as if the image were mirrored at its borders, border pixel repeated.

    torchvision mirrors twice where an image padded by `padding` is still too small: the padded image, then the image.
    """
    for margin in (padding, 0) if padding else (0,):
        span = length + 2 * margin
        folded = (position + margin + 0.5).remainder(2 * span)
        folded = torch.minimum(folded, 2 * span - folded) - 0.5
        position = torch.minimum(folded.clamp_min(0), (span - 1).to(folded.dtype)) - margin
    return position


def _copy(pixels: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    batch, _, width, _ = pixels.shape
    places = rows.round().long() * width + columns.round().long()
    flat = pixels.view(batch, -1, 3)
    taken = torch.gather(flat, 1, places.view(batch, -1, 1).expand(-1, -1, 3))
    return taken.view(*places.shape, 3).permute(0, 3, 1, 2).float().div_(255)


def _interpolate(pixels: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    _, height, width, _ = pixels.shape
    grid = torch.stack((columns * 2 / max(width - 1, 1) - 1, rows * 2 / max(height - 1, 1) - 1), dim=-1)
    values = pixels.permute(0, 3, 1, 2).float().div_(255)
    return F.grid_sample(values, grid, mode="bilinear", padding_mode="border", align_corners=True)


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
