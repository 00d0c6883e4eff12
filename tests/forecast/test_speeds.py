"""Measuring and forecasting on a clock that goes on with the networks' real work, and real files."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import make_image
from torch import Tensor

from toolkit import pipeline
from toolkit.data.batches import TrainingViews
from toolkit.data.device_views import DeviceViews
from toolkit.data.pixels import Pixels
from toolkit.data.resident import ResidentPixels
from toolkit.distill import precision, quantized, step_graph
from toolkit.distill.step import Stepper
from toolkit.distill.step_graph import Sums
from toolkit.errors import ArtifactError
from toolkit.forecast import minutes, speeds
from toolkit.forecast.command import forecast_command
from toolkit.forecast.estimate import THERE, estimate
from toolkit.forecast.facts import Command, find_facts
from toolkit.forecast.fit import RecipeChoice
from toolkit.forecast.forecast import Forecast
from toolkit.forecast.speeds import MeasuredSpeeds
from toolkit.modeldir import Role
from toolkit.networks.classifier import Classifier
from toolkit.networks.depthwise import DepthwiseStudent
from toolkit.recipe import Recipe
from toolkit.stage_setup import StageSetup, prepare_training

SMALL = [
    *("data.image_size=32", "data.resize=36", "training.precision=fp32", "distill.teacher_precision=fp32"),
    *(
        "teacher.architecture=squeezenet1_1",
        "teacher.epochs=3",
        "teacher.batch_size=12",
        "distill.epochs=5",
        "distill.batch_size=6",
        "student.base=4",
    ),
]


class Work:
    """A clock that goes on by 1 µs per pixel for a forward pass of the teacher, 0.1 µs for one of the student and
    0.05 µs for a rendered view; with the backward pass three times as much."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        forward, render = Classifier.forward, TrainingViews.render

        def classify(network: Classifier, images: Tensor) -> Tensor:
            cost = 1e-7 if isinstance(network.network, DepthwiseStudent) else 1e-6
            self.now += images.shape[0] * images.shape[-1] ** 2 * cost * (3 if torch.is_grad_enabled() else 1)
            return forward(network, images)

        def show(views: TrainingViews, indices: Any, view: int, side: int | None = None) -> Tensor:
            self.now += len(indices) * (side or views.data.image_size) ** 2 * 5e-8
            return render(views, indices, view, side)

        monkeypatch.setattr(Classifier, "forward", classify)
        monkeypatch.setattr(TrainingViews, "render", show)

    def clock(self) -> float:
        return self.now


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Iterator[Work]:
    precision.forget()
    quantized.forget()
    monkeypatch.setattr(speeds, "WRITE_BYTES_S", 1e15)
    monkeypatch.setattr("toolkit.machine.limits.available_cores", lambda: 1)  # the clock sees no other process's work
    yield Work(monkeypatch)
    precision.forget()


def make_setup(class_folders: Path, out: Path, *overrides: str, **options: Any) -> StageSetup:
    return prepare_training(None, str(class_folders), out, [*SMALL, *overrides], device="cpu", **options)


def forecast(setup: StageSetup, work: Work, command: Command = "distill") -> Forecast:
    facts = find_facts(setup, command)
    return estimate(setup.recipe, facts, MeasuredSpeeds(setup.dataset, facts, "cpu", work.clock))


def seconds_of(planned: Forecast, *names: str) -> float:
    return sum(stage.seconds for stage in planned.stages if stage.name in names)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("distill.teacher_views=2",),
        ("distill.start_image_size=16", "teacher.start_image_size=16", "distill.ema=0.9"),
        ("distill.mixup=0.2", "distill.control=true"),
    ],
)
def test_the_work_takes_as_long_as_was_forecast_within_a_quarter(
    class_folders: Path, tmp_path: Path, work: Work, overrides: tuple[str, ...]
) -> None:
    if "distill.start_image_size=16" in overrides:
        overrides = (*overrides, "teacher.architecture=resnet18")  # SqueezeNet takes no images of 16 px
    setup = make_setup(class_folders, tmp_path, *overrides)
    planned = forecast(setup, work)
    start = work.now
    pipeline.make_teacher(setup)
    assert work.now - start == pytest.approx(seconds_of(planned, "teacher"), rel=0.25)
    pipeline.distill_student(setup)
    names = ("teacher", "teacher logits", "student", "control")
    assert work.now - start == pytest.approx(seconds_of(planned, *names), rel=0.25)


