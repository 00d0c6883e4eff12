"""Two processes that train together are stopped: the state is saved however late one of them hears of it.

The processes are started as torchrun starts them, so that a signal can go to either alone; `test_distributed.py` has
torchrun itself.
"""

import contextlib
import re
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from distill_samples import SMALL, Running, ToolkitCommands, hold_training, read_lines, start_two

from toolkit.cli import ending
from toolkit.distill import interruption, trainer
from toolkit.distill.checkpoint import Checkpoint, TrainingState
from toolkit.distill.step import Stepper

EPOCHS = 4
HELD = partial(hold_training, 4)
"""In the second epoch, whose first step this is: an epoch has three."""
HANG_S = 600.0
"""s after which a test gives up; it says nothing about the machine's speed"""

Prepare = Callable[[], None] | None
Pair = tuple[Running, Running]


@pytest.fixture(scope="module")
def toolkit(tmp_path_factory: pytest.TempPathFactory) -> ToolkitCommands:
    return ToolkitCommands(tmp_path_factory.mktemp("logs"))


class Job:
    """`toolkit teacher` on small images, by two processes or one."""

    def __init__(self, toolkit: ToolkitCommands, data: Path, out: Path) -> None:
        self.toolkit, self.out = toolkit, out
        epochs = ["--set", f"teacher.epochs={EPOCHS}"]
        self.command = ["teacher", "--data", data, *SMALL, *epochs, "--out", out, "--resume"]

    def start(self, main: Prepare = None, other: Prepare = None) -> Pair:
        return start_two(self.toolkit, self.command, main, other)

    def start_training(self, main: Prepare = None, other: Prepare = None) -> Pair:
        """The first epoch is over when this returns."""
        pair = self.start(main, other)
        pair[0].wait_for(f"1/{EPOCHS}", timeout_s=HANG_S)
        return pair

    def assert_saved_and_goes_on(self, pair: Pair) -> None:
        """Both ended as after SIGTERM, without a traceback; one process goes on from what was saved."""
        said, other = (running.end(143, timeout_s=HANG_S) for running in pair)
        assert "Traceback" not in said + other, said + other
        assert len(re.findall(r"^stopped in teacher, .*, and saved; go on with: torchrun ", said, re.MULTILINE)) == 1
        assert other == ""
        state = torch.load(self.out / "checkpoint.pt", weights_only=True)
        done = state["epoch"]
        assert 1 <= done < EPOCHS
        assert f"teacher: resuming at epoch {done + 1}, step {state['progress']['step'] + 1}" in self.toolkit.run(
            *self.command
        )
        assert [line["epoch"] for line in read_lines(self.out / "metrics.jsonl")] == [*range(EPOCHS)]
        assert not (self.out / "checkpoint.pt").exists()


@pytest.fixture
def job(toolkit: ToolkitCommands, class_folders: Path, tmp_path: Path) -> Job:
    return Job(toolkit, class_folders, tmp_path / "m")


def hear_late() -> None:
    """A process that is busy elsewhere when the signal comes."""
    HELD()
    note = interruption.StopRequest.__call__

    def late(self: interruption.StopRequest, *signal_and_frame: Any) -> None:
        time.sleep(2)
        note(self, *signal_and_frame)

    interruption.StopRequest.__call__ = late  # type: ignore[method-assign]


def take_long_steps() -> None:
    take = Stepper.take

    def slowly(self: Stepper, *arguments: Any) -> Any:
        time.sleep(0.5)
        return take(self, *arguments)

    Stepper.take = slowly  # type: ignore[method-assign]


def hear_all_at_once() -> None:
    """Signals that come one after the other come at one time, by this process's clock."""
    HELD()
    interruption.time = SimpleNamespace(monotonic=lambda: 0.0)  # type: ignore[assignment]


def save_slowly() -> None:
    save = Checkpoint.save

    def slowly(self: Checkpoint, state: TrainingState) -> None:
        if state.epoch or state.progress.step:
            time.sleep(2)
        save(self, state)

    Checkpoint.save = slowly  # type: ignore[method-assign]


