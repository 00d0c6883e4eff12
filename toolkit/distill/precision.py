"""The choice of fp32 or bfloat16: measured on this device with this network, not assumed (int8: quantized.py).

What was measured is remembered for the rest of the process: no stage, no seed and no forecast measures it again.
"""

import functools
import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

import torch

from toolkit import console
from toolkit.distill import distributed
from toolkit.networks import registry
from toolkit.networks.classifier import Classifier
from toolkit.networks.small_maps import place

ROUNDS = 3
"""timed calls of a candidate, at most"""
ENOUGH_CALLS = 2
"""timed calls of a step whose time a forecast uses"""
GIVE_UP = 2.0
"""times the best candidate's time per image; a candidate gets no further call after one that took longer"""
CHOICE_S, CHOICE_SHARE = 3.0, 0.02
"""s that a choice may take, and share of the work that it is for: no call begins once either is spent"""

MAX_BATCH = 128
BATCH_PIXELS, GPU_BATCH_PIXELS = 2**19, 2**21
"""px in the timed batch, 8 or 32 images of 256 px: fewer are slower per image, and more are not needed"""
FIRST_PIXELS = 2**17
"""px in the first try, 2 images of 256 px: a candidate that takes fifteen times as long as the other costs seconds"""

FloatArithmetic = Literal["fp32", "bf16"]
Arithmetic = Literal["fp32", "bf16", "int8"]
"""int8 is for teachers alone."""


Name = TypeVar("Name", bound=str)


def has_fast_bf16(device: str) -> bool:
    """Whether `device` has instructions for bfloat16; without them a product takes many times fp32's time."""
    if device == "cpu":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return torch.cuda.get_device_capability(device)[0] >= 8


def has_tf32_convolutions(device: str) -> bool:
    """Whether convolutions in fp32 round their factors to TF32's 10 bits: what cuDNN does on GPUs that have it."""
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    tf32 = device.startswith("cuda") and convolutions.fp32_precision == "tf32"
    return tf32 and torch.cuda.get_device_capability(device)[0] >= 8


def autocast(device: str, precision: Arithmetic) -> AbstractContextManager[None]:
    """Run matrix work in `precision` on `device`; weights stay fp32."""
    return torch.autocast(device.partition(":")[0], dtype=torch.bfloat16, enabled=precision == "bf16")


@dataclass(frozen=True)
class NetworkStep:
    """One kind of step: `network`, on a device, forward through a batch, and backward if it is `training`.

    `image_size`: px.
    """

    network: Classifier
    batch_size: int
    image_size: int
    device: str
    training: bool = True

    def key(self, *more: object) -> tuple[object, ...]:
        """All that its time depends on: the network's layers and their sizes (not its weights), the step, `more`."""
        network = (repr(self.network), registry.enlargement(self.network.network))
        return (*network, self.batch_size, self.image_size, self.device, self.training, *more)

    def take(self, views: torch.Tensor, precision: FloatArithmetic) -> None:
        """Take the step once, to its end on the device."""
        with torch.set_grad_enabled(self.training), autocast(self.device, precision):
            logits = self.network(views)
        if self.training:
            logits.float().square().mean().backward()
        if self.device != "cpu":
            torch.cuda.synchronize(self.device)


def choose_precision(
    wanted: Literal["auto", "fp32", "bf16"],
    step: NetworkStep,
    *,
    images: float = math.inf,
    clock: Callable[[], float] = time.perf_counter,
    say: bool = True,
) -> FloatArithmetic:
    """`wanted`, or for `auto` the one of the two in which `step` is faster.

    bfloat16 is only tried if the device has instructions for it. `images` is how many are to come: for few
    images, the choice is quick (`least_times`). Several processes take the main one's choice. The network's weights and
    statistics are left as they were. The measurement is printed once, for the first caller with `say`.
    """
    device = step.device
    if wanted != "auto":
        if say and wanted == "fp32" and has_tf32_convolutions(device):
            _say_once(f"precision: {_describe(wanted, device)} on {device}")
        return wanted
    if not has_fast_bf16(device):
        if say:
            _say_once(f"precision: fp32, because the {device} has no instructions for bfloat16")
        return "fp32"
    place(step.network, device)
    key = step.key()
    if key not in _chosen:
        times = _time_steps(step, ("fp32", "bf16"), images, clock)
        _chosen[key] = min(times, key=lambda choice: times[choice])
        texts = [f"{times[choice] * 1e3:.3g} ms in {_describe(choice, device)}" for choice in times]
        _unprinted[key] = f"an image takes {', '.join(texts)}"
    if say and key in _unprinted:
        name = type(step.network.network).__name__
        purpose = f"to train {name}" if step.training else f"for {name} to teach"
        console.say(f"precision: {_describe(_chosen[key], device)} {purpose} ({_unprinted.pop(key)})")
    return _chosen[key]


