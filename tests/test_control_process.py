"""Student and control side by side: the same weights as one after the other, in spite of stops and failures.

The other process is a real one. A sitecustomize on its path patches it, so that events happen in it.
"""

import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from distill_samples import read_lines
from PIL import Image
from safetensors.torch import load_file
from toolkit_process import start_toolkit

from toolkit import control_process, pipeline
from toolkit.distill.checkpoint import Checkpoint, TrainingState
from toolkit.distill.metrics import EpochMetrics, read_metrics
from toolkit.distill.precision import NetworkStep
from toolkit.distill.step import Stepper
from toolkit.errors import Interrupted, ToolkitError, TrainingError
from toolkit.forecast.command import forecast_command
from toolkit.forecast.estimate import BESIDE, CONTROL_START_S
from toolkit.machine.devices import same_imports
from toolkit.modeldir import ModelDir
from toolkit.stage_setup import StageSetup, prepare_training

EPOCHS = 6
SMALL = [
    *("data.image_size=32", "data.resize=36", "training.precision=fp32", "teacher.architecture=depthwise"),
    *("teacher.epochs=1", "teacher.batch_size=12", "teacher.base=4", "student.base=4"),
    *("distill.control=true", "distill.teacher_views=2"),
    *(f"distill.epochs={EPOCHS}", "distill.batch_size=8"),
]
SIDE_BY_SIDE = "student and control train side by side, on 1 and 1 of 2 cores"
BOTH_SAVED = r"^student, epoch 1, step 1, and saved; in control, (epoch|after epoch) .*, and saved$"
HANG_S = 600.0
"""s after which a test gives up; it says nothing about the machine's speed"""

SLOWLY = "time.sleep(0.3)"
"""before each of the control's steps"""
HELD = "wait_until_asked_to_stop() if next(steps) > 5 else None"
"""from the control's second epoch on, so that it does not end before it is stopped"""


@pytest.fixture(autouse=True)
def _two_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two cores on any machine; one thread for each training."""
    monkeypatch.setattr("toolkit.machine.limits.available_cores", lambda: 2)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def whole(class_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Teacher, student and control, one after the other on one thread; the teacher's logits are stored from here on."""
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("toolkit.machine.limits.available_cores", lambda: 1)
        pipeline.distill_student(make_setup(class_folders, out))
    return out


@pytest.fixture
def out(whole: Path, tmp_path: Path) -> Path:
    """A directory with the same teacher."""
    folder = tmp_path / "m"
    folder.mkdir()
    shutil.copy(whole / "teacher.safetensors", folder)
    return folder


@pytest.fixture
def in_control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Lets the other process do something before each step; returns the file with its id."""

    def before_each_step(code: str) -> Path:
        return write_patches(tmp_path / "patches", code, monkeypatch.syspath_prepend)

    return before_each_step


def write_patches(folder: Path, code: str, use: Callable[[str], None]) -> Path:
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        f"""
import itertools, os, pathlib, signal, sys, time
if "toolkit.control_process" in sys.orig_argv:
    pathlib.Path({str(folder / "pid")!r}).write_text(str(os.getpid()))
    from toolkit.distill.step import Stepper
    take, steps = Stepper.take, itertools.count(1)
    def wait_until_asked_to_stop():
        while not signal.getsignal(signal.SIGINT).signal_number:
            time.sleep(0.01)
    def patched(*arguments):
        {code}
        return take(*arguments)
    Stepper.take = patched
"""
    )
    use(str(folder))
    return folder / "pid"


def hold_control(folder: Path, wait: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the control's process `wait`, an expression, before it does anything."""
    write_patches(folder, "pass", monkeypatch.syspath_prepend)
    with (folder / "sitecustomize.py").open("a") as file:
        file.write("    import toolkit.machine.devices\n")
        file.write(f"    toolkit.machine.devices.keep_freed_memory = lambda: {wait}\n")


def make_setup(data: Path, out: Path, *overrides: str, **options: Any) -> StageSetup:
    return prepare_training(None, str(data), out, [*SMALL, *overrides], device="cpu", **options)


def once_control_trains(monkeypatch: pytest.MonkeyPatch, out: Path, action: Callable[[], None]) -> None:
    """Do `action` in the student's first step, when the control's first epoch is over."""
    take = Stepper.take

    def waiting(*arguments: Any) -> Any:
        monkeypatch.setattr(Stepper, "take", take)
        wait_until(lambda: "control" in stages_of(out))
        action()
        return take(*arguments)

    monkeypatch.setattr(Stepper, "take", waiting)


def stages_of(out: Path) -> list[str]:
    return [line["stage"] for line in read_lines(out / "metrics.jsonl")] if (out / "metrics.jsonl").exists() else []


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def is_alive(pid_file: Path) -> bool:
    try:
        return state_of(int(pid_file.read_text())) != "Z"
    except OSError:
        return False


