"""The peak speeds of a device: products of matrices, copies in its memory, copies from the host.

The best of some runs counts: the speed that the device reaches if nothing disturbs it.
"""

import operator
import time
from collections.abc import Callable
from functools import partial

import torch

from toolkit.distill.precision import FloatArithmetic, has_fast_bf16

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SIDES = {"cpu": (256, 512, 1024, 2048), "gpu": (1024, 2048, 4096, 8192)}
"""Sides of the square matrices whose products give the peak."""
PEAK_SECONDS = 3.0
"""s after which no larger matrix is tried"""
COPY_BYTES = {"cpu": 2**28, "gpu": 2**30}
"""Bytes of a copy: far more than the caches of an H100 (50 MB) and of a server (300 MB)"""
BUS_BYTES = 2**26
QUEUED = 8
"""copies on a GPU between two readings of the clock, so that none waits for its launch"""
RUNS = 5

Clock = Callable[[], float]


def product_flop_s(
    device: str, precision: FloatArithmetic, clock: Clock = time.perf_counter, limit_s: float = PEAK_SECONDS
) -> float:
    """The best of matrix products of growing size, in `precision`, or in fp32 if the device has no bfloat16.

    A product is skipped if it would not end within `limit_s`, judged by the one before it.
    """
    dtype = DTYPES[precision if has_fast_bf16(device) else "fp32"]
    end, best = clock() + limit_s, 0.0
    for side in SIDES[_kind(device)]:
        a, b = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
        seconds = least_seconds(partial(operator.matmul, a, b), device, clock=clock)
        best = max(best, 2 * side**3 / seconds)
        if clock() + 2**3 * seconds * (RUNS + 1) > end:  # twice the side
            break
    return best


def copy_bytes_s(device: str) -> float:
    """Bytes per second that a copy in the device's memory reads and writes, together."""
    source = torch.empty(COPY_BYTES[_kind(device)], dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source)
    calls = 1 if device == "cpu" else QUEUED
    return 2 * source.nbytes / least_seconds(lambda: target.copy_(source), device, calls)


def bus_bytes_s(device: str, *, pinned: bool) -> float:
    """Bytes per second from the host's memory to a GPU's; faster from `pinned` pages, which the system never moves."""
    host = torch.empty(BUS_BYTES, dtype=torch.uint8, pin_memory=pinned).fill_(1)
    target = torch.empty_like(host, device=device)
    return host.nbytes / least_seconds(lambda: target.copy_(host, non_blocking=pinned), device, QUEUED)


def launch_seconds(device: str) -> float:
    """s from one small kernel to the next: the least cost of a kernel."""
    tiny = torch.zeros(1, device=device)
    return least_seconds(lambda: tiny.add_(1), device, calls=500)


def least_seconds(work: Callable[[], object], device: str, calls: int = 1, clock: Clock = time.perf_counter) -> float:
    """The least time of a call in some runs after a warm-up; each run waits until the device has done `calls` calls."""
    times = []
    for _ in range(RUNS + 1):
        start = clock()
        for _ in range(calls):
            work()
        if device != "cpu":
            torch.cuda.synchronize(device)
        times.append((clock() - start) / calls)
    return min(times[1:])


def _kind(device: str) -> str:
    return "cpu" if device == "cpu" else "gpu"
