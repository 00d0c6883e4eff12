"""The end of a command: its exit code, errors in one line, signals; one of several processes prints for all.

0 done · 1 a user's error · 2 wrong usage · 3 a gate not met · 130 Ctrl-C · 143 SIGTERM
"""

import io
import os
import shlex
import signal
import sys
import time
from types import FrameType, ModuleType

from toolkit import console
from toolkit.cli.app import app
from toolkit.errors import Interrupted, ToolkitError, TrainingError, one_line

INTERRUPTED, TERMINATED = 130, 143
"""Exit codes after Ctrl-C and SIGTERM."""

RESUMABLE = ("teacher", "distill", "run")
"""Commands that --resume goes on with."""

OTHERS_WAIT_S = 30.0
"""s that one of several processes keeps an error back: the main one may have the same, or all are being stopped."""


def main() -> None:
    """Entry point: a ToolkitError is one line on stderr and its exit code; a bug keeps its traceback."""
    if os.environ.get("RANK", "0") != "0":  # one of several processes prints for all
        console.out.quiet = console.err.quiet = True
    for stream in (sys.stdout, sys.stderr):  # in a Windows log, an arrow is no character
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGTERM, _end)
    try:
        _run_command()
    except Interrupted as stop:
        console.say(f"stopped in {stop.where}; go on with: {resume_command()}")
        _part()
        sys.exit(stop.exit_code)
    except SystemExit as ending:
        if ending.code in (INTERRUPTED, TERMINATED):
            resumable = sys.argv[1:2] and sys.argv[1] in RESUMABLE
            console.say(f"stopped; go on with: {resume_command()}" if resumable else "stopped")
        elif not ending.code:
            _part()
        raise


def resume_command() -> str:
    """This very command line with --resume, under torchrun again if torchrun started it."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--resume"]
    processes = os.environ.get("LOCAL_WORLD_SIZE", "1")
    program = ["toolkit"] if processes == "1" else ["torchrun", "--nproc-per-node", processes, "-m", "toolkit"]
    return shlex.join([*program, *arguments, "--resume"])


def _run_command() -> None:
    try:
        try:
            app()
        except RuntimeError as error:
            _raise_if_peer_lost(error)
            raise
    except ToolkitError as error:
        if console.err.quiet:  # if the main process says the same, torchrun ends this one meanwhile
            time.sleep(OTHERS_WAIT_S)
            console.err.quiet = False
        console.say(f"error: {error}")
        sys.exit(error.exit_code)


def _raise_if_peer_lost(error: RuntimeError) -> None:
    """TrainingError if another process has ended, unless all are being stopped and this one hears of it now."""
    distributed = _distributed()
    if distributed is None or not distributed.is_peer_lost(error):
        return
    if not console.err.quiet:  # one that is quiet waits before it prints any error
        time.sleep(OTHERS_WAIT_S)
    raise TrainingError(
        f"another of the {distributed.world_size()} processes has ended ({one_line(error)})",
        f"see its messages, then go on with: {resume_command()}",
    ) from None


def _part() -> None:
    if distributed := _distributed():
        distributed.part()


def _distributed() -> ModuleType | None:
    """toolkit.distill.distributed, if this is one of several processes and has loaded it; it takes torch with it."""
    return sys.modules.get("toolkit.distill.distributed") if "RANK" in os.environ else None


def _end(signal_number: int, frame: FrameType | None) -> None:
    """End on SIGTERM as on Ctrl-C, so that nothing half-written stays; training has a way of its own."""
    raise SystemExit(TERMINATED)
