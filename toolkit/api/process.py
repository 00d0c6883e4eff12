"""The caller's process: a stage has it to itself, and everything that the stage changes in it is set back."""

import contextlib
import multiprocessing
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from toolkit import console
from toolkit.errors import Interrupted

INDUCTOR_CACHE = "TORCHINDUCTOR_CACHE_DIR"
"""The environment variable that torch sets when its compiler is imported."""

ADDED_TO_PATH = str(Path("onnxruntime", "transformers"))
"""The end of the folder that onnxruntime adds to sys.path when its quantization is imported."""

Argument = TypeVar("Argument")

_alone = threading.RLock()
"""Held by the stage that works: torch's random numbers and threads, and stderr's silence, belong to the process."""


@contextlib.contextmanager
def at_work(*, quiet: bool, threads: int | None) -> Iterator[None]:
    """The process as a stage needs it, and afterwards as it was. None leaves torch's number of threads.

    A stage in another thread is waited for.
    """
    with _alone, _leaving_python(), speaking(quiet=quiet), leaving_torch(threads), _passing_signals_on():
        yield


@contextlib.contextmanager
def leaving_torch(threads: int | None) -> Iterator[None]:
    """torch with so many threads, and afterwards with as many and with the random numbers as before."""
    import torch

    with _alone:
        before = torch.get_num_threads()
        gpus = range(torch.cuda.device_count() if _uses_gpus() else 0)
        try:
            with torch.random.fork_rng(gpus):
                if threads is not None:
                    torch.set_num_threads(threads)
                yield
        finally:
            torch.set_num_threads(before)
            if not gpus and _uses_gpus():  # their numbers begin as they would have in the caller's code
                torch.cuda.manual_seed_all(torch.initial_seed())


def _uses_gpus() -> bool:
    import torch

    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def apart(call: Callable[[Argument], object]) -> Callable[[Argument], None]:
    """`call`, whose changes to torch's threads and random numbers do not reach the training that calls it."""

    def call_apart(argument: Argument) -> None:
        with leaving_torch(None):
            call(argument)

    return call_apart


@contextlib.contextmanager
def _leaving_python() -> Iterator[None]:
    """Without what libraries change: random numbers, filters of warnings, the start method of processes, paths."""
    numbers, start_method = random.getstate(), multiprocessing.get_start_method(allow_none=True)
    had_cache, imports = INDUCTOR_CACHE in os.environ, [*sys.path]
    try:
        with warnings.catch_warnings():
            yield
    finally:
        random.setstate(numbers)
        if start_method is None:
            multiprocessing.set_start_method(None, force=True)
        if not had_cache:
            os.environ.pop(INDUCTOR_CACHE, None)
        sys.path[:] = [place for place in sys.path if place in imports or not place.endswith(ADDED_TO_PATH)]


@contextlib.contextmanager
def speaking(*, quiet: bool) -> Iterator[None]:
    """Nothing on stderr if `quiet`."""
    before = console.err.quiet
    console.err.quiet = quiet or before
    try:
        yield
    finally:
        console.err.quiet = before


@contextlib.contextmanager
def _passing_signals_on() -> Iterator[None]:
    """When training has saved because of a signal, let the signal do what it would have done: KeyboardInterrupt..."""
    try:
        yield
    except Interrupted as stop:
        console.say(f"stopped in {stop.where}; go on with resume=True")
        signal.raise_signal(stop.signal_number)
        raise  # the signal's handler may let the program go on
