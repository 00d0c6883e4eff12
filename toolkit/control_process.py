"""Student and control side by side: while this process trains the student, one of its own trains the control.

Two processes with half of the cores each do more of such small networks' steps than one process with all of them. The
other one is `python -m toolkit.control_process`. Its task comes through its stdin, which stays open as long as both go
on. If stdin ends, as it does with the process that writes to it, the control saves its state and ends. Its messages go
to its stderr, and its result to its stdout.
"""

import _thread
import contextlib
import importlib
import math
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import torch
from rich.console import Console

from toolkit import console
from toolkit.distill import distributed
from toolkit.distill.interruption import stop_request
from toolkit.distill.metrics import EpochMetrics
from toolkit.distill.precision import Arithmetic
from toolkit.distill.student import train_control
from toolkit.errors import Interrupted, ToolkitError, TrainingError, one_line
from toolkit.machine.devices import keep_freed_memory, same_imports
from toolkit.machine.hardware import GIB
from toolkit.machine.limits import memory_bytes
from toolkit.networks import trust
from toolkit.networks.registry import modules_to_import

if TYPE_CHECKING:
    from toolkit.stage_setup import StageSetup

ENOUGH_MEMORY_BYTES = 4 * GIB
"""for two trainings"""
LOOK_S = 0.1
"""s between two looks at whether the control has ended, while nothing else is left to do"""
FIRST_TO_END = "500"
"""Of proc_pid_oom_score_adj(5): if memory runs out, the kernel ends the control, and the student goes on."""


def has_room(device: str, *architectures: str) -> bool:
    """Whether two trainings fit at the same time: on a CPU, if one process has cores and memory for both.

    `architectures` are those of the networks that the other process has to know.
    """
    alone = device == "cpu" and not distributed.launched() and modules_to_import(*architectures) is not None
    return alone and torch.get_num_threads() >= 2 and memory_bytes() >= ENOUGH_MEMORY_BYTES


@contextlib.contextmanager
def control_beside(setup: "StageSetup", precision: Arithmetic) -> Iterator[None]:
    """While the body trains the student, train its control too, in the same arithmetic; ends when both have.

    Each keeps its share of the threads to the end, so that the weights do not depend on which of them is faster. A
    stop, or an error, of the body stops the control, which saves its state. An error of the control is printed at
    once and raised when the body has ended: TrainingError if its process was killed, RuntimeError with the traceback
    for a bug. The setup's `on_epoch` gets the control's epochs here, one after another, when both have ended.
    """
    threads = torch.get_num_threads()
    share = threads // 2
    console.say(f"student and control train side by side, on {threads - share} and {share} of {threads} cores")
    with stop_request() as request:  # also while the student is saved, and while the control is waited for
        control = _Control(setup, precision, share)
        torch.set_num_threads(threads - share)
        try:
            with _suspended_together(control):
                yield
                control.is_awaited = True
                while control.is_running():
                    if request.signal_number:
                        control.ask_to_stop()
                    time.sleep(LOOK_S)
            ending = control.ending()
        except Interrupted as stop:
            request.signal_number = stop.signal_number  # one more ends both at once
            control.ask_to_stop()
            where = f"; in {ending.where}" if isinstance(ending := control.ending(), Interrupted) else ""
            control.report_epochs()
            raise Interrupted(stop.where + where, stop.signal_number) from None
        except Exception:
            control.ask_to_stop()
            control.ending()
            raise
        finally:
            control.end()
            torch.set_num_threads(threads)
        control.report_epochs()
        if isinstance(ending, Interrupted):
            raise Interrupted(ending.where, request.signal_number or ending.signal_number)
        if ending is not None:
            raise ending