def begin_late() -> None:
    """Training begins much later here: the other one waits, ready to note a signal."""
    wait_long_for_a_signal()
    train = trainer.train

    def late(*arguments: Any) -> Any:
        time.sleep(600)
        return train(*arguments)

    from toolkit.distill import job

    job.train = late


def wait_long_for_a_signal() -> None:
    ending.OTHERS_WAIT_S = HANG_S


def wait_shortly_for_a_signal() -> None:
    ending.OTHERS_WAIT_S = 0.1


@pytest.mark.slow
@pytest.mark.parametrize("late", [0, 1])
def test_one_that_hears_of_the_stop_seconds_later_is_waited_for(job: Job, late: int) -> None:
    pair = job.start_training(*(hear_late if rank == late else HELD for rank in range(2)))
    for running in pair:
        running.send(signal.SIGTERM)
    job.assert_saved_and_goes_on(pair)


@pytest.mark.slow
def test_a_signal_to_one_of_them_stops_both(job: Job) -> None:
    pair = job.start_training(other=HELD)
    pair[1].send(signal.SIGTERM)
    job.assert_saved_and_goes_on(pair)


@pytest.mark.slow
def test_a_signal_that_comes_twice_is_one(job: Job) -> None:
    """To the main one alone; the other one makes it wait, so that the second one comes before all is saved."""
    pair = job.start_training(hear_all_at_once, take_long_steps)
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
        pair[0].send(number)
        pair[0].wait_for("stopping after this step; press Ctrl-C again after 5 s to stop now", timeout_s=HANG_S)
    job.assert_saved_and_goes_on(pair)


@pytest.mark.slow
def test_the_other_one_ends_when_the_main_one_has_saved(job: Job) -> None:
    """Else torchrun would send the main one a signal while it saves."""
    pair = job.start_training(save_slowly, HELD)
    pair[1].send(signal.SIGTERM)
    pair[1].process.join(HANG_S)
    assert ", and saved; go on with: " in pair[0].said
    with contextlib.suppress(ProcessLookupError):  # it may have ended already
        pair[0].send(signal.SIGTERM)  # as torchrun does
    job.assert_saved_and_goes_on(pair)


@pytest.mark.slow
@pytest.mark.parametrize("both_at_once", [True, False])
def test_a_stop_before_training_leaves_no_traceback(job: Job, both_at_once: bool) -> None:
    """The other one ends at once, as it has nothing to save; the main one waits for it in training already."""
    main, other = job.start(wait_long_for_a_signal, begin_late)
    main.wait_for("no state was saved", timeout_s=HANG_S)
    time.sleep(1)  # most likely, the one waits and the other one has not begun: it must end well in any case
    if both_at_once:
        main.send(signal.SIGTERM)
    other.send(signal.SIGTERM)
    assert other.end(143, timeout_s=HANG_S) == ""
    if not both_at_once:
        main.send(signal.SIGTERM)
    said = main.end(143, timeout_s=HANG_S)
    assert "Traceback" not in said
    assert re.fullmatch(r"stopped; go on with: torchrun --nproc-per-node 2 .* --resume", said.splitlines()[-1])
    assert not (job.out / "checkpoint.pt").exists()


@pytest.mark.slow
def test_if_one_is_killed_the_other_says_so_in_one_line(job: Job) -> None:
    main, other = job.start_training(wait_shortly_for_a_signal, HELD)
    other.send(signal.SIGKILL)
    said = main.end(1, timeout_s=HANG_S)
    assert "Traceback" not in said
    last = said.splitlines()[-1]
    assert last.startswith("error: another of the 2 processes has ended ("), said
    assert re.search(r"; see its messages, then go on with: torchrun --nproc-per-node 2 .* --resume$", last)
    assert "teacher: resuming at epoch 2, step 1" in job.toolkit.run(*job.command)
