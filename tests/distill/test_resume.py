"""Nothing is lost: training that was stopped or killed at any moment goes on to the very same weights."""

import itertools
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from distill_samples import (
    SETTINGS,
    SMALL,
    Splits,
    ToolkitCommands,
    differences,
    hold_training,
    load_splits,
    make_plan,
    make_records,
    make_state,
    make_student,
    make_views,
    read_lines,
    tapped,
)
from safetensors.torch import load_file
from torch import Tensor, nn

from toolkit.distill import interruption, trainer
from toolkit.distill.checkpoint import Checkpoint
from toolkit.distill.features import TappedNetwork
from toolkit.distill.objective import NetworkOutput, Objective, learn_from_labels
from toolkit.distill.plan import Plan
from toolkit.distill.step import Stepper
from toolkit.distill.trainer import BestWeights, train
from toolkit.distill.training import Training
from toolkit.errors import ArtifactError, Interrupted

LABELS = learn_from_labels(0.1)
STEPS_AN_EPOCH = 5  # 36 images in batches of 8


class PowerCut(BaseException):
    """Stands for kill -9: nothing runs after it."""


@pytest.fixture(scope="module")
def splits(class_folders: Path) -> Splits:
    return load_splits(class_folders)


@pytest.fixture(scope="module")
def toolkit(tmp_path_factory: pytest.TempPathFactory) -> ToolkitCommands:
    return ToolkitCommands(tmp_path_factory.mktemp("logs"))


def make_dropout_network() -> TappedNetwork:
    torch.manual_seed(0)
    convolution = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(0.3))
    return tapped(nn.Sequential(convolution, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.5), nn.Linear(32, 3)))


CASES = {
    "depthwise, sgd, one-cycle, ema, mixup": (
        make_student,
        make_plan(epochs=3, batch_size=8, schedule="one-cycle", warm_up=0.25, ema=0.9, mixup=0.3, optimizer="sgd"),
    ),
    "dropout, adamw, cosine, growing images": (
        make_dropout_network,
        make_plan(epochs=3, batch_size=8, schedule="cosine", warm_up=0.1, optimizer="adamw", start_image_size=16),
    ),
}


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> tuple[Any, Plan]:
    return CASES[request.param]


def interrupting(after: int, what: signal.Signals | type[BaseException] = signal.SIGINT, times: int = 1) -> Objective:
    """The labels' objective, which is interrupted in training step number `after` (from 1) of this process."""
    calls = itertools.count(1)

    def objective(student: NetworkOutput, target: Tensor, teacher: NetworkOutput | None, *_: object) -> Tensor:
        if student.logits.requires_grad and next(calls) == after:
            if not isinstance(what, signal.Signals):
                raise what
            for _ in range(times):
                signal.raise_signal(what)
        return LABELS(student, target, teacher)

    return objective


def stopping_at_validation(number: int) -> Objective:
    """The labels' objective; Ctrl-C comes during validation `number` (from 1) of this process."""
    validations = itertools.count(1)

    def objective(student: NetworkOutput, target: Tensor, teacher: NetworkOutput | None, *_: object) -> Tensor:
        if not student.logits.requires_grad and next(validations) == number:
            signal.raise_signal(signal.SIGINT)
        return LABELS(student, target, teacher)

    return objective


def go_on(case: tuple[Any, Plan], splits: Splits, folder: Path, objective: Objective = LABELS) -> BestWeights:
    """A run from its beginning or from the checkpoint in `folder`, with everything made again as in a new process."""
    make, plan = case
    state = make_records(folder).checkpoint.open(resume=True, force=False)
    torch.manual_seed(random.getrandbits(32))  # after any earlier work of the process
    learner = make()
    views = make_views(splits[0], mixup=plan.section.mixup)
    return train(Training(learner, objective, views, splits[1], plan), make_records(folder, state))


def assert_same_result(folder: Path, uninterrupted: Path, epochs: int = 3) -> None:
    """Weights, optimiser, schedule, average, random numbers, history and best epoch, to the bit."""
    got, expected = (torch.load(path / "checkpoint.pt", weights_only=True) for path in (folder, uninterrupted))
    assert list(differences(got, expected)) == []
    lines = read_lines(folder / "metrics.jsonl")
    assert [line["epoch"] for line in lines] == list(range(epochs))


