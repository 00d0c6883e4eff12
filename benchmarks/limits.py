"""The limits of training speed on a device: floating-point operations and bytes of one image."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from toolkit.distill.precision import Arithmetic, FloatArithmetic
from toolkit.doctor.ceilings import copy_bytes_s, product_flop_s

ELEMENT_BYTES: dict[Arithmetic, int] = {"fp32": 4, "bf16": 2, "int8": 1}


@dataclass(frozen=True)
class Limits:
    """`flop` and `bytes` of one training image; peaks as measured on this device with a product and a copy.

    `bytes` is a lower bound: every layer reads its input and writes its output once in the forward pass, and twice as
    much in the backward pass (gradients of inputs, and of weights, which read the input again).
    """

    flop: float
    bytes: float
    peak_flop_s: float
    peak_bytes_s: float

    @property
    def images_s(self) -> float:
        """Images per second if nothing but the tighter of the two limits held training up."""
        return min(self.peak_flop_s / self.flop, self.peak_bytes_s / self.bytes)


def measure_limits(network: nn.Module, size: int, device: str, precision: FloatArithmetic) -> Limits:
    """Limits of training `network` in `precision` on images of `size` px."""
    moved = 3 * ELEMENT_BYTES[precision] * count_elements(network, torch.rand(1, 3, size, size))
    return Limits(count_training_flop(network, size), moved, product_flop_s(device, precision), copy_bytes_s(device))


def count_training_flop(network: nn.Module, size: int) -> float:
    """Operations of a training image, which needs no gradient itself: forward, backward; a multiply-add is 2."""
    with _flop_counter() as counter:
        network(torch.rand(1, 3, size, size)).sum().backward()
    return float(counter.get_total_flops())


def count_forward_flop(network: nn.Module, size: int) -> float:
    with _flop_counter() as counter, torch.no_grad():
        network(torch.rand(1, 3, size, size))
    return float(counter.get_total_flops())


def _flop_counter() -> FlopCounterMode:
    return FlopCounterMode(
        display=False, custom_mapping={torch.ops.aten.convolution_backward: _count_convolution_backward}
    )


def _count_convolution_backward(
    gradient: Sequence[int],
    inputs: Sequence[int],
    weight: Sequence[int],
    bias: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    wanted: Sequence[bool],
    **rest: object,
) -> int:
    """Operations of the `wanted` gradients of (inputs, weight, bias); all but the last are shapes and settings.

    Each of the first two costs what the forward pass does, groups or not, as a weight has (channels out, channels in of
    one group, height, width). torch's own formula takes the gradient of the weight as if there were one group.
    """
    positions = inputs[2:] if transposed else gradient[2:]
    return 2 * gradient[0] * math.prod(positions) * math.prod(weight) * sum(wanted[:2])


@torch.no_grad()
def count_elements(network: nn.Module, image: Tensor) -> int:
    """Numbers that go into and come out of the network's layers for one image."""
    total = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        total += inputs[0].numel() + output.numel()

    hooks = [layer.register_forward_hook(count) for layer in network.modules() if not list(layer.children())]
    network(image)
    for hook in hooks:
        hook.remove()
    return total
