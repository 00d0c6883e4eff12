"""Changes of colour of whole batches: each image its own strength, each change as torchvision defines it.

Images are float32 (B, 3, R, R) in 0..1, and stay so. A strength is float32 (B,); a factor of 1 changes nothing.
Nothing here waits for a GPU, so that a captured step may do all of it.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Change = Callable[[Tensor, Tensor], Tensor]
"""Images and strengths → images."""

SIGMAS = 3
"""standard deviations after which the blur's kernel ends"""


def change_some(images: Tensor, chosen: Tensor, change: Change, strength: Tensor, *, whole: bool) -> Tensor:
    """`images`, with a `change` of those that are `chosen`, bool (B,).

    With `whole`, all are changed and the chosen ones kept, because a captured step does the same whatever was drawn.
    Without it, only the chosen ones cost time; the host reads which.
    """
    if whole:
        return torch.where(chosen.view(-1, 1, 1, 1), change(images, strength), images)
    if not chosen.any():
        return images
    return images.index_copy(0, places := chosen.nonzero().squeeze(1), change(images[places], strength[places]))


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    return (images * _spread(factor)).clamp(0, 1)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    return _blend(images, _luma(images).mean((1, 2, 3), keepdim=True), factor)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    return _blend(images, _luma(images), factor)


def hue(images: Tensor, turn: Tensor) -> Tensor:
    """`turn`: −0.5..0.5, share of the colour circle; the rest of HSV stays."""
    value, lowest = images.amax(1), images.amin(1)
    chroma = value - lowest
    red, green, blue = ((value.unsqueeze(1) - images) / chroma.masked_fill(chroma == 0, 1).unsqueeze(1)).unbind(1)
    is_red, is_green = images[:, 0] == value, images[:, 1] == value
    sixths = torch.where(is_red, blue - green, torch.where(is_green, 2 + red - blue, 4 + green - red))
    sixths = sixths + 6 * turn.view(-1, 1, 1)
    channels = []
    for offset in (5, 3, 1):  # from HSV: v − c·max(0, min(k, 4 − k, 1)) with k = (offset + 6h) mod 6
        place = (sixths + offset).remainder(6)
        channels.append(value - chroma * torch.minimum(place, 4 - place).clamp(0, 1))
    return torch.stack(channels, 1)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Away from the mean of 3×3 pixels whose middle counts five times; the border stays."""
    if images.shape[-1] <= 2:
        return images
    middle = images[..., 1:-1, 1:-1]
    smooth = F.pad((F.avg_pool2d(images, 3, stride=1) * 9 + middle * 4) / 13 - middle, (1, 1, 1, 1))
    return (images + smooth * (1 - _spread(factor))).clamp(0, 1)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """The highest `bits`, 1..8, of the eight bits of each value."""
    step = torch.exp2(8 - _spread(bits))
    return (_bytes(images) / step).floor() * step / 255


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """The negative of values from `threshold`, 0..1, on."""
    return torch.where(images >= _spread(threshold), 1 - images, images)


def autocontrast(images: Tensor, _: Tensor) -> Tensor:
    """Each channel stretched to 0..1."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    flat = low == high
    return (images - low.masked_fill(flat, 0)) / (high - low).masked_fill(flat, 1)


def equalize(images: Tensor, _: Tensor) -> Tensor:
    """Each channel with a flat histogram, as Pillow does it: 256 bins, the step rounded down."""
    values = _bytes(images).long().flatten(2)
    counts = torch.zeros(*values.shape[:2], 256, dtype=torch.int64, device=images.device)
    counts.scatter_add_(2, values, torch.ones_like(values))
    up_to = counts.cumsum(2)
    brightest = counts.gather(2, values.amax(2, keepdim=True))
    step = (values.shape[2] - brightest) // 255
    below = F.pad(up_to[..., :-1], (1, 0))
    table = ((below + step // 2) // step.clamp_min(1)).clamp(0, 255)
    equalized = torch.where(step == 0, values, table.gather(2, values))
    return (equalized / 255).view_as(images)


def grey(images: Tensor, _: Tensor) -> Tensor:
    return _luma(images).expand_as(images)


def blur(images: Tensor, sigma: Tensor, most: float) -> Tensor:
    """Gaussian of `sigma`, share of the side, `most` at most; the border is mirrored."""
    count, channels, side, _ = images.shape
    radius = max(1, min(math.ceil(SIGMAS * most * side), side - 1))
    places = torch.arange(-radius, radius + 1, device=images.device)
    kernels = (-((places / (sigma.unsqueeze(1) * side)) ** 2) / 2).softmax(1)
    groups = count * channels
    kernels = kernels.unsqueeze(1).expand(-1, channels, -1).reshape(groups, 1, -1)
    padded = F.pad(images, (radius,) * 4, mode="reflect").reshape(1, groups, side + 2 * radius, -1)
    rows = F.conv2d(padded, kernels.unsqueeze(3), groups=groups)
    return F.conv2d(rows, kernels.unsqueeze(2), groups=groups).view(count, channels, side, side)


def _spread(strength: Tensor) -> Tensor:
    return strength.view(-1, 1, 1, 1)


def _blend(images: Tensor, others: Tensor, factor: Tensor) -> Tensor:
    """All of `images` at 1, all of `others` at 0, and beyond 1 away from them."""
    share = _spread(factor)
    return (images * share + others * (1 - share)).clamp(0, 1)


def _luma(images: Tensor) -> Tensor:
    """(B, 1, R, R): the brightness of ITU-R 601."""
    red, green, blue = images.unbind(1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).unsqueeze(1)


def _bytes(images: Tensor) -> Tensor:
    """0..255, whole numbers, as float32."""
    return (images * 255).round()