@pytest.mark.parametrize("stop", [1, 3, 5, 6, 14, 15])
def test_a_run_that_was_stopped_after_any_step_ends_as_one_that_was_not(
    case: tuple[Any, Plan], splits: Splits, tmp_path: Path, stop: int, capsys: pytest.CaptureFixture[str]
) -> None:
    uninterrupted = go_on(case, splits, tmp_path / "whole")
    epoch, step = divmod(stop - 1, STEPS_AN_EPOCH)
    with pytest.raises(Interrupted) as stopped:
        go_on(case, splits, tmp_path / "cut", interrupting(stop))
    assert stopped.value.where == f"student, epoch {epoch + 1}, step {step + 1}, and saved"
    assert stopped.value.exit_code == 130
    assert "stopping after this step; press Ctrl-C again to stop now" in capsys.readouterr().err

    resumed = go_on(case, splits, tmp_path / "cut")
    assert f"student: resuming at epoch {epoch + 1}, step {step + 2}" in capsys.readouterr().err
    assert_same_result(tmp_path / "cut", tmp_path / "whole")
    assert list(differences(resumed.state_dict, uninterrupted.state_dict)) == []
    assert (resumed.best.epoch, resumed.images_seen) == (uninterrupted.best.epoch, 3 * 36)


def test_a_run_that_is_stopped_after_every_single_step_ends_the_same(
    case: tuple[Any, Plan], splits: Splits, tmp_path: Path
) -> None:
    go_on(case, splits, tmp_path / "whole")
    for _ in range(3 * STEPS_AN_EPOCH):
        with pytest.raises(Interrupted) as stopped:
            go_on(case, splits, tmp_path / "cut", interrupting(1, signal.SIGTERM))
        assert stopped.value.exit_code == 143
    go_on(case, splits, tmp_path / "cut")
    assert_same_result(tmp_path / "cut", tmp_path / "whole")


