"""The caller's process: what a stage changes (torch's threads and random numbers, silence) is set back."""

import contextlib
import signal
from collections.abc import Iterator

from toolkit import console
from toolkit.errors import Interrupted


@contextlib.contextmanager
def at_work(*, quiet: bool, threads: int | None) -> Iterator[None]:
    """The process as a stage needs it, and afterwards as it was. None leaves torch's number of threads."""
    with _speaking(quiet=quiet), leaving_torch(threads), _passing_signals_on():
        yield


@contextlib.contextmanager
def _speaking(*, quiet: bool) -> Iterator[None]:
    before = console.err.quiet
    console.err.quiet = quiet or before
    try:
        yield
    finally:
        console.err.quiet = before


@contextlib.contextmanager
def leaving_torch(threads: int | None) -> Iterator[None]:
    """torch with so many threads, and afterwards with as many and with the random numbers as before."""
    import torch

    before = torch.get_num_threads()
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    try:
        with torch.random.fork_rng(gpus):
            if threads is not None:
                torch.set_num_threads(threads)
            yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _passing_signals_on() -> Iterator[None]:
    """When training has saved because of a signal, let the signal do what it would have done: KeyboardInterrupt..."""
    try:
        yield
    except Interrupted as stop:
        console.say(f"stopped in {stop.where}; go on with resume=True")
        signal.raise_signal(stop.signal_number)
        raise  # the signal's handler may let the program go on