def test_measuring_takes_little_of_the_work(class_folders: Path, tmp_path: Path, work: Work) -> None:
    setup = make_setup(
        class_folders, tmp_path, "distill.epochs=500", "teacher.epochs=500", "distill.teacher_precision=auto"
    )
    planned = forecast(setup, work, "run")
    assert work.now < 0.03 * planned.seconds
    before = work.now
    forecast(setup, work, "run")
    assert work.now - before < 0.2, "only views are rendered again"


def test_stages_do_not_measure_or_say_again_what_the_plan_has(
    class_folders: Path, tmp_path: Path, work: Work, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "has_fast_bf16", lambda device: True)
    quick = ("training.precision=auto", "distill.teacher_precision=auto", "distill.epochs=2", "teacher.epochs=1")
    setup = make_setup(class_folders, tmp_path, *quick, seeds=2)
    forecast_command(setup, "distill")
    assert "precision:" not in capsys.readouterr().err
    monkeypatch.setattr(precision.NetworkStep, "take", never)
    pipeline.distill_student(setup)
    printed = [line.partition(" (")[0] for line in capsys.readouterr().err.splitlines() if "precision:" in line]
    purposes = ("to train SqueezeNet", "to train DepthwiseStudent", "for SqueezeNet to teach")
    assert [line.split(maxsplit=2)[2] for line in printed] == list(purposes), "each once, although there are two seeds"


@pytest.mark.parametrize(("command", "expected"), [("teacher", False), ("distill", False), ("run", True)])
def test_export_and_bench_are_mentioned_if_they_are_part_of_the_work(
    command: Command, expected: bool, class_folders: Path, tmp_path: Path
) -> None:
    measured = forecast_command(make_setup(class_folders, tmp_path), command).measured
    assert measured.startswith("measured here in ")
    assert measured.endswith("; export and bench are estimated from that" if expected else ", by single steps on cpu")