def step_seconds(
    step: NetworkStep,
    precision: FloatArithmetic,
    *,
    as_trained: bool = True,
    images: float = math.inf,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """s per image of `step` in `precision`: as `choose_precision` measured it, or else measured now.

    A step that a choice called only once is called again: one call is enough for a choice, but not for a forecast.
    `as_trained` places the network as training does (small_maps.py); otherwise it is called as it is, on the step's
    device.
    """
    if as_trained:
        place(step.network, step.device)
    key = step.key(torch.get_num_threads(), precision)
    if _calls.get(key, 0) < ENOUGH_CALLS:
        _time_steps(step, (precision,), images, clock)
        _calls[key] = ENOUGH_CALLS  # or as many as there was time for
    return _step_s[key]


def forget() -> None:
    """Forget all measurements and messages: for tests, which have clocks of their own."""
    _chosen.clear()
    _unprinted.clear()
    _step_s.clear()
    _calls.clear()
    _say_once.cache_clear()


def least_times(
    works: Mapping[Name, Callable[[int], object]],
    few: int,
    many: int,
    *,
    images: float = math.inf,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Name, float]:
    """s per image of each work, which is called with a number of images; works that were given up are left out.

    Each is tried once on `few` images, which warms it up, then up to 3 times, in turns, on `many`. The least time
    counts: other work on the machine can only add. A candidate is given up after one call that took more than twice the
    best. No call begins after CHOICE_S, or CHOICE_SHARE of the time that `images` to come will take. Several processes
    see the main one's clock, and so make the same calls.
    """
    cold: dict[Name, float] = {}
    warm: dict[Name, float] = {}
    left, spent = list(works), 0.0
    for number in range(1 + ROUNDS):
        times, batch = (warm, many) if number else (cold, few)
        for name in tuple(left):
            best = min((warm or cold).values(), default=math.inf)
            if cold and spent >= min(CHOICE_S, CHOICE_SHARE * images * best):
                return _comparable(left, cold, warm)
            start = clock()
            works[name](batch)
            seconds = distributed.agree(clock() - start)
            spent += seconds
            times[name] = min(seconds / batch, times.get(name, math.inf))
            if times[name] > GIVE_UP * min(times.values()):
                left.remove(name)
        left = [name for name in left if not warm or warm[name] <= GIVE_UP * min(warm.values())]
        if len(left) == 1 < len(works):
            break  # nothing is left to choose
    return _comparable(left, cold, warm)


def _comparable(left: list[Name], cold: dict[Name, float], warm: dict[Name, float]) -> dict[Name, float]:
    """Times of the works that are left: of warm calls if every one had a warm call."""
    times = warm if all(name in warm for name in left) else cold
    return {name: times[name] for name in left if name in times}


_chosen: dict[tuple[object, ...], FloatArithmetic] = {}
_unprinted: dict[tuple[object, ...], str] = {}
"""Messages about measurements that were not printed yet."""
_step_s: dict[tuple[object, ...], float] = {}
"""s per image of a step"""
_calls: dict[tuple[object, ...], int] = {}
"""Number of warm calls; the time is the least of theirs."""


def _describe(precision: FloatArithmetic, device: str) -> str:
    return "fp32 with TF32 convolutions" if precision == "fp32" and has_tf32_convolutions(device) else precision


def _time_steps(
    step: NetworkStep, choices: tuple[FloatArithmetic, ...], images: float, clock: Callable[[], float]
) -> dict[FloatArithmetic, float]:
    """s per image in each of `choices` that was not given up, remembered; the network stays as it was."""
    network, size = step.network, step.image_size
    state = {name: value.clone() for name, value in network.state_dict().items()}
    most_pixels = BATCH_PIXELS if step.device == "cpu" else GPU_BATCH_PIXELS
    many = min(step.batch_size, MAX_BATCH, max(8, most_pixels // size**2))
    few = min(many, max(2, FIRST_PIXELS // size**2))
    views = torch.rand(many, 3, size, size, device=step.device).contiguous(memory_format=torch.channels_last)
    network.train(step.training)
    counts = dict.fromkeys(choices, 0)

    def work(choice: FloatArithmetic, count: int) -> None:
        counts[choice] += 1
        step.take(views[:count], choice)

    works = {choice: partial(work, choice) for choice in choices}
    times = least_times(works, few, many, images=images, clock=clock)
    network.load_state_dict(state)
    network.zero_grad(set_to_none=True)
    for choice, seconds in times.items():
        key = step.key(torch.get_num_threads(), choice)
        _step_s[key] = min(seconds, _step_s.get(key, math.inf)) if _calls.get(key) else seconds
        _calls[key] = _calls.get(key, 0) + counts[choice] - 1
    return times


@functools.cache
def _say_once(text: str) -> None:
    console.say(text)
