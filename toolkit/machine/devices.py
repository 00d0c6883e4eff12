"""torch's devices. A list proves nothing: a device counts after a small product has run on it."""

import contextlib
import ctypes
import functools
import json
import os
import platform
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from toolkit import console
from toolkit.errors import DeviceError, one_line
from toolkit.machine import hardware
from toolkit.machine.hardware import MIB

MALLOPT_TRIM_THRESHOLD, MALLOPT_TOP_PAD, MALLOPT_MMAP_THRESHOLD, MALLOPT_MMAP_MAX = -1, -2, -3, -4
"""Parameters of mallopt(3)."""
MMAP_MAX = 65536
"""glibc's own value of MALLOPT_MMAP_MAX."""
_keeps_freed_memory = False
NEVER = -1
"""Value of MALLOPT_TRIM_THRESHOLD: freed memory never goes back, whatever its size (a step may need over 2 GiB)."""


def pick_device(name: str) -> str:
    """Turn `auto`, `cpu`, `cuda` or `cuda:N` into a torch device on which a small product has really run.

    Only the requested GPU is touched. `auto` takes the first GPU that works, else the CPU; stderr names a GPU that does
    not work. Raises DeviceError for a requested device that cannot run.
    """
    if name == "cpu":
        return "cpu"
    if name == "auto":
        return _first_working_gpu() or "cpu"
    wanted = "cuda:0" if name == "cuda" else name
    if not re.fullmatch(r"cuda:\d+", wanted):
        raise DeviceError(f"unknown device {name!r}", "give auto, cpu, cuda or cuda:N")
    gpus, reason = _list_gpus()
    reason = probe_device(wanted) if wanted in gpus else reason or "torch finds no such GPU"
    if reason:
        here = ", ".join(["cpu", *gpus])
        raise DeviceError(
            f"device {name} cannot be used: {reason}; available: {here}",
            "choose another of these, or run toolkit doctor, which tries them all",
        )
    return wanted


def torch_devices() -> dict[str, str]:
    """The result of `probe_devices` in a separate process, whose memory on every GPU is freed when it ends.

    Raises ImportError if that process fails, for example because torch cannot be imported.
    """
    code = "import json; from toolkit.machine import devices; print(json.dumps(devices.probe_devices()))"
    environment = os.environ | same_imports()
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, encoding="utf-8", errors="replace", env=environment
    )
    if done.returncode:
        raise ImportError(one_line(done.stderr, last=True) or f"its process ended with {done.returncode}")
    devices: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return devices


def probe_devices() -> dict[str, str]:
    """Every torch device (`cpu`, `cuda:0`, ...) → "" if it allocated and multiplied, else the reason why not.

    Each GPU gives some 0.4 GB to this process until it ends. If the machine shows a GPU (visible_gpus) that torch does
    not count, it stands as `cuda:0` with the reason.
    """
    gpus, reason = _list_gpus()
    return {device: probe_device(device) for device in ("cpu", *gpus)} | ({"cuda:0": reason} if reason else {})


@functools.cache
def probe_device(device: str) -> str:
    """Multiply on one torch device; "" if that worked, else the reason in words. No other GPU is touched."""
    return _failure(lambda: _multiply_on(device))


def keep_freed_memory() -> None:
    """Let glibc's allocator keep memory that training frees, so that every step uses the same pages again.

    By default, each allocation of more than a few MB maps new memory, and the kernel clears it page by page: that
    was half of a training step on the CPU. Does nothing with another C library.
    """
    global _keeps_freed_memory
    _keeps_freed_memory = True
    _set_allocator({MALLOPT_MMAP_MAX: 0, MALLOPT_TRIM_THRESHOLD: NEVER, MALLOPT_TOP_PAD: 64 * MIB})


@contextlib.contextmanager
def large_blocks_go_back() -> Iterator[None]:
    """Inside this context, memory of more than 1 MB goes back to the system when it is freed, as if nothing kept it."""
    if not _keeps_freed_memory:
        yield
        return
    _set_allocator({MALLOPT_MMAP_MAX: MMAP_MAX, MALLOPT_MMAP_THRESHOLD: MIB})
    try:
        yield
    finally:
        keep_freed_memory()


def _set_allocator(values: dict[int, int]) -> None:
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for parameter, value in values.items():
            libc.mallopt(parameter, value)


@contextlib.contextmanager
def fp32_products_in(precision: Literal["ieee", "tf32"]) -> Iterator[None]:
    """Inside this context a GPU multiplies float32 exactly (ieee), or rounded to 10 bits (tf32).

    This applies to convolutions and matrices; by default torch rounds only in convolutions.
    """
    import torch

    settings: tuple[Any, ...] = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]
    before = [setting.fp32_precision for setting in settings]
    try:
        for setting in settings:
            setting.fp32_precision = precision
        yield
    finally:
        for setting, precision_before in zip(settings, before, strict=True):
            setting.fp32_precision = precision_before


def same_imports() -> dict[str, str]:
    """Environment variables with which another Python (-P) finds the same modules as this one."""
    return {"PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}


def _multiply_on(device: str) -> None:
    import torch

    ones = torch.ones(8, 8, device=device)
    if not torch.equal((ones @ ones).cpu(), torch.full((8, 8), 8.0)):
        raise RuntimeError("a small matrix product came out wrong")


def _first_working_gpu() -> str | None:
    """If there are GPUs and none works, stderr says why."""
    gpus, reason = _list_gpus()
    broken = {"cuda:0": reason} if reason else {}
    for gpu in gpus:
        if not (reason := probe_device(gpu)):
            return gpu
        broken[gpu] = reason
    if broken:
        reasons = "; ".join(f"{device}: {reason}" for device, reason in broken.items())
        console.say(f"running on the CPU, because the GPU does not work ({reasons}); see toolkit doctor")
    return None


def _list_gpus() -> tuple[list[str], str]:
    """The GPUs that torch counts, untouched; and torch's reason if it counts none of those that the machine shows."""
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count or not hardware.visible_gpus():
        return [f"cuda:{index}" for index in range(count)], ""
    if torch.version.cuda is None:
        return [], "this torch is built without CUDA"
    return [], one_line(str(caught[0].message)) if caught else "torch.cuda.is_available() is false"


def _failure(action: Callable[[], None]) -> str:
    """The message of any exception of `action`, "" if there is none. Drivers raise types of their own: all count."""
    try:
        action()
    except Exception as error:
        return one_line(error)
    return ""
