"""Ctrl-C and SIGTERM while a network trains: the step is finished and saved before the process ends."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from toolkit import console

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Which signal asked to stop, 0 as long as none did."""

    def __init__(self) -> None:
        self.signal_number = 0

    def __call__(self, signal_number: int, frame: FrameType | None) -> None:
        if self.signal_number:  # asked twice: at once, without saving
            raise KeyboardInterrupt
        self.signal_number = signal_number
        console.say("stopping after this step; once more to stop at once")


@contextlib.contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Note Ctrl-C and SIGTERM instead of obeying them; what was in force before comes back at the end.

    A signal that was ignored (as a shell does for Ctrl-C in its background jobs) stays so. Only a process's main thread
    can do this; elsewhere nothing is noted.
    """
    request = StopRequest()
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in SIGNALS}
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, request)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