class TestOnAGpu:
    """A stand-in captures steps on the CPU: a forward pass takes 1 s, a replay 0.01 s."""

    @pytest.fixture
    def clock(self, work: Work, monkeypatch: pytest.MonkeyPatch) -> Callable[[], float]:
        now = [0.0]
        forward, init = Classifier.forward, TrainingViews.__init__

        def classify(network: Classifier, images: Tensor) -> Tensor:
            now[0] += 1.0
            return forward(network, images)

        def capture(step: Callable[[], Sums], device: torch.device) -> tuple[Sums, Callable[[], None]]:
            def replay() -> None:
                now[0] += 0.01

            return step(), replay

        def make_views(views: TrainingViews, pixels: Pixels, *args: Any, **options: Any) -> None:
            init(views, pixels, *args, **options)
            views.on_device = DeviceViews(views, ResidentPixels(pixels, "cpu"))

        monkeypatch.setattr(Classifier, "forward", classify)
        monkeypatch.setattr(TrainingViews, "__init__", make_views)
        monkeypatch.setattr(step_graph, "capture", capture)
        monkeypatch.setattr(step_graph, "watch", lambda step: (step(), False))
        monkeypatch.setattr(Stepper, "_is_capturable", lambda stepper: True)
        return lambda: now[0]

    @pytest.mark.parametrize(("role", "batch_size"), [("teacher", 12), ("student", 6)])
    def test_the_steps_that_are_timed_are_replays_and_leave_no_trace(
        self, role: Role, batch_size: int, class_folders: Path, tmp_path: Path, clock: Callable[[], float],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        setup = make_setup(class_folders, tmp_path, "distill.ema=0.9", "distill.mixup=0.2")
        measured = MeasuredSpeeds(setup.dataset, find_facts(setup, "run"), "cpu", clock)
        monkeypatch.setattr(MeasuredSpeeds, "_is_replayed", lambda *_: True)
        network = measured._network(setup.recipe, role)
        before = {name: value.clone() for name, value in network.state_dict().items()}
        assert measured.train_s(setup.recipe, role, 32) == pytest.approx(0.01 / batch_size)
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
        spent = clock()
        longer = setup.recipe.with_overrides(["teacher.epochs=50", "distill.epochs=70"])
        assert measured.train_s(longer, role, 32) == measured.train_s(setup.recipe, role, 32)
        assert clock() == spent, "remembered, for any number of epochs"

    @pytest.mark.parametrize(
        ("device", "settings", "processes", "replayed"),
        [
            ("cuda:0", (), 1, [True, True]),
            ("cuda:0", ("distill.method=fitnets",), 1, [True, False]),
            ("cuda:0", (), 2, [False, False]),
            ("cpu", (), 1, [False, False]),
        ],
    )
    def test_steps_that_training_does_not_capture_are_timed_kernel_by_kernel(
        self, device: str, settings: tuple[str, ...], processes: int, replayed: list[bool],
        class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        setup = make_setup(class_folders, tmp_path, *settings)
        measured = MeasuredSpeeds(setup.dataset, find_facts(setup, "run"), device)
        monkeypatch.setattr(speeds.distributed, "world_size", lambda: processes)
        assert [measured._is_replayed(setup.recipe, role) for role in ("teacher", "student")] == replayed


def never(*arguments: object) -> None:
    raise AssertionError("measured already")


class TestWhatIsThere:
    def test_nothing_is_decoded_or_written_by_looking(
        self, class_folders: Path, tmp_path: Path, work: Work, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("KD_TOOLKIT_CACHE", str(tmp_path / "cache"))
        setup = make_setup(class_folders, tmp_path / "m", writes=False)
        planned = forecast(setup, work, "run")
        decode = planned.stages[0]
        assert (decode.name, decode.images) == ("decode", 60)
        assert decode.disk_bytes == 60 * 36 * 43 * 3
        assert not (tmp_path / "m").exists()
        assert not list((tmp_path / "cache").rglob("*.rgb"))

    def test_existing_work_counts_nothing_and_other_settings_make_it_again(
        self, class_folders: Path, tmp_path: Path, work: Work
    ) -> None:
        quick = ("teacher.epochs=1", "distill.epochs=1", "distill.teacher_views=1", "distill.control=true")
        setup = make_setup(class_folders, tmp_path, *quick)
        pipeline.distill_student(setup)
        again = forecast(make_setup(class_folders, tmp_path, *quick), work)
        assert [stage.note for stage in again.stages] == [THERE] * 4
        assert again.seconds == 0
        longer = forecast(make_setup(class_folders, tmp_path, *quick, "distill.epochs=2"), work)
        notes = {stage.name: stage.note for stage in longer.stages}
        assert notes == {"decode": THERE, "teacher": THERE, "teacher logits": THERE, "student": "", "control": ""}
        forced = forecast(make_setup(class_folders, tmp_path, *quick, force=True), work, "run")
        assert {stage.name: stage.note for stage in forced.stages}["teacher"] == ""
        other_teacher = forecast(make_setup(class_folders, tmp_path, *quick, "teacher.epochs=2"), work)
        assert {s.name: s.note for s in other_teacher.stages}["teacher"] == THERE, "distill takes the one that is there"

    def test_an_interrupted_run_s_epochs_are_behind_it(
        self, class_folders: Path, tmp_path: Path, work: Work, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from toolkit.distill.checkpoint import Checkpoint, TrainingState

        saved = Checkpoint.save

        def stop_after_two(checkpoint: Checkpoint, state: TrainingState) -> None:
            saved(checkpoint, state)
            if state.epoch == 2:
                raise KeyboardInterrupt

        monkeypatch.setattr(Checkpoint, "save", stop_after_two)
        with pytest.raises(KeyboardInterrupt):
            pipeline.make_teacher(make_setup(class_folders, tmp_path))
        planned = forecast(make_setup(class_folders, tmp_path, resume=True), work, "teacher")
        assert planned.stages[1].note == "resumes after epoch 2"


class TestMinutes:
    def fit(self, setup: StageSetup, wanted: float, **options: Any) -> tuple[StageSetup, Forecast]:
        return minutes.fit_setup(setup, "distill", wanted, minutes.time.perf_counter(), **options)

    @pytest.fixture(autouse=True)
    def _slow_networks(self, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
        """On the clock of their own a training takes some minutes; no other clock counts."""

        def measure(*arguments: Any) -> MeasuredSpeeds:
            return MeasuredSpeeds(*arguments, clock=work.clock)

        monkeypatch.setattr(minutes, "MeasuredSpeeds", measure)
        monkeypatch.setattr(minutes, "time", SimpleNamespace(perf_counter=work.clock))

    LONG = ("teacher.epochs=2000", "distill.epochs=4000")

    def test_the_choice_is_said_and_can_be_repeated_without(
        self, class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        setup, planned = self.fit(make_setup(class_folders, tmp_path, *self.LONG), 1)
        assert 0.5 * 54 < planned.seconds <= 54
        printed = capsys.readouterr().err
        assert "minutes: 1, of which the plan fills 90%; the unchanged recipe takes " in printed
        assert "gave up epochs of the teacher: " in printed
        flags = printed.partition("the same without --minutes: ")[2].split("\n")[0].split()
        assert set(flags[::2]) == {"--set"}
        assert make_setup(class_folders, tmp_path, *self.LONG, *flags[1::2]).recipe == setup.recipe

    def test_a_second_call_and_resume_keep_it_and_force_chooses_again(
        self, class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first, _ = self.fit(make_setup(class_folders, tmp_path, *self.LONG), 1)
        monkeypatch.setattr(minutes, "fit", never)
        for options in ({}, {"resume": True}, {"resume": True, "force": True}):
            setup, _ = self.fit(make_setup(class_folders, tmp_path, *self.LONG, **options), 1)
            assert setup.recipe == first.recipe
        printed = capsys.readouterr().err
        assert "minutes: as chosen before: --set distill.epochs=" in printed
        assert f" ({tmp_path / 'minutes.json'}; --force chooses again)\n" in printed
        for other, wanted in (
            (make_setup(class_folders, tmp_path, *self.LONG, force=True), 1),
            (make_setup(class_folders, tmp_path, *self.LONG), 2),
            (make_setup(class_folders, tmp_path, *self.LONG, "distill.alpha=0.4"), 1),
            (make_setup(class_folders, tmp_path, *self.LONG, 'teacher.weights="imagenet"'), 1),
        ):
            with pytest.raises(AssertionError, match="measured already"):
                self.fit(other, wanted)

    @pytest.mark.parametrize("given_up", [("data.share=0.1",), ("data.image_size=48", "data.resize=48")])
    def test_settings_that_follow_the_pictures_are_repeated_too_if_these_change(
        self, given_up: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        """Half of the pictures have 40 px, half 90 px; those that the share keeps have another median."""
        for split in ("train", "val", "test"):
            for label, name in enumerate(("red", "green")):
                (tmp_path / "data" / split / name).mkdir(parents=True)
                for i in range(10):
                    picture = make_image(label, label * 100 + i, (40, 40) if i % 2 else (90, 90))
                    picture.save(tmp_path / "data" / split / name / f"{i}.png")

        def fit(recipe: Recipe, *_: object) -> RecipeChoice:
            overrides = (*given_up, "distill.epochs=7")
            return RecipeChoice(recipe.with_overrides(overrides), overrides, ("what was there",), Forecast(()))

        monkeypatch.setattr(minutes, "fit", fit)
        own = ("student.base=4", "training.precision=fp32")
        data, out = str(tmp_path / "data"), tmp_path / "m"
        setup, _ = self.fit(prepare_training(None, data, out, [*own], device="cpu"), 1)
        printed = capsys.readouterr().err.partition("the same without --minutes: ")[2].split("\n")[0].split()
        again, kept = (
            prepare_training(None, data, out, [*own, *overrides], device="cpu") for overrides in (printed[1::2], [])
        )
        assert again.recipe == setup.recipe
        assert self.fit(kept, 1)[0].recipe == setup.recipe, "the choice that is kept is the same"
        less = [setting for setting in printed[1::2] if setting.startswith((*given_up, "distill.epochs"))]
        other = prepare_training(None, data, out, [*own, *less], device="cpu")
        assert other.recipe != setup.recipe, "what the flags would give without them"

    def test_existing_work_needs_no_time(
        self, class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        quick = ("teacher.epochs=1", "distill.epochs=1", "distill.control=false")
        pipeline.distill_student(make_setup(class_folders, tmp_path, *quick))
        capsys.readouterr()
        setup, planned = self.fit(make_setup(class_folders, tmp_path, *quick), 0.01)
        assert (setup.recipe.distill.epochs, planned.seconds) == (1, 0)
        assert "minutes: the unchanged recipe fits into 0.01\n" in capsys.readouterr().err

    def test_a_plan_keeps_nothing(self, class_folders: Path, tmp_path: Path) -> None:
        self.fit(make_setup(class_folders, tmp_path / "m", *self.LONG, writes=False), 1, writes=False)
        assert not (tmp_path / "m").exists()

    def test_a_damaged_choice_is_one_line(self, class_folders: Path, tmp_path: Path) -> None:
        setup = make_setup(class_folders, tmp_path, *self.LONG)
        setup.model_dir.minutes.write_text(json.dumps([1]))
        with pytest.raises(
            ArtifactError, match=r"minutes\.json cannot be read; delete it, then --minutes chooses again"
        ):
            self.fit(setup, 1)

    def test_a_recipe_that_fits_is_said_to_fit(
        self, class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        setup, _ = self.fit(make_setup(class_folders, tmp_path), 60)
        assert setup.recipe == make_setup(class_folders, tmp_path).recipe
        assert "minutes: the unchanged recipe fits into 60\n" in capsys.readouterr().err
        again, _ = self.fit(make_setup(class_folders, tmp_path), 60)
        assert again.recipe == setup.recipe
        expected = f"minutes: the recipe fits into 60, as before ({tmp_path / 'minutes.json'}; --force chooses again)\n"
        assert expected in capsys.readouterr().err