def state_of(pid: int) -> str:
    """A letter of proc_pid_stat(5): Z a zombie, T stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def assert_same(out: Path, whole: Path) -> None:
    """Both have the same student and control, bit for bit, and nothing is left to go on from."""
    for role in ("student", "control"):
        ours, theirs = (load_file(folder / f"{role}.safetensors") for folder in (out, whole))
        assert list(ours) == list(theirs)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), role
    assert sorted(stages_of(out)) == ["control"] * EPOCHS + ["distill"] * EPOCHS
    assert not list(out.glob("checkpoint*"))


def test_the_control_s_epochs_are_reported_when_both_have_ended(class_folders: Path, out: Path) -> None:
    seen: list[EpochMetrics] = []
    pipeline.distill_student(make_setup(class_folders, out, on_epoch=seen.append))
    assert [(one.role, one.epoch) for one in seen] == [
        (role, epoch) for role in ("student", "control") for epoch in range(EPOCHS)
    ]
    assert {str(one) for one in seen} == {str(one) for one in read_metrics(out / "metrics.jsonl")}


def test_an_error_of_the_caller_s_in_an_epoch_stops_both_and_both_go_on(class_folders: Path, out: Path) -> None:
    def refuse(metrics: EpochMetrics) -> None:
        raise ZeroDivisionError(metrics.role)

    with pytest.raises(ZeroDivisionError, match="student"):
        pipeline.distill_student(make_setup(class_folders, out, on_epoch=refuse))
    pipeline.distill_student(make_setup(class_folders, out, resume=True))
    assert stages_of(out).count("distill") == stages_of(out).count("control") == EPOCHS


def test_both_are_the_same_as_one_after_the_other(
    class_folders: Path, out: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline.distill_student(make_setup(class_folders, out))
    assert_same(out, whole)
    with Image.open(out / "learning_curves.png") as picture:
        picture.load()
    printed = capsys.readouterr().err
    assert printed.count(SIDE_BY_SIDE) == 1
    assert (
        len(re.findall(rf"^(student|control) +\d/{EPOCHS}  train loss .* left$", printed, re.MULTILINE)) == 2 * EPOCHS
    )
    assert torch.get_num_threads() == 2


def test_a_stop_before_the_control_trains_is_no_traceback(
    class_folders: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The question and the end of stdin come together: the control is stopped at any point of its start."""
    hold_control(tmp_path / "patches", "__import__('time').sleep(1)", monkeypatch)
    question = pickle.dumps(([], make_setup(class_folders, out), "fp32", 1, None))
    command = [sys.executable, "-P", "-m", "toolkit.control_process"]
    done = subprocess.run(command, input=question, capture_output=True, env=os.environ | same_imports())
    assert (done.returncode, done.stderr) == (0, b"")
    stop, epochs = pickle.loads(done.stdout)
    assert epochs == []
    assert isinstance(stop, Interrupted)
    assert stop.where == "control, outside of its epochs, with nothing new to save"


