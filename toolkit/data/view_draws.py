"""The random choices of training views, fixed by (seed, image, view) alone and relative to the image.

The same three numbers give the same part of the picture and the same strengths in any batch, order or process, and at
any size. B images of a batch, S px side of the crop (data.image_size), K operations of a policy.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from toolkit.data import augment, boxes
from toolkit.data.chance import Draw, uniform
from toolkit.data.warps import flip_and_turn, follow
from toolkit.settings import DataRecipe

ERASED_SCALE, ERASED_RATIO = (0.02, 0.33), (1 / 3.3, 1 / 0.3)
"""Area and width over height of what is erased: torchvision's RandomErasing, whose ratio is height over width."""


@dataclass(frozen=True)
class ViewDraw:
    """The random choices of one view for each of B images.

    `top`, `left`: int64 (B,), px; the crop's corner in the image's own coordinates (negative inside the padding).
    `flip`: bool (B,). `angle`: float64 (B,), degrees, counter-clockwise. In a random resized crop `top` and `left` are
    float64, and `height` and `width`, float64 (B,), px, are its size; otherwise these are None.
    `changes`: what happens to the rendered view (alterations.py), by name, an array of B rows each.
    """

    top: np.ndarray
    left: np.ndarray
    flip: np.ndarray
    angle: np.ndarray
    height: np.ndarray | None = None
    width: np.ndarray | None = None
    changes: dict[str, np.ndarray] = field(default_factory=dict)

    def warp(self) -> Tensor:
        """Flip, rotation and a policy's first move in one, complex64 (B, 2), with a policy (B, 3)."""
        turned = flip_and_turn(self.flip, self.angle)
        if "warps" not in self.changes:
            return turned
        return follow(turned, torch.from_numpy(self.changes["warps"][:, 0]))

    def tensors(self) -> dict[str, Tensor]:
        """All that a device needs to render the view, by name."""
        places = {"top": self.top, "left": self.left, "flip": self.flip, "height": self.height, "width": self.width}
        arrays = {name: values for name, values in places.items() if values is not None} | self.changes
        return {name: torch.from_numpy(values) for name, values in arrays.items()} | {"warp": self.warp()}


def draw_views(recipe: DataRecipe, sizes: np.ndarray, images: np.ndarray, seed: int, view: int) -> ViewDraw:
    """Draw view number `view` of every image.

    `sizes` is int64 (B, 2), each image's (height, width) in px; `images` int64 (B,), its number in the split.
    """
    chance = uniform(seed, images, view, count=4)
    height = width = None
    if recipe.has_resized_crop:
        drawn = uniform(seed, images, view, boxes.NUMBERS, Draw.CROP)
        box, _ = boxes.draw_boxes(drawn, recipe.crop_scale, recipe.crop_ratio, sizes[:, 1] / sizes[:, 0])
        top, left, bottom, right = (box * np.tile(sizes, 2)).T
        height, width = bottom - top, right - left
    else:
        top, left = _corner(recipe, sizes, chance).T
    return ViewDraw(
        top=top,
        left=left,
        flip=(chance[:, 2] < 0.5) & recipe.flip,
        angle=(chance[:, 3] * 2 - 1) * recipe.rotation_degrees,
        height=height,
        width=width,
        changes=_draw_changes(recipe, images, seed, view),
    )


def _corner(recipe: DataRecipe, sizes: np.ndarray, chance: np.ndarray) -> np.ndarray:
    """Top and left, int64 (B, 2), as by torchvision's RandomCrop(size, padding, pad_if_needed=True).

    That pads by `crop_padding` px on every side first. If a side is still shorter than the view, the missing length is
    added at both of its ends.
    """
    corner = np.empty_like(sizes)
    for axis in (0, 1):
        padded = sizes[:, axis] + 2 * recipe.crop_padding
        missing = np.maximum(recipe.image_size - padded, 0)
        room = padded + 2 * missing - recipe.image_size + 1
        corner[:, axis] = np.floor(chance[:, axis] * room).astype(np.int64) - missing - recipe.crop_padding
    return corner


def _draw_changes(recipe: DataRecipe, images: np.ndarray, seed: int, view: int) -> dict[str, np.ndarray]:
    """What the settings ask for, and nothing else.

    `operations`, `strengths`, `warps`: draw_policy's. `factors`: float32 (B, 4), brightness, contrast, saturation and
    hue; `order`: int64 (B, 4), in which order they change. `is_grey`, `is_blurred`: bool (B,). `sigma`: float32 (B,),
    share of the side. `erased`: float32 (B, 4), a box, without area if nothing is erased.
    """
    changes: dict[str, np.ndarray] = {}
    if length := augment.policy_length(recipe):
        drawn = uniform(seed, images, view, length * augment.NUMBERS, Draw.POLICY)
        changes |= augment.draw_policy(recipe, drawn)
    if recipe.changes_colour:
        changes |= _draw_colours(recipe, uniform(seed, images, view, 11, Draw.COLOUR))
    if recipe.erasing:
        chance = uniform(seed, images, view, 1 + boxes.NUMBERS, Draw.ERASING)
        box, fits = boxes.draw_boxes(chance[:, 1:], ERASED_SCALE, ERASED_RATIO, np.ones(len(images)))
        is_erased = fits & (chance[:, 0] < recipe.erasing)
        changes["erased"] = np.where(is_erased[:, None], box, 0).astype(np.float32)
    return changes


def _draw_colours(recipe: DataRecipe, chance: np.ndarray) -> dict[str, np.ndarray]:
    """As torchvision's ColorJitter, RandomGrayscale and GaussianBlur draw them, from uniform numbers (B, 11)."""
    drawn: dict[str, np.ndarray] = {}
    if any(recipe.color_jitter):
        reach = np.array(recipe.color_jitter)
        centre = np.array([1.0, 1.0, 1.0, 0.0])
        low = np.where(centre > 0, np.maximum(centre - reach, 0), -reach)
        drawn["factors"] = (low + chance[:, :4] * (centre + reach - low)).astype(np.float32)
        drawn["order"] = chance[:, 4:8].argsort(1)
    if recipe.grey:
        drawn["is_grey"] = chance[:, 8] < recipe.grey
    if recipe.blur:
        low_sigma, high_sigma = recipe.blur_sigma
        drawn["is_blurred"] = chance[:, 9] < recipe.blur
        drawn["sigma"] = (low_sigma + chance[:, 10] * (high_sigma - low_sigma)).astype(np.float32)
    return drawn
