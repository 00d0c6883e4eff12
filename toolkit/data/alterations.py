"""What happens to training views after they were sampled: policy, jitter, grey, blur, erasing, in torchvision's order.

B images of a batch, R px side of a view.
"""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from toolkit.data import colour
from toolkit.data.augment import apply_policy
from toolkit.data.boxes import coverage
from toolkit.settings import DataRecipe

JITTERED: tuple[colour.Change, ...] = (colour.brightness, colour.contrast, colour.saturation, colour.hue)
"""In the order of data.color_jitter."""


def alter(views: Tensor, drawn: Mapping[str, Tensor], recipe: DataRecipe, *, whole: bool) -> Tensor:
    """Rendered views, float32 (B, 3, R, R) in 0..1, with the changes of their draw, channels last in memory.

    `drawn`: tensors of ViewDraw.changes of these views. With `whole`, nothing depends on what was drawn but the values
    (colour.change_some).
    """
    if "operations" in drawn:
        views = apply_policy(views, drawn["operations"], drawn["strengths"], drawn["warps"], whole=whole)
    if "factors" in drawn:
        views = _jitter(views, drawn["factors"], drawn["order"], recipe, whole=whole)
    if "is_grey" in drawn:
        views = colour.change_some(views, drawn["is_grey"], colour.grey, drawn["is_grey"], whole=whole)
    if "sigma" in drawn:
        change = partial(colour.blur, most=recipe.blur_sigma[1])
        views = colour.change_some(views, drawn["is_blurred"], change, drawn["sigma"], whole=whole)
    if "erased" in drawn:
        views = erase(views, drawn["erased"], recipe.mean)
    return views.contiguous(memory_format=torch.channels_last)


def erase(views: Tensor, boxes: Tensor, fill: tuple[float, float, float]) -> Tensor:
    """`views` with the colour `fill` in their boxes, float32 (B, 4); pixels on a border by their share of the box."""
    inside = coverage(boxes, views.shape[-1])
    return views * (1 - inside) + torch.cat([inside * value for value in fill], 1)


def _jitter(views: Tensor, factors: Tensor, order: Tensor, recipe: DataRecipe, *, whole: bool) -> Tensor:
    for place in range(len(JITTERED)):
        for number, change in enumerate(JITTERED):
            if recipe.color_jitter[number]:
                chosen = order[:, place] == number
                views = colour.change_some(views, chosen, change, factors[:, number], whole=whole)
    return views