@pytest.mark.slow
def test_each_seed_has_its_pair_and_what_is_there_is_not_trained_again(
    class_folders: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline.distill_student(make_setup(class_folders, out, "distill.epochs=1", seeds=2))
    assert capsys.readouterr().err.count(SIDE_BY_SIDE) == 2
    for folder in (out, out / "seeds" / "1"):
        assert (folder / "control.safetensors").exists()
    pipeline.distill_student(make_setup(class_folders, out, "distill.epochs=1", seeds=2))
    (out / "control.safetensors").unlink()
    pipeline.distill_student(make_setup(class_folders, out, "distill.epochs=1", seeds=2))
    assert SIDE_BY_SIDE not in capsys.readouterr().err, "the control alone has all cores"
    assert (out / "control.safetensors").exists()


def test_a_live_teacher_leaves_no_cores_for_the_control(
    class_folders: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline.distill_student(make_setup(class_folders, out, "distill.teacher_views=0", "distill.epochs=1"))
    assert SIDE_BY_SIDE not in capsys.readouterr().err


def test_only_if_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_process, "memory_bytes", lambda: 8 * 2**30)
    assert control_process.has_room("cpu")
    assert not control_process.has_room("cuda:0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert not control_process.has_room("cpu")
    monkeypatch.delenv("RANK")
    monkeypatch.setattr(control_process, "memory_bytes", lambda: 3 * 2**30)
    assert not control_process.has_room("cpu")
    monkeypatch.undo()
    torch.set_num_threads(1)
    assert not control_process.has_room("cpu")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stop_saves_both_and_both_go_on_to_the_same_weights(
    class_folders: Path,
    out: Path,
    whole: Path,
    in_control: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    code: int,
) -> None:
    in_control(HELD)
    once_control_trains(monkeypatch, out, lambda: signal.raise_signal(number))
    with pytest.raises(Interrupted, match=BOTH_SAVED) as stopped:
        pipeline.distill_student(make_setup(class_folders, out))
    assert stopped.value.exit_code == code
    assert capsys.readouterr().err.count("stopping after this step") == 1
    assert {path.name for path in out.glob("checkpoint*")} == {"checkpoint.pt", "checkpoint-control.pt"}
    monkeypatch.undo()
    pipeline.distill_student(make_setup(class_folders, out, resume=True))
    printed = capsys.readouterr().err
    assert "student: resuming at epoch 1, step 2" in printed
    assert re.search(r"^control: resuming at epoch \d", printed, re.MULTILINE)
    assert_same(out, whole)


def test_a_stop_before_the_control_trains_does_not_say_that_it_saved_something(
    class_folders: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold_control(tmp_path / "patches", "__import__('select').select([0], [], [])", monkeypatch)  # till it ends
    take = Stepper.take

    def stopping(*arguments: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return take(*arguments)

    monkeypatch.setattr(Stepper, "take", stopping)
    with pytest.raises(Interrupted) as stopped:
        pipeline.distill_student(make_setup(class_folders, out))
    assert stopped.value.where == (
        "student, epoch 1, step 1, and saved; in control, outside of its epochs, with nothing new to save"
    )
    assert [path.name for path in out.glob("checkpoint*")] == ["checkpoint.pt"]


@pytest.mark.slow
def test_a_second_signal_ends_both_at_once(
    class_folders: Path, out: Path, in_control: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = in_control(HELD)

    def stop_twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    once_control_trains(monkeypatch, out, stop_twice)
    with pytest.raises(KeyboardInterrupt):
        pipeline.distill_student(make_setup(class_folders, out))
    assert not is_alive(pid)
    assert not (out / "checkpoint.pt").exists()


@pytest.mark.slow
def test_a_stop_while_only_the_control_still_trains_saves_it(
    class_folders: Path, out: Path, whole: Path, in_control: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_control(HELD)

    def stop_later() -> None:
        wait_until(lambda: (out / "learning_curves.png").exists() and "control" in stages_of(out))
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_later, daemon=True).start()
    with pytest.raises(Interrupted, match=r"^control, .*, and saved$") as stopped:
        pipeline.distill_student(make_setup(class_folders, out))
    assert stopped.value.exit_code == 143
    assert [path.name for path in out.glob("checkpoint*")] == ["checkpoint-control.pt"]
    monkeypatch.undo()
    pipeline.distill_student(make_setup(class_folders, out, resume=True))
    assert {"student.safetensors", "control.safetensors"} <= {path.name for path in out.iterdir()}


@pytest.mark.slow
def test_an_error_of_the_student_stops_the_control_which_saves_its_state(
    class_folders: Path, out: Path, in_control: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = in_control(HELD)

    def fail() -> None:
        raise TrainingError("the student has failed", "do this")

    once_control_trains(monkeypatch, out, fail)
    with pytest.raises(TrainingError, match="the student has failed; do this"):
        pipeline.distill_student(make_setup(class_folders, out))
    assert not is_alive(pid)
    assert (out / "checkpoint-control.pt").exists()
    assert torch.get_num_threads() == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        (
            "from toolkit.errors import DataError; raise DataError('the disk is full', 'make room')",
            ToolkitError,
            r"^the disk is full; make room$",
        ),
        ("raise ValueError('a bug')", RuntimeError, r"^in the control's process:\nTraceback (.|\n)*ValueError: a bug"),
        (
            "os.kill(os.getpid(), 9)",
            TrainingError,
            r"^control: its process was ended by SIGKILL, .*; go on with --resume, which trains it alone$",
        ),
        ("os._exit(5)", RuntimeError, "^the control's process ended with exit code 5$"),
    ],
)
def test_an_error_of_the_control_is_said_at_once_and_raised_when_the_student_is_safe(
    class_folders: Path,
    out: Path,
    in_control: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    code: str,
    error: type[Exception],
    message: str,
) -> None:
    in_control(code)
    take, printed = Stepper.take, [""]

    def is_printed() -> bool:
        printed[0] += capsys.readouterr().err
        return "\nwarning: the control has failed: " in printed[0]

    def waiting(*arguments: Any) -> Any:
        """The student's first step."""
        monkeypatch.setattr(Stepper, "take", take)
        wait_until(is_printed)
        return take(*arguments)

    monkeypatch.setattr(Stepper, "take", waiting)
    with pytest.raises(error, match=message) as raised:
        pipeline.distill_student(make_setup(class_folders, out))
    assert printed[0].splitlines()[-1].endswith(f": the control has failed: {str(raised.value).splitlines()[-1]}")
    assert "has failed" not in capsys.readouterr().err, "once"
    assert (out / "student.safetensors").exists()
    assert not (out / "control.safetensors").exists()


@pytest.mark.slow
def test_a_control_s_state_from_before_it_had_a_file_of_its_own_is_gone_on_with(
    class_folders: Path, out: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(whole / "student.safetensors", out)
    save = Checkpoint.save

    def stop_after_two(checkpoint: Checkpoint, state: TrainingState) -> None:
        save(checkpoint, state)
        if state.epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "save", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        pipeline.distill_student(make_setup(class_folders, out))
    monkeypatch.undo()
    (out / "checkpoint-control.pt").rename(out / "checkpoint.pt")
    pipeline.distill_student(make_setup(class_folders, out, resume=True))
    assert "control: resuming at epoch 3, step 1" in capsys.readouterr().err
    assert not list(out.glob("checkpoint*"))
    assert ModelDir(out).checkpoint("control").name == "checkpoint-control.pt"


def test_the_plan_says_so_and_measures_with_the_threads_that_each_will_have(
    class_folders: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from toolkit.forecast import speeds

    threads: dict[bool, set[int]] = {}
    measure = speeds.step_seconds

    def noting(step: NetworkStep, *arguments: Any, **options: Any) -> float:
        threads.setdefault(step.training, set()).add(torch.get_num_threads())
        return measure(step, *arguments, **options)

    monkeypatch.setattr(speeds, "step_seconds", noting)
    setup = make_setup(class_folders, out, "training.seed=5")  # its logits are not stored
    planned = {stage.name: stage for stage in forecast_command(setup, "distill").stages}
    assert planned["student"].seconds > 0
    assert planned["control"].seconds == pytest.approx(CONTROL_START_S)
    assert planned["control"].note == BESIDE
    assert threads == {True: {1}, False: {1, 2}}, "the student's steps and validation, and the teacher's answers"
    assert torch.get_num_threads() == 2


@pytest.mark.slow
class TestCommand:
    """`python -m toolkit`, as a terminal starts it: in a process group of its own."""

    @pytest.fixture
    def running(self, class_folders: Path, out: Path, tmp_path: Path) -> Iterator[tuple["subprocess.Popen[str]", Path]]:
        """When both train; with the file of the other process's id."""
        paths = list(sys.path)
        pid = write_patches(tmp_path / "patches", SLOWLY, lambda path: paths.insert(0, path))
        with (tmp_path / "patches" / "sitecustomize.py").open("a") as file:
            file.write("from toolkit.machine import limits\nlimits.available_cores = lambda: 2\n")
        settings = [word for setting in SMALL for word in ("--set", setting)]
        flags = ["--data", str(class_folders), "--out", str(out), "--device", "cpu", *settings]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        process = start_toolkit("distill", *flags, "--set", "distill.epochs=2000", env=environment, process_group=0)
        wait_until(lambda: process.poll() is not None or {"distill", "control"} <= set(stages_of(out)))
        yield process, pid
        process.kill()
        process.communicate()

    def test_ctrl_c_in_a_terminal_stops_both(self, running: tuple["subprocess.Popen[str]", Path], out: Path) -> None:
        process, pid = running
        os.killpg(process.pid, signal.SIGINT)
        said = process.communicate(timeout=HANG_S)[1]
        assert process.returncode == 130, said
        assert "Traceback" not in said
        last = said.splitlines()[-1]
        assert re.fullmatch(
            r"stopped in student, .*, and saved; in control, .*, and saved; go on with: toolkit distill .*-resume", last
        ), said
        assert not is_alive(pid)
        assert {path.name for path in out.glob("checkpoint*")} == {"checkpoint.pt", "checkpoint-control.pt"}

    def test_ctrl_z_suspends_both_and_both_go_on(
        self, running: tuple["subprocess.Popen[str]", Path], out: Path
    ) -> None:
        process, pid = running
        both = (process.pid, int(pid.read_text()))

        def suspend_and_go_on() -> None:
            os.killpg(process.pid, signal.SIGTSTP)
            wait_until(lambda: [state_of(one) for one in both] == ["T", "T"])
            before = stages_of(out)
            os.killpg(process.pid, signal.SIGCONT)  # as fg does
            wait_until(lambda: all(stages_of(out).count(role) > before.count(role) for role in ("distill", "control")))

        suspend_and_go_on()
        suspend_and_go_on()

    def test_the_control_does_not_outlive_it(self, running: tuple["subprocess.Popen[str]", Path], out: Path) -> None:
        process, pid = running
        process.kill()
        wait_until(lambda: not is_alive(pid))
        assert (out / "checkpoint-control.pt").exists()
