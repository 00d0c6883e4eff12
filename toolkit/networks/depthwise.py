"""The student: the notebook's depthwise-separable network, with a choice of widths.

Block 0 is a 3×3 convolution; blocks 1 to 7 are a 3×3 depthwise and a 1×1 pointwise convolution; blocks 0 to 3 end in a
2×2 max pooling. Global average and one linear layer follow. State-dict keys are `cnn.<block>.<layer>.*` and `fc.0.*`,
those of the checkpoints published beside the notebook.
"""

import itertools
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from toolkit.errors import WeightsError

MULTIPLES = (1, 2, 4, 8, 16, 16, 16, 16)
"""Channels of each block, in multiples of `base`."""

POOLED_BLOCKS = 4
"""So many blocks from the first on halve height and width, so images need 16 px a side at least."""


class DepthwiseStudent(nn.Module):
    """float images (N, 3, H, W), already normalised, H and W ≥ 16 → logits (N, C)."""

    def __init__(self, num_classes: int, base: int = 16, width_mult: float = 1.0) -> None:
        super().__init__()
        widths = block_widths(base, width_mult)
        blocks = [_plain_block(widths[0])]
        for i, (before, after) in enumerate(itertools.pairwise(widths), start=1):
            blocks.append(_separable_block(before, after, pooled=i < POOLED_BLOCKS))
        self.cnn = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1))
        self.fc = nn.Sequential(nn.Linear(widths[-1], num_classes))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(torch.flatten(self.cnn(images), 1))
        return logits


def block_widths(base: int, width_mult: float) -> tuple[int, ...]:
    """Channels of the eight blocks: base·multiple, times width_mult for all but the first and the last.

    A scaled width is rounded to the nearest integer, halves up, and is 1 at least.
    """
    first, *middle, last = (base * multiple for multiple in MULTIPLES)
    return (first, *(max(1, math.floor(width * width_mult + 0.5)) for width in middle), last)


def infer_student(state_dict: Mapping[str, Tensor]) -> tuple[int, int, float]:
    """num_classes, base and width_mult of the DepthwiseStudent that such a state dict belongs to.

    Of all width_mult that round to these widths it is the one with the fewest decimals. Raises WeightsError if the
    keys or widths do not belong to such a network.
    """
    widths = []
    for block in range(len(MULTIPLES)):
        weight = state_dict.get(f"cnn.{block}.{0 if block == 0 else 3}.weight")
        if weight is None or weight.ndim != 4:
            raise _not_a_student(f"there is no convolution cnn.{block}")
        widths.append(int(weight.shape[0]))
    head = state_dict.get("fc.0.weight")
    if head is None or head.ndim != 2:
        raise _not_a_student("there is no linear layer fc.0")
    base = widths[0]
    width_mult = _shortest_multiplier(base, tuple(widths))
    return int(head.shape[0]), base, width_mult


def _shortest_multiplier(base: int, widths: tuple[int, ...]) -> float:
    middle = list(zip(widths[1:-1], (base * multiple for multiple in MULTIPLES[1:-1]), strict=True))
    least = max((width - 0.5) / full if width > 1 else 0.0 for width, full in middle)
    for digits in range(1, 13):
        unit: int = 10**digits
        lowest = math.ceil(least * unit)
        for candidate in (lowest / unit, (lowest + 1) / unit):
            if candidate > 0 and block_widths(base, candidate) == widths:
                return candidate
    raise _not_a_student(f"the widths {widths} are not multiples of base {base}")


def _not_a_student(reason: str) -> WeightsError:
    return WeightsError(
        f"these are not the weights of a depthwise student: {reason}",
        "export other networks from a model directory, whose weights name their architecture",
    )


def _plain_block(width: int) -> nn.Sequential:
    # The notebook pools after the activation; as ReLU6 never falls, the same comes out, at a quarter of its cost.
    return nn.Sequential(
        nn.Conv2d(3, width, kernel_size=3, padding=1), nn.BatchNorm2d(width), nn.MaxPool2d(2), nn.ReLU6()
    )


def _separable_block(before: int, after: int, *, pooled: bool) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(before, before, kernel_size=3, padding=1, groups=before),
        nn.BatchNorm2d(before),
        nn.ReLU6(),
        nn.Conv2d(before, after, kernel_size=1),
    ]
    return nn.Sequential(*layers, nn.MaxPool2d(2)) if pooled else nn.Sequential(*layers)
