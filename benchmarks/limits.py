"""How far a training speed is from what the device could do: floating-point operations and bytes of one image."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from toolkit.distill.precision import FloatPrecision, Precision, has_fast_bf16

ELEMENT_BYTES: dict[Precision, int] = {"fp32": 4, "bf16": 2, "int8": 1}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SIDES = {"cpu": (256, 512, 1024, 2048), "gpu": (1024, 2048, 4096, 8192)}
"""Of the square matrices that are multiplied to find the peak."""
PEAK_SECONDS = 3.0
"""s after which no larger matrices are tried"""
RUNS = 5


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
        """Images a second if nothing but the tighter of the two limits held training up."""
        return min(self.peak_flop_s / self.flop, self.peak_bytes_s / self.bytes)


def measure_limits(network: nn.Module, size: int, device: str, precision: FloatPrecision) -> Limits:
    """Limits of training `network` in `precision` on images of `size` px."""
    moved = 3 * ELEMENT_BYTES[precision] * count_elements(network, torch.rand(1, 3, size, size))
    return Limits(
        count_training_flop(network, size), moved, measure_peak_flop_s(device, precision), _peak_bytes_s(device)
    )


def count_training_flop(network: nn.Module, size: int) -> float:
    """Of forward and backward pass of one image, whose own gradient is not needed; a multiply-add is 2 operations."""
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
    """Of the gradients that are `wanted` of (inputs, weight, bias); all but the last are shapes and settings.

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


def measure_peak_flop_s(
    device: str, precision: FloatPrecision, clock: Callable[[], float] = time.perf_counter
) -> float:
    """The best of matrix products of growing size, in `precision`, or in fp32 where the device has no bfloat16.

    No product is begun that would not end within PEAK_SECONDS, as far as the last one tells.
    """
    dtype = DTYPES[precision if has_fast_bf16(device) else "fp32"]
    end, best = clock() + PEAK_SECONDS, 0.0
    for side in SIDES["cpu" if device == "cpu" else "gpu"]:
        a, b = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
        seconds = _seconds(lambda a=a, b=b: a @ b, device, clock)
        best = max(best, 2 * side**3 / seconds)
        if clock() + 2**3 * seconds * (RUNS + 1) > end:  # twice the side
            break
    return best


def _peak_bytes_s(device: str) -> float:
    source = torch.rand(2**26, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _seconds(lambda: target.copy_(source), device)


def _seconds(work: Callable[[], object], device: str, clock: Callable[[], float] = time.perf_counter) -> float:
    """The least time of some runs after a warm-up: what the device can do when nothing is in the way."""
    times = []
    for _ in range(RUNS + 1):
        start = clock()
        work()
        if device != "cpu":
            torch.cuda.synchronize(device)
        times.append(clock() - start)
    return min(times[1:])