@contextlib.contextmanager
def _suspended_together(control: "_Control") -> Iterator[None]:
    """Let a terminal's Ctrl-Z suspend the control too, until this process goes on; SIGSTOP cannot be passed on."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or not hasattr(signal, "SIGTSTP") or signal.getsignal(signal.SIGTSTP) is not signal.SIG_DFL:
        yield
        return

    def suspend(signal_number: int, frame: FrameType | None) -> None:
        control.suspend()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTSTP)  # here this process stays until fg, bg or SIGCONT
        signal.signal(signal.SIGTSTP, suspend)
        control.go_on()

    signal.signal(signal.SIGTSTP, suspend)
    try:
        yield
    finally:
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)


class _Control:
    """The process that trains the control.

    `is_awaited`: nothing else is left to do, so its error is raised at once and need not be printed before.
    """

    def __init__(self, setup: "StageSetup", precision: Arithmetic, threads: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "toolkit.control_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | same_imports(),
            process_group=0,  # a terminal's Ctrl-C and Ctrl-Z are for this process, which passes them on
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._questions, self._answer, self._words = self._process.stdin, self._process.stdout, self._process.stderr
        self.is_awaited = False
        self._epochs: list[EpochMetrics] = []
        self._on_epoch = setup.on_epoch
        self._ending: Exception | None = RuntimeError("the control's process has not said how it ended")
        self._speaker = threading.Thread(target=self._say_words, daemon=True)
        self._speaker.start()
        self._listener = threading.Thread(target=self._hear_answer, daemon=True)
        self._listener.start()
        with contextlib.suppress(BrokenPipeError):  # `ending` gives the reason
            modules = modules_to_import(setup.recipe.student.architecture)
            alone = replace(setup, on_epoch=None)  # a function of this process's
            self._questions.write(pickle.dumps((modules, alone, precision, threads, trust.announced())))
            self._questions.flush()

    def is_running(self) -> bool:
        return self._process.poll() is None

    def ask_to_stop(self) -> None:
        self._questions.close()

    def suspend(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def ending(self) -> Exception | None:
        """Wait for its end: None if the control is there, Interrupted if it was stopped, or the error."""
        self._listener.join()
        return self._ending

    def report_epochs(self) -> None:
        """Give the epochs that it trained to `on_epoch`; it must have ended."""
        if self._on_epoch is not None:
            for metrics in self._epochs:
                self._on_epoch(metrics)

    def end(self) -> None:
        """End it at once, if it still runs."""
        self.is_awaited = True
        with self._process:
            self._process.kill()
            self._listener.join()

    def _hear_answer(self) -> None:
        answer = self._answer.read()
        self._speaker.join()
        self._ending, self._epochs = _read_answer(self._process.wait(), answer)
        if self._ending is not None and not isinstance(self._ending, Interrupted) and not self.is_awaited:
            console.say(f"warning: the control has failed: {one_line(self._ending, last=True)}")

    def _say_words(self) -> None:
        for line in self._words:
            console.say(line.decode(errors="replace").rstrip("\n"))


def _read_answer(code: int, answer: bytes) -> tuple[Exception | None, list[EpochMetrics]]:
    """The result of `ending` and the epochs, from the process's exit code and its answer."""
    if code == 0:
        ending: tuple[Exception | None, list[EpochMetrics]] = pickle.loads(answer)  # noqa: S301 - of our own process
        return ending
    if code > 0:
        return RuntimeError(f"the control's process ended with exit code {code}"), []
    killed = TrainingError(
        f"control: its process was ended by {signal.Signals(-code).name}, as happens if memory runs out",
        "go on with --resume, which trains it alone",
    )
    return killed, []


def main() -> None:
    """The other process: train one control, and report how that ended."""
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library's output must not go into the answer
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a sender to all means the other process, which passes it on
    signal.signal(signal.SIGINT, signal.default_int_handler)
    modules, setup, precision, threads, trusted = pickle.load(sys.stdin.buffer)  # noqa: S301 - of our own process
    trust.allow(trusted)
    for module in modules:
        importlib.import_module(module)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(FIRST_TO_END, encoding="utf-8")
    console.err = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False, force_terminal=False)
    console.LOG_INTERVAL_S = math.inf
    torch.set_num_threads(threads)
    keep_freed_memory()
    epochs: list[EpochMetrics] = []
    ending = _train(replace(setup, on_epoch=epochs.append), precision)
    pickle.dump((ending, epochs), answer)
    answer.flush()


def _watch() -> None:
    """Stop, as at Ctrl-C, once stdin ends."""
    os.read(0, 1)
    console.err.quiet = True  # the other process has reported it, or is gone
    if hasattr(signal, "SIGKILL"):
        os.kill(os.getpid(), signal.SIGINT)
    else:
        _thread.interrupt_main()  # on Windows os.kill ends the process at once


def _train(setup: "StageSetup", precision: Arithmetic) -> Exception | None:
    try:
        threading.Thread(target=_watch, daemon=True).start()  # here, as it may interrupt whatever comes next
        console.err.quiet = True  # the other process has printed everything about the data
        data = setup.training_data
        console.err.quiet = False
        train_control(setup.recipe, setup.model_dir, data, setup.options, precision)
    except (ToolkitError, Interrupted) as error:
        return error
    except KeyboardInterrupt:
        return Interrupted("control, outside of its epochs, with nothing new to save", signal.SIGINT)
    except Exception:
        return RuntimeError(f"in the control's process:\n{traceback.format_exc()}")
    return None


if __name__ == "__main__":
    main()
