"""Ctrl-C and SIGTERM while a network trains: the step is finished and saved before the process ends.

One of several processes may get one signal twice: from the sender that stops them all, and from torchrun, which passes
on its own signals. torchrun also ends the remaining processes as soon as one has ended.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

from toolkit import console
from toolkit.distill import distributed

SIGNALS = (signal.SIGINT, signal.SIGTERM)
REPEAT_SECONDS = 5.0
"""s after a signal in which, for one of several processes, another one is the same"""


class StopRequest:
    """The signal that asked to stop, 0 if none did; `obeyed` once the state is saved and all processes are to end."""

    def __init__(self) -> None:
        self.signal_number = 0
        self.obeyed = False
        self._asked_at = 0.0

    def __call__(self, signal_number: int, frame: FrameType | None) -> None:
        if self.obeyed or self._is_repeat():
            return
        if self.signal_number:  # asked twice: at once, without saving
            raise KeyboardInterrupt
        self.signal_number, self._asked_at = signal_number, time.monotonic()
        pause = f" after {REPEAT_SECONDS:.0f} s" if distributed.launched() else ""
        # Printing fails if nobody reads stderr any more, or if the signal interrupts rich while it imports a module.
        # An exception here would come out in the middle of training, and the step would be lost.
        with contextlib.suppress(Exception, SystemExit):
            console.say(f"stopping after this step; press Ctrl-C again{pause} to stop now")

    def _is_repeat(self) -> bool:
        late = time.monotonic() - self._asked_at
        return bool(self.signal_number) and distributed.launched() and late < REPEAT_SECONDS


@contextlib.contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Note Ctrl-C and SIGTERM instead of obeying them; the earlier handlers come back at the end.

    A signal that came too late for the body, or when another process was gone already, is then sent again.
    After a stop that was obeyed, one of several processes has only its end before it, and is not to be disturbed.
    A signal that was ignored (as a shell does for Ctrl-C in its background jobs) stays ignored. A signal that an outer
    request has noted counts here too. Only a process's main thread can do this; elsewhere nothing is noted.
    """
    request = StopRequest()
    before = {}
    noted = 0
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in SIGNALS}
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, request)
            if isinstance(handler, StopRequest):
                noted = request.signal_number = handler.signal_number
    pass_on = False
    try:
        yield request
        pass_on = True
    except RuntimeError as error:
        pass_on = distributed.is_peer_lost(error)
        raise
    finally:
        ending = request.obeyed and distributed.launched()
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if ending else handler)
        if pass_on and request.signal_number != noted:
            signal.raise_signal(request.signal_number)
