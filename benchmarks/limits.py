"""How far a training speed is from what the device could do: floating-point operations and bytes of one image."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

ELEMENT_BYTES = 2
"""bfloat16"""


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


def measure_limits(network: nn.Module, size: int, device: str, extra_flop: float = 0.0) -> Limits:
    """Limits of training `network` on images of `size` px; `extra_flop` an image is added (a live teacher's)."""
    image = torch.rand(1, 3, size, size)
    with FlopCounterMode(display=False) as counter:
        network(image.requires_grad_()).sum().backward()
    moved = 3 * ELEMENT_BYTES * count_elements(network, image.detach())
    return Limits(counter.get_total_flops() + extra_flop, moved, _peak_flop_s(device), _peak_bytes_s(device))


def count_forward_flop(network: nn.Module, size: int) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.rand(1, 3, size, size))
    return float(counter.get_total_flops())


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


def _peak_flop_s(device: str) -> float:
    side = 2048 if device == "cpu" else 8192
    a, b = (torch.rand(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / _seconds(lambda: a @ b, device)


def _peak_bytes_s(device: str) -> float:
    source = torch.rand(2**26, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _seconds(lambda: target.copy_(source), device)


def _seconds(work: Callable[[], object], device: str, runs: int = 5) -> float:
    """The least time of some runs after a warm-up: what the device can do when nothing is in the way."""
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        work()
        if device != "cpu":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])
