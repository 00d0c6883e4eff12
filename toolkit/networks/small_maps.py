"""Convolutions on maps of a few places, as matrix products. Small images leave such maps in a network's last layers.

oneDNN's convolutions are made for large maps. On a CPU, a 3×3 convolution of a 2×2 map took up to ten times as long as
one product over all pairs of an input and an output place, with the same sums. Padding costs nothing there.
Shapes: N images, I and O channels, H W places of the input map, Q = H·W, P places of the output map.
"""

import functools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MAX_PAIRS = 64
"""Q·P up to which a product over all pairs is faster: 2×2 → 2×2 is 16, 4×4 → 2×2 (stride 2) is 64."""

MAX_PLACES = 16
"""Places of a map up to which a 1×1 convolution is faster as a linear layer."""

Geometry = tuple[int, int, int, int, int, int, int, int]
"""Height and width of the input map, of the kernel, of the stride, and of the padding."""

Pair = tuple[int, int, int, int]
"""Input place q, output place p, and the row and column of the kernel that joins them."""


class SmallMapConv2d(nn.Conv2d):
    """nn.Conv2d with the same weights and answers (up to rounding) that is quicker on small maps on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        return self._convolve_small(input) if self._is_small(input) else super().forward(input)

    def _is_small(self, input: Tensor) -> bool:
        if input.device.type != "cpu" or torch.compiler.is_compiling():
            return False
        if self._is_pointwise():
            return input.shape[2] * input.shape[3] <= MAX_PLACES
        pairs = input.shape[2] * input.shape[3] * math.prod(output_size(self._geometry(input)))
        return 0 < pairs <= MAX_PAIRS

    def _convolve_small(self, input: Tensor) -> Tensor:
        if self._is_pointwise():
            # channels last, so that the gradient has the weight's layout in memory
            weight = self.weight.permute(0, 2, 3, 1).flatten(1)
            return F.linear(input.permute(0, 2, 3, 1), weight, self.bias).permute(0, 3, 1, 2)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else input.dtype
        product: Any = _DepthwiseProduct if self.groups > 1 else _DenseProduct
        output: Tensor = product.apply(input.to(dtype), self.weight, self._geometry(input))
        return output if self.bias is None else output + self.bias.to(dtype).view(1, -1, 1, 1)

    def _is_pointwise(self) -> bool:
        return self.kernel_size == (1, 1) and self.stride == (1, 1) and self.padding == (0, 0) and self.groups == 1

    def _geometry(self, input: Tensor) -> Geometry:
        height, width = input.shape[2:]
        return (height, width, *self.kernel_size, *self.stride, *self.padding)


def place(network: nn.Module, device: str) -> None:
    """Move `network` to `device`, channels last in memory, and on a CPU make its convolutions quicker on small maps."""
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if device == "cpu":
        use_small_map_convolutions(network)


def use_small_map_convolutions(network: nn.Module) -> None:
    """Make every supported convolution of `network` a SmallMapConv2d, in place. The state dict does not change."""
    for module in network.modules():
        if type(module) is nn.Conv2d and _is_supported(module):
            module.__class__ = SmallMapConv2d


def _is_supported(layer: nn.Conv2d) -> bool:
    plain = layer.groups == 1 or layer.groups == layer.in_channels == layer.out_channels
    numbers = not isinstance(layer.padding, str) and layer.padding_mode == "zeros"
    return plain and numbers and layer.dilation == (1, 1)


def output_size(geometry: Geometry) -> tuple[int, int]:
    """Height and width of a convolution's output map."""
    height, width, kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w = geometry
    return (height + 2 * padding_h - kernel_h) // stride_h + 1, (width + 2 * padding_w - kernel_w) // stride_w + 1


@functools.lru_cache(maxsize=256)
def pair_places(geometry: Geometry) -> tuple[Pair, ...]:
    """Every pair of an input and an output place that a kernel's element joins; places are numbered row by row."""
    height, width, kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w = geometry
    rows, columns = output_size(geometry)
    return tuple(
        ((top + i) * width + left + j, row * columns + column, i, j)
        for row, top in ((row, row * stride_h - padding_h) for row in range(rows))
        for column, left in ((column, column * stride_w - padding_w) for column in range(columns))
        for i in range(kernel_h)
        for j in range(kernel_w)
        if 0 <= top + i < height and 0 <= left + j < width
    )


