"""Settings that nobody states follow the training images: their size and their number.

Settings that a recipe file or --set states stay. N images; m, the median of their shorter sides, in px.
"""

from dataclasses import dataclass

import numpy as np

from toolkit.data.dataset import Images, spread
from toolkit.data.preprocess import UNREADABLE
from toolkit.recipe import FOLLOW_PICTURES, Recipe
from toolkit.settings import DataRecipe

LOOKED_AT = 500
"""Training images whose size is read, evenly over the split; only the headers of files are decoded."""

LEAST_SIDE = 32
"""px; the depthwise student halves its picture four times: a smaller one would leave almost nothing."""
WHOLE_SIDE = 96
"""px; pictures up to this are seen whole, and their training views come from padding."""
CROP_SHARE = 1.1
"""The shorter side of larger pictures is this many times the square that is cropped from it."""
SIDE_STEP = 16
"""px; sides of crops are multiples of this, so that four halvings leave no remainder."""

IMAGES_SHOWN = 600_000
"""Images that the student sees in total, between the fewest and the most epochs."""
STUDENT_EPOCHS, TEACHER_EPOCHS = (10, 60), (5, 30)
"""Fewest and most."""


@dataclass(frozen=True)
class Pictures:
    """`count` training images; `looked_at` of them were opened, and `side_px` is the median of their shorter sides."""

    count: int
    looked_at: int
    side_px: int


def left_to_pictures(recipe: Recipe) -> list[str]:
    """Settings of FOLLOW_PICTURES that the recipe does not state; padding follows only together with data.resize."""
    left = [setting for setting in FOLLOW_PICTURES if not recipe.states(setting)]
    return [setting for setting in left if setting != "data.crop_padding" or "data.resize" in left]


def follow_pictures(recipe: Recipe, images: Images) -> tuple[Recipe, str]:
    """`recipe` with all of `left_to_pictures` stated, and a line that says what was chosen and why.

    The line is empty if nothing is left. It is also empty if no image can be read: then the constants stay, and
    decoding reports it.
    """
    pictures = measure_pictures(images) if left_to_pictures(recipe) else None
    if pictures is None:
        return recipe, ""
    settings = [f"{name}={value}" for name, value in choose_settings(recipe, pictures).items()]
    line = (
        f"settings that follow the pictures: {' '.join(settings)} ({pictures.looked_at:,} of"
        f" {pictures.count:,} training images sampled: median shorter side {pictures.side_px} px; --set changes each)"
    )
    return recipe.with_overrides(settings), line


def measure_pictures(images: Images) -> Pictures | None:
    """Sample the training images; None if none of the sampled images can be read."""
    sides = []
    for index in spread(len(images), LOOKED_AT):
        try:
            sides.append(min(images.read(int(index)).size))
        except UNREADABLE:
            continue
    return Pictures(len(images), len(sides), int(np.median(sides))) if sides else None


def choose_settings(recipe: Recipe, pictures: Pictures) -> dict[str, int]:
    """Setting → value, for all of `left_to_pictures`.

    Sizes: m from 176 px on gets the constants for photographs, a square of 160 px out of a shorter side of 176 px.
    Smaller pictures are not enlarged to that. Up to 96 px a picture is seen whole, and views are moved by padding of an
    eighth of the side: 4 px for the 32 px of CIFAR (He et al. 2016, section 4.2), 12 px for the 96 px of STL-10
    (DeVries & Taylor 2017, arXiv:1708.04552). Between the two a crop is cut, as for photographs. A stated size
    replaces m for the other one.

    Epochs: the number of steps matters more than the number of epochs. 60 epochs, the constant, are for sets of up to
    10,000 images. Larger sets get the same total, 600,000 images, but each image at least ten times, so that there are
    views to learn from. A teacher gets half of that, because it is the larger network and learns from labels.
    """
    chosen = _choose_sizes(recipe, pictures.side_px)
    student = _clamp(IMAGES_SHOWN // pictures.count, STUDENT_EPOCHS)
    chosen |= {"teacher.epochs": _clamp(student // 2, TEACHER_EPOCHS), "distill.epochs": student}
    return {name: chosen[name] for name in left_to_pictures(recipe)}


def _choose_sizes(recipe: Recipe, side_px: int) -> dict[str, int]:
    """Values for image_size, resize and crop_padding; a stated one decides the others."""
    data, constants = recipe.data, DataRecipe()
    least = max(LEAST_SIDE, recipe.teacher.start_image_size, recipe.distill.start_image_size)
    if recipe.states("data.image_size"):
        size = data.image_size
        resize = size if size <= WHOLE_SIDE else round(size * CROP_SHARE)
    else:
        shown = data.resize if recipe.states("data.resize") and data.resize else side_px
        size = max(least, _crop_of(shown))
        resize = max(size, min(shown, constants.resize))
    return {"data.image_size": size, "data.resize": resize, "data.crop_padding": size // 8 if resize == size else 0}


def _crop_of(side_px: int) -> int:
    """Side of the square that a network sees of pictures whose shorter side has `side_px`."""
    constants = DataRecipe()
    if side_px >= constants.resize:
        return constants.image_size
    if side_px <= WHOLE_SIDE:
        return side_px
    return int(side_px / CROP_SHARE) // SIDE_STEP * SIDE_STEP


def _clamp(value: int, bounds: tuple[int, int]) -> int:
    return min(max(value, bounds[0]), bounds[1])
