"""fp32 or bfloat16: measured on this device with this network, not assumed (int8: quantized.py)."""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Literal, TypeVar

import torch

from toolkit import console
from toolkit.distill import distributed
from toolkit.networks.classifier import Classifier

ROUNDS = 3
MAX_BATCH = 128
BATCH_PIXELS = 2**21
"""px in the timed batch: 32 images of 256 px, so that the choice takes seconds at any size"""

FloatPrecision = Literal["fp32", "bf16"]
Precision = Literal["fp32", "bf16", "int8"]
"""int8 is a teacher's alone."""


Name = TypeVar("Name", bound=str)


def has_fast_bf16(device: str) -> bool:
    """Whether `device` has instructions for bfloat16; without them a product takes many times fp32's time."""
    if device == "cpu":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def autocast(device: str, precision: Precision) -> AbstractContextManager[None]:
    """Run matrix work in `precision` on `device`; weights stay fp32."""
    return torch.autocast(device.partition(":")[0], dtype=torch.bfloat16, enabled=precision == "bf16")


def choose_precision(
    wanted: Literal["auto", "fp32", "bf16"],
    network: Classifier,
    batch_size: int,
    image_size: int,
    device: str,
    *,
    training: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> FloatPrecision:
    """`wanted`, or for `auto` the faster of the two for a step of `network`: forward, and backward where `training`.

    Timed in turn, the best of 3 after a warm-up; several processes take the main one's choice. The network's weights
    and statistics are left as they were.
    """
    if wanted != "auto":
        return wanted
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    state = {name: value.clone() for name, value in network.state_dict().items()}
    batch_size = min(batch_size, MAX_BATCH, max(8, BATCH_PIXELS // image_size**2))
    views = torch.rand(batch_size, 3, image_size, image_size, device=device)
    views = views.contiguous(memory_format=torch.channels_last)
    network.train(training)
    choices: tuple[FloatPrecision, ...] = ("fp32", "bf16")
    least = least_times({choice: partial(_step, network, views, choice, device, training) for choice in choices}, clock)
    network.load_state_dict(state)
    network.zero_grad(set_to_none=True)
    faster = distributed.agree(min(choices, key=lambda choice: least[choice]))
    console.say(
        f"precision: {faster} to {'train' if training else 'teach'} ({len(views)} images take"
        f" {least['fp32'] * 1e3:.0f} ms in fp32, {least['bf16'] * 1e3:.0f} ms in bf16)"
    )
    return faster


def least_times(
    steps: Mapping[Name, Callable[[], object]], clock: Callable[[], float] = time.perf_counter
) -> dict[Name, float]:
    """Seconds that each step takes: the least of 3, as other work on the machine can only add; in turns, warmed up."""
    times: dict[Name, list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS + 1):
        for name, step in steps.items():
            start = clock()
            step()
            times[name].append(clock() - start)
    return {name: min(values[1:]) for name, values in times.items()}


def _step(network: Classifier, views: torch.Tensor, precision: FloatPrecision, device: str, training: bool) -> None:
    with torch.set_grad_enabled(training), autocast(device, precision):
        logits = network(views)
    if training:
        logits.float().square().mean().backward()
    if device != "cpu":
        torch.cuda.synchronize(device)
