"""Random boxes within images, in shares of their sides: of a resized crop, of what is erased, of what CutMix pastes.

B images of a batch, R px side of a rendered view. A box is (top, left, bottom, right), each 0..1.
"""

import numpy as np
import torch
from torch import Tensor

ATTEMPTS = 10
"""boxes that are drawn, as torchvision does it; the first one that fits is taken"""
NUMBERS = 2 * ATTEMPTS + 2
"""uniform numbers that a box takes: an area and a ratio per attempt, and a place"""

Bounds = tuple[float, float]
"""The least and the largest value."""


def draw_boxes(chance: np.ndarray, scale: Bounds, ratio: Bounds, shape: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes, float64 (B, 4), and whether one fitted, bool (B,); others lie in the centre, as large as they may.

    This is torchvision's RandomResizedCrop.get_params without the rounding to pixels. `chance`: uniform numbers,
    (B, NUMBERS). `scale`: share of the image's area, uniform; `ratio`: width over height, log-uniform. `shape`: width
    over height of each image, float64 (B,).
    """
    attempts = chance[:, : 2 * ATTEMPTS].reshape(-1, ATTEMPTS, 2)
    area = scale[0] + attempts[..., 0] * (scale[1] - scale[0])
    ratios = ratio[0] * (ratio[1] / ratio[0]) ** attempts[..., 1]
    heights, widths = np.sqrt(area * shape[:, None] / ratios), np.sqrt(area * ratios / shape[:, None])
    fits = (heights <= 1) & (widths <= 1)
    chosen = np.arange(len(chance)), fits.argmax(1)
    fitted = fits.any(1)
    height = np.where(fitted, heights[chosen], np.minimum(1, shape / ratio[0]))
    width = np.where(fitted, widths[chosen], np.minimum(1, ratio[1] / shape))
    place = np.where(fitted[:, None], chance[:, 2 * ATTEMPTS : NUMBERS], 0.5)
    top, left = place[:, 0] * (1 - height), place[:, 1] * (1 - width)
    return np.stack((top, left, top + height, left + width), axis=1), fitted


def coverage(boxes: Tensor, side: int) -> Tensor:
    """float32 (B, 1, R, R): the share of each pixel that lies in its image's box; its mean is the box's area."""
    edges = torch.arange(side + 1, device=boxes.device) / side
    start, end = boxes[:, :2].unsqueeze(2), boxes[:, 2:].unsqueeze(2)
    covered = (torch.minimum(edges[1:], end) - torch.maximum(edges[:-1], start)).clamp_min(0) * side
    down, across = covered.unbind(1)
    return (down.unsqueeze(2) * across.unsqueeze(1)).unsqueeze(1)
