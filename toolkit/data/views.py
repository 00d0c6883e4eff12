"""Training views: seeded crop, flip, rotation and all that follows, of a whole batch at once, from uint8.

A view of an image is fixed by (seed, image, view) alone: the same three numbers give the same pixels in any batch,
order or process, and the same part of the picture at any size. The order is torchvision's: crop, flip, policy, colours,
erasing, mix. Shapes: B images of a batch, N of the split, H W pixels of an image, S side of the crop (data.image_size),
R side of the view as it is rendered. A random resized crop is cut as 2S rows and columns: the two pixels that each of
its S places lies between.
"""

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from toolkit.data.alterations import alter
from toolkit.data.view_draws import ViewDraw
from toolkit.data.warps import sample
from toolkit.settings import DataRecipe

Array = TypeVar("Array", np.ndarray, Tensor)
"""Numbers of a batch, in the host's memory or on a device."""

Indices = np.ndarray | Tensor
"""int64 (B,), images of a split: an array, or a tensor on the GPU that has their pixels."""


def render_views(
    images: Iterable[np.ndarray], sizes: np.ndarray, draw: ViewDraw, recipe: DataRecipe, side: int | None = None
) -> Tensor:
    """Render the drawn views: B images, uint8 (H, W, 3) each → float32 (B, 3, R, R) in 0..1, channels last in memory.

    A plain crop, its mirrored border and flip copy pixels exactly. Rotation, a policy's first move and the change of
    size from S to R = `side` px (default S) are one bilinear sampling step, which flips too. Pixels from outside the
    crop are black, as with torchvision's RandomRotation.
    """
    side = side or recipe.image_size
    sampled = is_sampled(recipe, side)
    rows, columns = draw_places(sizes, draw, recipe, draw.flip if not sampled else None)
    crops = np.empty((*rows.shape, columns.shape[1], 3), dtype=np.uint8)
    cut_crops(images, rows, columns, crops)
    drawn = draw.tensors()
    views = finish_views(resample(torch.from_numpy(crops), drawn, recipe), drawn["warp"] if sampled else None, side)
    return alter(views, drawn, recipe, whole=False) if draw.changes else views


def is_sampled(recipe: DataRecipe, side: int) -> bool:
    """Whether views of `side` px are sampled; otherwise they are copied pixel by pixel."""
    moves = recipe.rotation_degrees != 0 or recipe.augment != "none" or recipe.has_resized_crop
    return moves or side != recipe.image_size


def cut_side(recipe: DataRecipe) -> int:
    """px; side of what is cut from an image for its view: S, or 2S for a random resized crop."""
    return recipe.image_size * (2 if recipe.has_resized_crop else 1)


def draw_places(
    sizes: np.ndarray, draw: ViewDraw, recipe: DataRecipe, flip: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the image that make up each drawn crop, as crop_places or resized_places give them."""
    if not recipe.has_resized_crop:
        return crop_places(sizes, draw.top, draw.left, flip, recipe)
    rows, columns = resized_places(torch.from_numpy(sizes), draw.tensors(), recipe)
    return rows.numpy(), columns.numpy()


def resized_places(sizes: Tensor, drawn: Mapping[str, Tensor], recipe: DataRecipe) -> tuple[Tensor, Tensor]:
    """Rows and columns of a random resized crop, int64 (B, 2S) each: pairs of neighbours, for each of S places."""
    pairs = []
    for axis, places in enumerate(_places_in_crop(drawn, recipe)):
        first = places.floor().long()
        both = torch.stack((first, torch.minimum(first + 1, sizes[:, axis : axis + 1] - 1)), 2)
        pairs.append(both.flatten(1))
    return pairs[0], pairs[1]


def resample(crops: Tensor, drawn: Mapping[str, Tensor], recipe: DataRecipe) -> Tensor:
    """A random resized crop, uint8 (B, 2S, 2S, 3) → bilinear, float32 (B, S, S, 3) in 0..255; others stay as they are.

    It equals torchvision's resized_crop without antialiasing.
    """
    if not recipe.has_resized_crop:
        return crops
    down, across = ((places - places.floor()).float() for places in _places_in_crop(drawn, recipe))
    count, side = down.shape
    upper, lower = crops.view(count, side, 2, 2 * side, 3).unbind(2)
    rows = torch.lerp(upper.float(), lower.float(), down[:, :, None, None])
    left, right = rows.view(count, side, side, 2, 3).unbind(3)
    return torch.lerp(left, right, across[:, None, :, None])


def _places_in_crop(drawn: Mapping[str, Tensor], recipe: DataRecipe) -> list[Tensor]:
    """Where the middles of S rows and of S columns lie in the image, float64 (B, S) each, in px; within the crop."""
    found = []
    for start, length in ((drawn["top"], drawn["height"]), (drawn["left"], drawn["width"])):
        steps = (torch.arange(recipe.image_size, device=start.device, dtype=torch.float64) + 0.5) / recipe.image_size
        first, last = start.unsqueeze(1), (start + (length - 1).clamp_min(0)).unsqueeze(1)
        found.append((first + steps * length.unsqueeze(1) - 0.5).clamp(first, last))
    return found


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


def finish_views(crops: Tensor, warp: Tensor | None, side: int) -> Tensor:
    """Crops, (B, S, S, 3) in 0..255 → views, float32 (B, 3, R, R) in 0..1, channels last in memory, on the same device.

    If a `warp` (warps.py) is given, they are sampled along it at R = `side` px.
    """
    crops = crops.permute(0, 3, 1, 2)
    if warp is None:
        return crops.float().div_(255)
    # grid_sample is fastest on planes; the networks want channels last
    planes = crops.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    return sample(planes, warp, side).contiguous(memory_format=torch.channels_last)


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
    """Which rows of `places`, (B, S), count up by one from 0 or more: bool (B,).

    Their ends tell: the steps of a plain crop are one at most, and those of a resized one differ by one at most.
    """
    run: np.ndarray = (places[:, 0] >= 0) & (places[:, -1] - places[:, 0] == places.shape[1] - 1)
    return run
