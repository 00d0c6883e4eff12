"""Flips, rotations, shears and translations of whole batches, as one bilinear sampling step.

A warp says where the pixels of a view come from: complex64 (B, 2) or (B, 3), x + iy. Places run from −1 to 1 along each
side, so that a warp is the same at any size; y points down. The pixel at x + iy comes from x·w₀ + y·w₁ + w₂; without a
w₂ from x·w₀ + y·w₁. B images of a batch, S px side of a crop, R px side of the view as it is rendered.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def flip_and_turn(flip: np.ndarray, angle: np.ndarray) -> Tensor:
    """Flipped if `flip`, bool (B,), says so, and then turned by `angle`, float64 (B,), degrees, counter-clockwise.

    A pixel at x + iy comes from (x + iy)·e^{iθ}, with the angle θ: the inverse turn, because y points down. If `flip`
    is set, it comes from (−x + iy)·e^{−iθ}, the mirror image of that: crops are flipped before they turn.
    """
    sign = torch.from_numpy(1 - 2 * flip.astype(np.float32))
    turn = torch.polar(torch.ones_like(sign), sign * torch.from_numpy(np.deg2rad(angle)).float())
    return torch.stack((sign * turn, 1j * turn), dim=1)


def follow(first: Tensor, second: Tensor) -> Tensor:
    """One warp for `first`, (B, 2), and `second`, (B, 3), on what comes out of it."""
    return second.real * first[:, :1] + second.imag * first[:, 1:2]


def sample(planes: Tensor, warp: Tensor, side: int) -> Tensor:
    """Crops, float32 (B, 3, S, S) → views, (B, 3, R, R), R = `side` px; what comes from outside the crop is black."""
    return F.grid_sample(planes, _grid(warp, side), mode="bilinear", padding_mode="zeros", align_corners=False)


def _grid(warp: Tensor, side: int) -> Tensor:
    """Each view's pixels' places in the crop, float32 (B, R, R, 2), (x, y) in −1..1; on the device of `warp`."""
    places = (torch.arange(side, device=warp.device) * 2 + 1) / side - 1
    across, down, *moved = warp.view(*warp.shape, 1, 1).unbind(1)
    grid = places.view(1, 1, -1) * across + places.view(1, -1, 1) * down
    return torch.view_as_real(grid + moved[0] if moved else grid)