class _DenseProduct(torch.autograd.Function):
    """(N, I, H, W) and weights (O, I, k, k) → (N, O, ...), as one product with a matrix (P·O, Q·I)."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
        outputs, inputs = weight.shape[:2]
        size = output_size(geometry)
        # a weight's order in memory, channels last, so that whole rows are copied and nothing is transposed
        matrix = maps.new_zeros(math.prod(size), outputs, geometry[0] * geometry[1], inputs)
        for q, p, i, j in pair_places(geometry):
            matrix[p, :, q].copy_(weight[:, :, i, j])
        matrix = matrix.view(math.prod(size) * outputs, -1)
        rows = _rows(maps).flatten(1)
        ctx.save_for_backward(rows, matrix)
        ctx.geometry, ctx.weight_shape, ctx.weight_dtype = geometry, weight.shape, weight.dtype
        return (rows @ matrix.t()).view(len(maps), *size, outputs).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        rows, matrix = ctx.saved_tensors
        outputs, inputs, kernel_h, kernel_w = ctx.weight_shape
        height, width = ctx.geometry[:2]
        gradients = _rows(gradient).flatten(1).to(rows.dtype)
        of_maps = of_weight = None
        if ctx.needs_input_grad[0]:
            of_maps = (gradients @ matrix).view(-1, height, width, inputs).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[1]:
            of_matrix = (gradients.t() @ rows).view(-1, outputs, height * width, inputs)
            by_element = torch.zeros(outputs, kernel_h, kernel_w, inputs, dtype=ctx.weight_dtype)
            for q, p, i, j in pair_places(ctx.geometry):
                by_element[:, i, j] += of_matrix[p, :, q]
            of_weight = by_element.permute(0, 3, 1, 2)
        return of_maps, of_weight, None


class _DepthwiseProduct(torch.autograd.Function):
    """(N, I, H, W) and weights (I, 1, k, k) → (N, I, ...), each channel by itself, in the weights' arithmetic."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
        size = output_size(geometry)
        factors = weight.new_zeros(geometry[0] * geometry[1], math.prod(size), len(weight))
        for q, p, i, j in pair_places(geometry):
            factors[q, p] = weight[:, 0, i, j]
        rows = _rows(maps).to(weight.dtype)
        ctx.save_for_backward(rows, factors)
        ctx.geometry, ctx.weight_layout, ctx.dtype = geometry, (weight.shape, weight.stride()), maps.dtype
        output = _add_products(rows, factors)
        return output.to(maps.dtype).view(len(maps), *size, len(weight)).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        rows, factors = ctx.saved_tensors
        gradients = _rows(gradient).to(rows.dtype)
        of_maps = of_weight = None
        if ctx.needs_input_grad[0]:
            height, width = ctx.geometry[:2]
            products = _add_products(gradients, factors.transpose(0, 1)).to(ctx.dtype)
            of_maps = products.view(-1, height, width, rows.shape[2]).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[1]:
            of_factors = torch.stack([(rows[:, q : q + 1] * gradients).sum(0) for q in range(rows.shape[1])])
            # the same layout in memory as the weight's
            of_weight = torch.empty_strided(*ctx.weight_layout, dtype=rows.dtype).zero_()
            for q, p, i, j in pair_places(ctx.geometry):
                of_weight[:, 0, i, j] += of_factors[q, p]
        return of_maps, of_weight, None


def _rows(maps: Tensor) -> Tensor:
    """(N, I, H, W) → (N, H·W, I), without a copy if channels are last in memory."""
    return maps.permute(0, 2, 3, 1).flatten(1, 2)


def _add_products(rows: Tensor, factors: Tensor) -> Tensor:
    """Σ over q of rows[:, q] · factors[q]: (N, Q, I) and (Q, P, I) → (N, P, I)."""
    total = rows[:, :1] * factors[0]
    for q in range(1, rows.shape[1]):
        total.addcmul_(rows[:, q : q + 1], factors[q])
    return total