def test_a_power_cut_costs_no_more_than_what_came_after_the_last_checkpoint(
    case: tuple[Any, Plan], splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a checkpoint after every step, and with one at the end of each epoch alone."""
    go_on(case, splits, tmp_path / "whole")
    for save_seconds in (0.0, 1e9):
        monkeypatch.setattr(trainer, "SAVE_SECONDS", save_seconds)
        folder = tmp_path / str(save_seconds)
        for after in (4, 3, 7):
            with pytest.raises(PowerCut):
                go_on(case, splits, folder, interrupting(after, PowerCut))
        go_on(case, splits, folder)
        assert_same_result(folder, tmp_path / "whole")


def test_a_power_cut_between_checkpoint_and_metrics_leaves_each_epoch_once(
    splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES["dropout, adamw, cosine, growing images"]
    go_on(case, splits, tmp_path / "whole")
    for moment in (Checkpoint.save, trainer.MetricsLog.add):
        with monkeypatch.context() as patch:

            def cut_after(self: Any, what: Any, moment: Any = moment) -> None:
                moment(self, what)
                raise PowerCut

            patch.setattr(Checkpoint if moment is Checkpoint.save else trainer.MetricsLog, moment.__name__, cut_after)
            with pytest.raises(PowerCut):
                go_on(case, splits, tmp_path / "cut")
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "distill", "epo')  # a line that the cut tore
    go_on(case, splits, tmp_path / "cut")
    assert_same_result(tmp_path / "cut", tmp_path / "whole")


def test_if_epochs_end_without_a_checkpoint_a_stop_between_two_saves_and_a_power_cut_costs_them(
    splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where checkpoints are written by time."""
    case = CASES["depthwise, sgd, one-cycle, ema, mixup"]
    go_on(case, splits, tmp_path / "whole")
    monkeypatch.setattr(trainer._Run, "_saves_every_epoch", lambda _: False)
    (tmp_path / "cut").mkdir()
    with pytest.raises(Interrupted, match="student, after epoch 1"):
        go_on(case, splits, tmp_path / "cut", stopping_at_validation(1))
    with pytest.raises(PowerCut):
        go_on(case, splits, tmp_path / "cut", interrupting(STEPS_AN_EPOCH + 2, PowerCut))
    assert [line["epoch"] for line in read_lines(tmp_path / "cut" / "metrics.jsonl")] == [0, 1]
    go_on(case, splits, tmp_path / "cut")
    assert_same_result(tmp_path / "cut", tmp_path / "whole")


def test_a_signal_that_comes_while_the_last_epoch_is_validated_is_obeyed(splits: Splits, tmp_path: Path) -> None:
    """Else Ctrl-C would end one stage and begin the next."""
    case = CASES["dropout, adamw, cosine, growing images"]
    go_on(case, splits, tmp_path / "whole")
    with pytest.raises(Interrupted, match="student, after epoch 3"):
        go_on(case, splits, tmp_path / "cut", stopping_at_validation(3))
    assert_same_result(tmp_path / "cut", tmp_path / "whole")
    go_on(case, splits, tmp_path / "cut")
    assert_same_result(tmp_path / "cut", tmp_path / "whole")


def test_a_second_signal_stops_at_once_and_handlers_come_back(splits: Splits, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        go_on(CASES["dropout, adamw, cosine, growing images"], splits, tmp_path, interrupting(2, times=2))
    assert not (tmp_path / "checkpoint.pt").exists()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.fixture
def one_of_two(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process as torchrun would have started it; the other one is not needed. Handlers come back."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    before = {number: signal.getsignal(number) for number in interruption.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("one_of_two")
def test_one_of_several_processes_takes_a_signal_that_comes_twice_for_one(splits: Splits, tmp_path: Path) -> None:
    case = CASES["dropout, adamw, cosine, growing images"]
    with pytest.raises(Interrupted, match="student, epoch 1, step 2"):
        go_on(case, splits, tmp_path, interrupting(2, signal.SIGTERM, times=3))
    assert (tmp_path / "checkpoint.pt").exists()
    # all is saved, and torchrun may send one more as the others end
    assert [signal.getsignal(number) for number in interruption.SIGNALS] == [signal.SIG_IGN] * 2


@pytest.mark.usefixtures("one_of_two")
def test_one_of_several_processes_stops_at_once_at_a_signal_that_comes_later(
    splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interruption, "REPEAT_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        go_on(CASES["dropout, adamw, cosine, growing images"], splits, tmp_path, interrupting(2, times=2))


@pytest.mark.parametrize("error", [BrokenPipeError(), SystemExit(1), RuntimeError("reentrant"), ImportError()])
def test_a_signal_is_obeyed_even_if_nothing_can_be_printed(
    splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """Ctrl-C also ends the program that the output is piped to; and it may come while the first line is written."""

    def say(text: str) -> None:
        if "stopping" in text:
            raise error

    monkeypatch.setattr(interruption.console, "say", say)
    with pytest.raises(Interrupted):
        go_on(CASES["dropout, adamw, cosine, growing images"], splits, tmp_path, interrupting(2))
    assert (tmp_path / "checkpoint.pt").exists()


def end_after_a_signal(error: Exception | None) -> None:
    with interruption.stop_request():
        signal.raise_signal(signal.SIGINT)
        if error is not None:
            raise error


@pytest.mark.parametrize("error", [None, RuntimeError("[gloo/transport/tcp/pair.cc:549] Connection closed by peer")])
def test_a_signal_that_comes_too_late_to_be_obeyed_is_not_forgotten(error: Exception | None) -> None:
    with pytest.raises(KeyboardInterrupt):
        end_after_a_signal(error)


def test_a_signal_that_an_outer_request_noted_stops_the_body_too_and_is_not_sent_again(
    splits: Splits, tmp_path: Path
) -> None:
    """A signal that comes while the student's control is being started, before the student's own epochs begin."""
    with interruption.stop_request() as outer:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted) as stopped:
            go_on(CASES["dropout, adamw, cosine, growing images"], splits, tmp_path)
        with interruption.stop_request() as inner:
            assert inner.signal_number == signal.SIGTERM
        assert (stopped.value.where, stopped.value.exit_code) == ("student, epoch 1, step 1, and saved", 143)
        outer.signal_number = 0


def test_an_error_is_reported_even_if_a_signal_came() -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        end_after_a_signal(RuntimeError("a bug"))


def test_a_long_epoch_is_saved_before_its_validation(
    case: tuple[Any, Plan], splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation may outlast the patience of the sender of the signal."""
    go_on(case, splits, tmp_path / "whole")
    monkeypatch.setattr(trainer, "SAVE_SECONDS_AT_END", 0.0)

    def objective(student: NetworkOutput, target: Tensor, teacher: NetworkOutput | None, *_: object) -> Tensor:
        if not student.logits.requires_grad:
            raise PowerCut
        return LABELS(student, target, teacher)

    with pytest.raises(PowerCut):
        go_on(case, splits, tmp_path / "cut", objective)
    progress = torch.load(tmp_path / "cut" / "checkpoint.pt", weights_only=True)["progress"]
    assert (progress["epoch"], progress["step"]) == (0, STEPS_AN_EPOCH)
    go_on(case, splits, tmp_path / "cut")
    assert_same_result(tmp_path / "cut", tmp_path / "whole")


def test_patience_counts_across_a_stop(splits: Splits, tmp_path: Path) -> None:
    def make() -> TappedNetwork:
        torch.manual_seed(0)
        return tapped(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3)))

    case = make, make_plan(epochs=9, batch_size=8, patience=2, learning_rate=1e-12)
    with pytest.raises(Interrupted):
        go_on(case, splits, tmp_path, interrupting(2 * STEPS_AN_EPOCH + 2))
    assert go_on(case, splits, tmp_path).epochs == 3


def test_a_checkpoint_holds_what_it_held_in_earlier_versions() -> None:
    parts = ["learner", "optimizer", "scheduler", "average", "part_size", "epoch", "progress", "first_rate"]
    parts += ["history", "best", "best_state", "rng", "gpu_rng", "precision", "teacher_precision"]
    assert list(make_state().to_dict()) == parts
    sums = ["epoch", "step", "loss_sum", "hits", "epoch_s", "seconds", "training_s", "images_seen"]
    assert list(make_state().to_dict()["progress"]) == sums


class TestRefusals:
    def test_an_interrupted_run_is_not_replaced_or_resumed_without_a_flag(self, tmp_path: Path) -> None:
        checkpoint = make_records(tmp_path).checkpoint
        checkpoint.save(make_state(2))
        message = (
            rf"an interrupted run lies in {re.escape(str(tmp_path))} \(student, epoch 3\); go on with --resume, or"
        )
        with pytest.raises(ArtifactError, match=message):
            checkpoint.open(resume=False, force=False)
        assert checkpoint.path.exists()

    def test_other_settings_are_named(self, tmp_path: Path) -> None:
        make_records(tmp_path).checkpoint.save(make_state())
        settings = {"stage": "student", "recipe_sha256": "other", "dataset_sha256": "d", "teacher_sha256": "t"}
        message = "was made with another recipe and teacher; give the settings it was made with, or start over with --f"
        for resume in (True, False):
            with pytest.raises(ArtifactError, match=message):
                Checkpoint(tmp_path / "checkpoint.pt", settings).open(resume=resume, force=False)

    @pytest.mark.parametrize(
        ("theirs", "ours", "command"), [("teacher", "student", "teacher"), ("control", "student", "distill")]
    )
    def test_another_stage_is_named_with_its_command(
        self, tmp_path: Path, theirs: str, ours: str, command: str
    ) -> None:
        path = tmp_path / "checkpoint.pt"
        Checkpoint(path, {"stage": theirs}).save(make_state())
        message = (
            rf"is of an interrupted {theirs} stage, not of {ours}; go on with toolkit {command} --resume, or start over"
        )
        with pytest.raises(ArtifactError, match=message):
            Checkpoint(path, {"stage": ours}).open(resume=True, force=False)

    @pytest.mark.parametrize("content", [b"", b"nonsense", b"cut", b"pickle"])
    def test_a_damaged_file_is_one_line(self, tmp_path: Path, content: bytes) -> None:
        checkpoint = make_records(tmp_path).checkpoint
        checkpoint.save(make_state(learner={"weights": torch.rand(1000)}))
        whole = checkpoint.path.read_bytes()
        if content == b"pickle":
            torch.save({"epoch": Path("a class that is not plain data")}, checkpoint.path)
        else:
            checkpoint.path.write_bytes(whole[: len(whole) // 2] if content == b"cut" else content)
        with pytest.raises(
            ArtifactError, match=r"checkpoint.pt cannot be read \(.+\); delete it, or start over"
        ) as caught:
            checkpoint.open(resume=True, force=False)
        assert "\n" not in str(caught.value)
        assert checkpoint.open(resume=False, force=True) is None
        assert not checkpoint.path.exists()

    def test_a_file_that_is_no_checkpoint_is_one_line(self, tmp_path: Path) -> None:
        checkpoint = make_records(tmp_path).checkpoint
        for content in ({"epoch": 0}, [1, 2], torch.rand(2), {"settings": 3}):
            torch.save(content, checkpoint.path)
            with pytest.raises(ArtifactError, match=r"checkpoint.pt cannot be read"):
                checkpoint.open(resume=True, force=False)

    def test_a_state_that_lacks_a_part_is_one_line(self, tmp_path: Path) -> None:
        checkpoint = make_records(tmp_path).checkpoint
        values = make_state().to_dict()
        del values["scheduler"], values["rng"]
        torch.save(values | {"settings": SETTINGS}, checkpoint.path)
        with pytest.raises(ArtifactError, match=r"cannot be read \(it has no scheduler, rng\); delete it"):
            checkpoint.open(resume=True, force=False)

    def test_a_write_that_fails_leaves_the_last_checkpoint(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        checkpoint = make_records(tmp_path).checkpoint
        checkpoint.save(make_state(1))

        def write_half(path: Path, content: memoryview) -> None:
            with path.open("wb") as file:
                file.write(content[: len(content) // 2])
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_bytes", write_half)
            with pytest.raises(ArtifactError, match=r"cannot write .*checkpoint.pt: No space"):
                checkpoint.save(make_state(2))
        state = checkpoint.open(resume=True, force=False)
        assert state is not None
        assert state.epoch == 1
        assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


# Below, the command itself in other processes.

WHOLE = (
    *("--set", "distill.control=true", "--set", "distill.mixup=0.2", "--set", "distill.ema=0.9"),
    *("--set", "teacher.epochs=2", "--set", "distill.epochs=3"),
)


EPOCHS = 4
TEACHER_HELD = partial(hold_training, 2 * 3 + 1)
"""In the third epoch of the teacher; it takes three steps per epoch."""
STUDENT_HELD = partial(hold_training, 3 * 3 + 2 * STEPS_AN_EPOCH + 1)
"""In the third epoch of the student, after three of the teacher."""


def same_tensors(one: Path, other: Path) -> bool:
    ours, theirs = load_file(one), load_file(other)
    return list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


def assert_whole_files(out: Path) -> None:
    """Every file with a final name can be read to its end."""
    for path in out.glob("[!.]*.safetensors"):
        load_file(path)
    for path in out.glob("checkpoint*"):
        torch.load(path, weights_only=True)
    if (out / "metrics.jsonl").exists():
        read_lines(out / "metrics.jsonl")


@pytest.mark.slow
@pytest.mark.parametrize("teacher_views", [0, 2])
def test_kill_9_at_any_moment_loses_nothing(
    toolkit: ToolkitCommands, class_folders: Path, tmp_path: Path, teacher_views: int
) -> None:
    """Teacher, student and control in one command, killed at random moments until it is done."""
    flags = ["--data", class_folders, *SMALL, *WHOLE, "--set", f"distill.teacher_views={teacher_views}"]
    cache = {"KD_TOOLKIT_CACHE": str(tmp_path / "cache")}  # so that decoding and the store are interrupted too
    toolkit.run("distill", "--out", tmp_path / "whole", *flags)
    moments = random.Random(teacher_views)
    out, kills, resumed = tmp_path / "killed", 0, set()
    while True:
        held = partial(hold_training, 4) if kills < 2 else None  # so that it does not end before it is killed
        command = ["distill", "--out", out, *flags, "--resume"]
        running = toolkit.start(*command, save_seconds=0.0, environment=cache, prepare=held)
        if kills == 0:
            running.wait_for("teacher    1/2")  # there is a checkpoint, and the next run goes on from it
        else:
            if kills == 1 or moments.random() < 0.7:  # a kill in the midst of it, else one while it starts
                running.wait_for("resuming at epoch", "no state was saved", "control.safetensors is up to date")
            running.process.join(moments.uniform(0, 0.3) * max(1, kills - 6))  # it must come to an end some time
        if not running.process.is_alive():
            break
        running.send(signal.SIGKILL)
        running.process.join()
        kills += 1
        assert_whole_files(out)
        resumed |= set(re.findall(r"^(\w+): resuming at epoch", running.said, re.MULTILINE))
        assert kills < 200
    running.end(0)
    assert kills >= 2
    assert resumed, "at least one stage went on from a checkpoint"
    for role in ("teacher", "student", "control"):
        assert same_tensors(out / f"{role}.safetensors", tmp_path / "whole" / f"{role}.safetensors"), role
    lines, expected = read_lines(out / "metrics.jsonl"), read_lines(tmp_path / "whole" / "metrics.jsonl")
    assert list(differences(lines, expected)) == []
    assert not list(out.glob("checkpoint*"))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_command_says_where_it_stopped_and_how_to_go_on(
    toolkit: ToolkitCommands, class_folders: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """And the line it says works as it stands, in a shell, in a directory with a space in its name."""
    flags = ["--data", class_folders, *SMALL, "--set", f"distill.epochs={EPOCHS}"]
    toolkit.run("distill", "--out", tmp_path / "whole", *flags)
    out = tmp_path / "my model"
    running = toolkit.start("distill", *flags, "--out", out, prepare=STUDENT_HELD)
    running.wait_for(f"student    2/{EPOCHS}")
    running.send(number)
    last = running.end(code).splitlines()[-1]
    found = re.fullmatch(
        r"stopped in student, .*epoch \d+.*, and saved; go on with: (toolkit distill .* --resume)", last
    )
    assert found, last
    assert "Traceback" not in running.said
    assert (out / "checkpoint.pt").exists()
    assert not (out / "student.safetensors").exists()

    command = f"taskset -c {min(os.sched_getaffinity(0))} {found[1]}"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(["sh", "-c", command], env={**os.environ, "PATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "student: resuming at epoch" in done.stderr
    assert same_tensors(out / "student.safetensors", tmp_path / "whole" / "student.safetensors")
    assert [line["epoch"] for line in read_lines(out / "metrics.jsonl") if line["stage"] == "distill"] == [
        *range(EPOCHS)
    ]


def take_a_step_without_end() -> None:
    def step(self: Stepper, *arguments: Any) -> Any:
        print("taking a step", flush=True)  # noqa: T201 - into the log
        while True:
            time.sleep(1)

    Stepper.take = step  # type: ignore[method-assign]


def test_a_second_ctrl_c_stops_the_command_without_saving(
    toolkit: ToolkitCommands, class_folders: Path, tmp_path: Path
) -> None:
    flags = ["--data", class_folders, *SMALL, "--out", tmp_path / "m", "--resume"]
    running = toolkit.start("teacher", *flags, prepare=take_a_step_without_end)
    running.wait_for("taking a step")
    running.send(signal.SIGINT)
    running.wait_for("stopping after this step; press Ctrl-C again to stop now")
    running.send(signal.SIGINT)
    last = running.end(130).splitlines()[-1]
    assert last.startswith("stopped; go on with: toolkit teacher ")
    assert last.endswith(" --resume")
    assert "Traceback" not in running.said
    assert {path.name for path in (tmp_path / "m").iterdir()} <= {".lock"}, "a forked process leaves its lock file"


@pytest.fixture(scope="module")
def stopped(toolkit: ToolkitCommands, class_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a teacher, and a student that was stopped in the middle."""
    out = tmp_path_factory.mktemp("stopped")
    running = toolkit.start("distill", "--data", class_folders, "--out", out, *SMALL, *LONG, prepare=STUDENT_HELD)
    running.wait_for("student    2/400")
    running.send(signal.SIGTERM)
    running.end(143)
    return out


LONG = ("--set", "distill.epochs=400")


def last_line(said: str) -> str:
    assert "Traceback" not in said
    return said.strip().splitlines()[-1]


def test_refusals_of_an_interrupted_directory(toolkit: ToolkitCommands, class_folders: Path, stopped: Path) -> None:
    """Each in one line, with nothing changed."""
    before = (stopped / "checkpoint.pt").read_bytes()
    command = ["distill", "--data", class_folders, "--out", stopped, *SMALL, *LONG]
    unasked = last_line(toolkit.run(*command, code=1))
    assert re.fullmatch(
        rf"error: an interrupted run lies in {stopped} \(student, epoch \d+\);"
        r" go on with --resume, or start over with --force \(in Python: resume=True, force=True\)",
        unasked,
    )
    others = last_line(toolkit.run(*command, "--resume", "--set", "distill.alpha=0.1", code=1))
    assert others == (
        f"error: {stopped}/checkpoint.pt was made with another recipe;"
        " give the settings it was made with, or start over with --force (in Python: resume=True, force=True)"
    )
    teacher = last_line(
        toolkit.run("teacher", *command[1:], "--force", "--resume", "--set", "teacher.epochs=9", code=1)
    )
    assert teacher == (
        f"error: {stopped}/checkpoint.pt is of an interrupted student stage, not of teacher;"
        " go on with toolkit distill --resume, or start over with --force (in Python: resume=True, force=True)"
    )
    assert (stopped / "checkpoint.pt").read_bytes() == before


def test_a_damaged_checkpoint_is_refused_and_force_starts_over(
    toolkit: ToolkitCommands, class_folders: Path, stopped: Path, tmp_path: Path
) -> None:
    (tmp_path / "teacher.safetensors").write_bytes((stopped / "teacher.safetensors").read_bytes())
    (tmp_path / "checkpoint.pt").write_bytes((stopped / "checkpoint.pt").read_bytes()[:-1000])
    command = ["distill", "--data", class_folders, "--out", tmp_path, *SMALL, "--set", "distill.epochs=2"]
    damaged = last_line(toolkit.run(*command, "--resume", code=1))
    assert damaged.startswith(f"error: {tmp_path}/checkpoint.pt cannot be read (")
    assert damaged.endswith("); delete it, or start over with --force")
    forced = toolkit.run(*command, "--force")
    assert "going on" not in forced
    assert [line["epoch"] for line in read_lines(tmp_path / "metrics.jsonl")] == [0, 1]
    assert not (tmp_path / "checkpoint.pt").exists()

    assert "student.safetensors is up to date" in toolkit.run(*command, "--resume")


def test_a_forced_run_that_was_stopped_goes_on_with_the_line_it_says(
    toolkit: ToolkitCommands, class_folders: Path, tmp_path: Path
) -> None:
    """Though the file that it is to replace was made from the very same settings."""
    command = ["teacher", "--data", class_folders, "--out", tmp_path, *SMALL, "--set", f"teacher.epochs={EPOCHS}"]
    assert "teacher: no state was saved, starting over" in toolkit.run(*command, "--resume")
    first = (tmp_path / "teacher.safetensors").stat().st_mtime_ns
    running = toolkit.start(*command, "--force", prepare=TEACHER_HELD)
    running.wait_for(f"teacher    2/{EPOCHS}")
    running.send(signal.SIGINT)
    assert last_line(running.end(130)).endswith("--force --resume")
    resumed = toolkit.run(*command, "--force", "--resume")
    assert "teacher: resuming at epoch" in resumed
    assert (tmp_path / "teacher.safetensors").stat().st_mtime_ns > first
    assert len(read_lines(tmp_path / "metrics.jsonl")) == EPOCHS
    assert "teacher.safetensors is up to date" in toolkit.run(*command, "--resume")


def test_a_state_whose_result_is_there_already_goes(
    toolkit: ToolkitCommands, class_folders: Path, tmp_path: Path
) -> None:
    """A kill between writing the weights and deleting the state must not stop the next stage."""
    command = ["teacher", "--data", class_folders, "--out", tmp_path, *SMALL, "--set", f"teacher.epochs={EPOCHS}"]
    running = toolkit.start(*command, prepare=TEACHER_HELD)
    running.wait_for(f"teacher    2/{EPOCHS}")
    running.send(signal.SIGTERM)
    running.end(143)
    state = (tmp_path / "checkpoint.pt").read_bytes()
    toolkit.run(*command, "--resume")
    (tmp_path / "checkpoint.pt").write_bytes(state)
    assert "is up to date" in toolkit.run(*command)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_the_rest_of_a_killed_write_of_a_checkpoint_is_cleaned_up(tmp_path: Path) -> None:
    checkpoint = make_records(tmp_path).checkpoint
    checkpoint.save(make_state())
    (tmp_path / f".{checkpoint.path.name}.x1y2.pt").write_bytes(b"half a state")
    checkpoint.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_while_a_checkpoint_is_written_is_one_line(tmp_path: Path) -> None:
    """To the writer, a limit on the size of files is like a full disk."""
    checkpoint = make_records(tmp_path).checkpoint
    checkpoint.save(make_state())
    before = checkpoint.path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(ArtifactError, match=r"cannot write .*checkpoint\.pt: File too large"):
            checkpoint.save(make_state(1, learner={"weights": torch.zeros(100_000)}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoint.path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [checkpoint.path]
