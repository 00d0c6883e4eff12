"""RandAugment (Cubuk et al. 2020) and TrivialAugment (Müller & Hutter 2021) of whole batches, as torchvision has them.

Operations and magnitudes are those of torchvision's RandAugment and TrivialAugmentWide. Those that move pixels are
warps (warps.py); the others change colours (colour.py). B images of a batch, K operations of a view, one after another.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from toolkit.data import colour, warps
from toolkit.settings import DataRecipe

MOVES = ("identity", "shear x", "shear y", "translate x", "translate y", "rotate")
"""Operations on places; their numbers come first."""

CHANGES: dict[str, colour.Change] = {
    "brightness": colour.brightness,
    "colour": colour.saturation,
    "contrast": colour.contrast,
    "sharpness": colour.sharpness,
    "posterize": colour.posterize,
    "solarize": colour.solarize,
    "autocontrast": colour.autocontrast,
    "equalize": colour.equalize,
}
"""Operations on colours."""

OPERATIONS = (*MOVES, *CHANGES)

MAGNITUDES = 31
"""magnitudes of an operation, from 0 to 30, in equal steps"""
NUMBERS = 3
"""uniform numbers that an operation takes: which one, its sign, its magnitude"""


@dataclass(frozen=True)
class Reach:
    """What operations do at the highest magnitude; `shift` is a share of the side, `bits` are taken away."""

    shear: float
    shift: float
    degrees: float
    factor: float
    bits: int


REACH = {
    "randaugment": Reach(shear=0.3, shift=150 / 331, degrees=30, factor=0.9, bits=4),
    # torchvision shifts by up to 32 px, whatever the size; the paper's images have 224 px
    "trivialaugment": Reach(shear=0.99, shift=32 / 224, degrees=135, factor=0.99, bits=6),
}


def policy_length(recipe: DataRecipe) -> int:
    """K: operations per view."""
    return {"none": 0, "randaugment": recipe.augment_operations, "trivialaugment": 1}[recipe.augment]


def draw_policy(recipe: DataRecipe, chance: np.ndarray) -> dict[str, np.ndarray]:
    """Draw each view's operations, from uniform numbers (B, K·NUMBERS).

    `operations`: int64 (B, K), places in OPERATIONS. `strengths`: float32 (B, K), what a change of colour takes.
    `warps`: complex64 (B, K, 3), which change nothing for operations on colours.
    """
    which, side, amount = np.moveaxis(chance.reshape(len(chance), -1, NUMBERS), 2, 0)
    operations = (which * len(OPERATIONS)).astype(np.int64)
    is_fixed = recipe.augment == "randaugment"
    steps = np.full_like(amount, recipe.augment_magnitude) if is_fixed else np.floor(amount * MAGNITUDES)
    share, sign, reach = steps / (MAGNITUDES - 1), np.where(side <= 0.5, -1, 1), REACH[recipe.augment]
    strengths = np.ones_like(share)
    for name in ("brightness", "colour", "contrast", "sharpness"):
        np.copyto(strengths, 1 + sign * share * reach.factor, where=operations == OPERATIONS.index(name))
    np.copyto(strengths, 8 - (share * reach.bits).round(), where=operations == OPERATIONS.index("posterize"))
    np.copyto(strengths, 1 - share, where=operations == OPERATIONS.index("solarize"))
    return {
        "operations": operations,
        "strengths": strengths.astype(np.float32),
        "warps": _warps(operations, sign * share, reach),
    }


def _warps(operations: np.ndarray, share: np.ndarray, reach: Reach) -> np.ndarray:
    """Complex64 (B, K, 3); shears leave the upper or the left border where it is, as torchvision's."""
    turned = np.exp(1j * np.deg2rad(share * reach.degrees))
    sheared, moved, still = share * reach.shear, share * reach.shift * 2, np.zeros_like(share)
    kinds = {
        "identity": (1 + still, 1j + still, still),
        "shear x": (1 + still, 1j + sheared, sheared),
        "shear y": (1 + 1j * sheared, 1j + still, 1j * sheared),
        "translate x": (1 + still, 1j + still, -moved),
        "translate y": (1 + still, 1j + still, -1j * moved),
        "rotate": (turned, 1j * turned, still),
    }
    found = np.empty((*operations.shape, 3), np.complex64)
    found[:] = 1, 1j, 0
    for number, name in enumerate(MOVES):
        np.copyto(found, np.stack(kinds[name], -1), where=(operations == number)[..., None], casting="same_kind")
    return found


def apply_policy(views: Tensor, operations: Tensor, strengths: Tensor, moves: Tensor, *, whole: bool) -> Tensor:
    """All that `operations` do to rendered views, (B, 3, R, R), but for a first move: they were sampled by that.

    `moves`: complex64 (B, K, 3), the warps; `whole` as in change_some.
    """
    for place in range(operations.shape[1]):
        drawn, strength = operations[:, place], strengths[:, place]
        if place:
            is_move = (drawn > 0) & (drawn < len(MOVES))
            views = colour.change_some(views, is_move, _move, moves[:, place], whole=whole)
        for number, change in enumerate(CHANGES.values(), start=len(MOVES)):
            views = colour.change_some(views, drawn == number, change, strength, whole=whole)
    return views


def _move(views: Tensor, warp: Tensor) -> Tensor:
    return warps.sample(views.contiguous(memory_format=torch.contiguous_format), warp, views.shape[-1])
