"""fp32 or bfloat16: measured on this device with this network, not assumed."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Literal

import torch

from toolkit import console
from toolkit.distill import distributed
from toolkit.networks.classifier import Classifier

ROUNDS = 3
MAX_BATCH = 128
BATCH_PIXELS = 2**21
"""px in the timed batch: 32 images of 256 px, so that the choice takes seconds at any size"""

Precision = Literal["fp32", "bf16"]


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
) -> Precision:
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
    choices: tuple[Precision, ...] = ("fp32", "bf16")
    times: dict[Precision, list[float]] = {choice: [] for choice in choices}
    for _ in range(ROUNDS + 1):
        for choice in choices:
            start = clock()
            _step(network, views, choice, device, training)
            times[choice].append(clock() - start)
    network.load_state_dict(state)
    network.zero_grad(set_to_none=True)
    # the least of the times: other work on the machine can only add to a step
    least = {choice: min(times[choice][1:]) for choice in choices}
    faster = distributed.agree(min(choices, key=lambda choice: least[choice]))
    console.say(
        f"precision: {faster} to {'train' if training else 'teach'} ({len(views)} images take"
        f" {least['fp32'] * 1e3:.0f} ms in fp32, {least['bf16'] * 1e3:.0f} ms in bf16)"
    )
    return faster


def _step(network: Classifier, views: torch.Tensor, precision: Precision, device: str, training: bool) -> None:
    with torch.set_grad_enabled(training), autocast(device, precision):
        logits = network(views)
    if training:
        logits.float().square().mean().backward()
    if device != "cpu":
        torch.cuda.synchronize(device)
