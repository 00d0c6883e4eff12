"""Adding up: against sums by hand, with speeds that are made up."""

import io
import json
from dataclasses import replace

import pytest
from forecast_samples import MadeUpSpeeds, make_facts, make_recipe
from rich.console import Console

from toolkit.forecast.estimate import (
    BESIDE,
    CONTROL_START_S,
    GIVEN,
    IMPORT_S,
    ONNX_SHARE,
    ONNX_START_S,
    THERE,
    TORCH_START_S,
    estimate,
    interpolate,
    timed_s,
)
from toolkit.forecast.facts import Facts
from toolkit.forecast.forecast import Forecast, ForecastStage
from toolkit.recipe import Recipe


def stages(recipe: Recipe, facts: Facts) -> dict[str, ForecastStage]:
    return {stage.name: stage for stage in estimate(recipe, facts, MadeUpSpeeds()).stages}


def test_a_trained_teacher_is_its_steps_validations_and_checkpoints() -> None:
    teacher = stages(make_recipe(), make_facts())["teacher"]
    assert teacher.seconds == pytest.approx(3 * (1000 * 1.0 + 100 * 0.2 + 0.5))
    assert (teacher.images, teacher.sizes_px, teacher.epochs) == (1000, (100, 100), 3)
    assert teacher.disk_bytes == 40_000_000


def test_a_live_teacher_is_part_of_the_student_s_steps_and_not_of_the_control_s() -> None:
    found = stages(make_recipe(), make_facts())
    alone = 6 * (1000 * 0.1 + 100 * 0.02 + 0.5)
    assert found["control"].seconds == pytest.approx(alone)
    assert found["student"].seconds == pytest.approx(alone + (6 * 1000 + 100) * 0.2)
    assert "teacher logits" not in found


def test_stored_logits_are_a_stage_of_their_own_of_no_more_views_than_epochs() -> None:
    found = stages(make_recipe("distill.teacher_views=4"), make_facts())
    rows = 4 * 1000 + 100
    assert found["teacher logits"].seconds == pytest.approx(rows * 0.2 + 4000 * 0.002)
    assert found["teacher logits"].disk_bytes == rows * 10 * 4
    assert found["student"].seconds == pytest.approx(found["control"].seconds)
    many = stages(make_recipe("distill.teacher_views=50"), make_facts())["teacher logits"]
    assert many.images == 6 * 1000


def test_a_teacher_that_probably_answers_in_int8_takes_half_the_time_and_its_making() -> None:
    """Worth it from a minute's work on."""
    auto = make_recipe("training.precision=auto", "distill.epochs=60")
    wish = make_recipe("training.precision=auto", "distill.epochs=60", "distill.teacher_precision=fp32")
    answers = (60 * 1000 + 100) * 0.2
    difference = stages(wish, make_facts())["student"].seconds - stages(auto, make_facts())["student"].seconds
    assert difference == pytest.approx(answers / 2 - 600 * 0.2 - 4)
    on_gpu = make_facts(on_gpu=True)
    assert stages(wish, on_gpu)["student"].seconds == stages(auto, on_gpu)["student"].seconds


def test_growing_images_are_measured_at_three_sizes_at_most() -> None:
    speeds = MadeUpSpeeds()
    recipe = make_recipe("data.image_size=160", "distill.start_image_size=64", "distill.epochs=20")
    found = {stage.name: stage for stage in estimate(recipe, make_facts(), speeds).stages}
    assert found["control"].sizes_px == (64, 160)
    asked = {side for role, side in speeds.asked if role == "control"}
    assert asked == {64, 112, 160}
    from toolkit.distill.plan import image_size_of

    exact = sum(0.1 * (image_size_of(e, recipe.distill, 160) / 100) ** 2 * 1000 for e in range(20))
    assert found["control"].seconds == pytest.approx(exact + 20 * (100 * 0.02 * 1.6**2 + 0.5), rel=1e-6)


def test_between_measured_sizes_time_grows_with_the_pixels() -> None:
    assert interpolate([32, 48, 64, 80, 96], lambda side: side**2 * 1e-3 + 1)[48] == pytest.approx(48**2 * 1e-3 + 1)
    assert interpolate([], never) == {}


def never(side: int) -> float:
    raise AssertionError("not to be measured")


class TestSideBySide:
    STORED = make_recipe("distill.teacher_views=2")

    def test_the_control_takes_no_time_of_its_own_but_its_process_s_start(self) -> None:
        alone, found = (stages(self.STORED, make_facts(room_for_two=room)) for room in (False, True))
        assert found["control"].seconds == pytest.approx(CONTROL_START_S)
        assert found["control"].note == BESIDE
        assert alone["control"].seconds == alone["student"].seconds == found["student"].seconds > 0

    @pytest.mark.parametrize(
        ("recipe", "facts"),
        [
            (make_recipe(), make_facts(room_for_two=True)),  # a live teacher
            (STORED, make_facts(room_for_two=False)),
            (STORED, make_facts(room_for_two=True, there=frozenset({("student", 0)}))),
        ],
    )
    def test_else_it_has_a_time_and_no_note(self, recipe: Recipe, facts: Facts) -> None:
        control = stages(recipe, facts)["control"]
        assert control.seconds > 0
        assert control.note == ""

    def test_the_time_that_it_takes_longer_counts(self) -> None:
        """The student has 4 of its 6 epochs behind it, the control one."""
        done = {("student", 0): 4, ("control", 0): 1}
        alone, found = (stages(self.STORED, make_facts(room_for_two=room, epochs_done=done)) for room in (False, True))
        assert found["control"].seconds == pytest.approx(CONTROL_START_S + alone["control"].seconds * 3 / 5)
        assert found["control"].note == f"resumes after epoch 1, {BESIDE}"

    def test_a_student_that_takes_longer_leaves_time_for_the_start(self) -> None:
        """The control has nothing but its last epoch before it."""
        found = stages(self.STORED, make_facts(room_for_two=True, epochs_done={("control", 0): 5}))
        assert found["control"].seconds == pytest.approx(0)

    def test_each_seed_is_a_pair_unless_one_of_it_is_there(self) -> None:
        facts = make_facts(room_for_two=True, seeds=(0, 1, 2), there=frozenset({("student", 1)}))
        assert facts.paired(self.STORED) == (0, 2)
        found, one = stages(self.STORED, facts), stages(self.STORED, make_facts())
        of_seed_1, pairs = one["control"].seconds, 2
        assert found["control"].seconds == pytest.approx(of_seed_1 + pairs * CONTROL_START_S)
        assert found["control"].note == f"3 seeds, {BESIDE}"


def test_every_seed_has_its_logits_student_and_control() -> None:
    one, three = (
        stages(make_recipe("distill.teacher_views=2"), make_facts(seeds=seeds)) for seeds in ((0,), (0, 1, 2))
    )
    for name in ("teacher logits", "student", "control"):
        assert three[name].seconds == pytest.approx(3 * one[name].seconds)
        assert three[name].note == "3 seeds"
    assert three["teacher"].seconds == one["teacher"].seconds


def test_existing_work_takes_no_time() -> None:
    there = frozenset({("teacher", 0), ("student", 0)})
    found = stages(make_recipe("distill.teacher_views=2"), make_facts(there=there))
    assert {name for name, stage in found.items() if stage.note == THERE} == {"decode", "teacher", "student"}
    assert found["control"].seconds > 0
    stored = stages(make_recipe("distill.teacher_views=2"), make_facts(stored=frozenset({0})))
    assert (stored["teacher logits"].seconds, stored["teacher logits"].note) == (0, THERE)


@pytest.mark.parametrize(("given", "images"), [(False, 1000), (True, 100)])
def test_a_teacher_that_is_there_counts_the_images_of_one_that_is_to_be_made(given: bool, images: int) -> None:
    there = frozenset({("teacher", 0)})
    fresh, kept = (stages(make_recipe(), make_facts(given_teacher=given, there=it)) for it in (frozenset(), there))
    assert kept["teacher"].note == THERE
    assert kept["teacher"].images == fresh["teacher"].images == images


def test_a_resumed_run_has_only_its_last_epochs_before_it() -> None:
    found = stages(make_recipe(), make_facts(epochs_done={("teacher", 0): 2}))
    assert found["teacher"].seconds == pytest.approx(1000 * 1.0 + 100 * 0.2 + 0.5)
    assert found["teacher"].note == "resumes after epoch 2"


def test_a_given_teacher_takes_one_look_at_the_validation_images() -> None:
    teacher = stages(make_recipe(), make_facts(given_teacher=True))["teacher"]
    assert teacher.seconds == pytest.approx(IMPORT_S + 100 * 0.2)
    assert teacher.note == GIVEN


def test_a_given_teacher_that_states_its_accuracy_is_only_copied() -> None:
    teacher = stages(make_recipe(), make_facts(given_teacher=True, known_accuracy=True))["teacher"]
    assert teacher.seconds == pytest.approx(IMPORT_S)


def test_only_what_is_not_in_the_cache_is_decoded_by_all_threads() -> None:
    decode = stages(make_recipe(), make_facts(to_decode={"valid": 5000, "test": 7000}, decoders=2))["decode"]
    assert decode.seconds == pytest.approx(300 * 0.01 / 2)
    assert (decode.images, decode.disk_bytes) == (1300, 12_000)


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("teacher", ["decode", "teacher"]),
        ("distill", ["decode", "teacher", "student", "control"]),
        ("run", ["decode", "teacher", "student", "control", "export", "bench"]),
    ],
)
def test_each_command_has_its_stages(command: str, names: list[str]) -> None:
    assert list(stages(make_recipe(), make_facts(command))) == names  # type: ignore[arg-type]
    assert "control" not in stages(make_recipe(), make_facts(command, control=False))  # type: ignore[arg-type]


def test_several_processes_share_the_training() -> None:
    one, two = (stages(make_recipe(), make_facts("distill", processes=count)) for count in (1, 2))
    assert two["control"].seconds == pytest.approx(one["control"].seconds / 2 + 6 * 0.5 / 2)


class TestBench:
    def test_a_row_is_timed_as_long_as_its_samples_or_the_limit_take(self) -> None:
        slow, slower = timed_s(0.1, 100, 10.0), timed_s(10.0, 100, 10.0)
        assert 100 * 0.1 < slow < 100 * 0.1 + 4
        assert slower < 10 * 10.0, "six rounds settle once each, and one run of each is timed at least"
        assert timed_s(1e-5, 100, 10.0) < 1.5

    def test_more_rows_and_more_test_images_take_longer(self) -> None:
        base = stages(make_recipe(), make_facts())["bench"]
        assert base.note == "5 rows"
        assert stages(make_recipe(), make_facts(control=False))["bench"].note == "4 rows"
        fewer = stages(make_recipe("bench.images=50"), make_facts())["bench"]
        a_pass = 150 * ((0.2 + 0.02) * (1 + ONNX_SHARE) + 0.02)
        assert base.seconds - fewer.seconds == pytest.approx(a_pass)
        compiled = stages(make_recipe('bench.runtimes=["torch", "torch.compile"]'), make_facts())["bench"]
        assert compiled.seconds > base.seconds + 3 * 60

    def test_processes_start_side_by_side_on_a_cpu_s_cores(self) -> None:
        one, two, gpu = (
            stages(make_recipe(), make_facts(**facts))["bench"].seconds
            for facts in ({"cores": 1}, {"cores": 2}, {"cores": 2, "control": False, "on_gpu": True})
        )
        assert one - two == pytest.approx((3 * TORCH_START_S + 2 * ONNX_START_S) / 2)
        alone = stages(make_recipe(), make_facts(cores=1, control=False, on_gpu=True))["bench"].seconds
        assert gpu == pytest.approx(alone)


class TestPrinting:
    FORECAST = Forecast(
        (
            ForecastStage("teacher", 3000, (96, 160), 30, 1203.0, 44_800_000),
            ForecastStage("export", 750, (160, 160), 0, 9.5, 45_800_000, "5 rows"),
            ForecastStage("decode", 5000, note=THERE),
        ),
        "measured by hand",
    )

    def printed(self, *, terminal: bool) -> str:
        screen = Console(file=io.StringIO(), force_terminal=terminal, no_color=True, highlight=False, width=120)
        self.FORECAST.print_to(screen)
        assert isinstance(screen.file, io.StringIO)
        return screen.file.getvalue()

    def test_plain_lines_in_a_log(self) -> None:
        assert self.printed(terminal=False).splitlines() == [
            "plan: teacher: 3,000 images, 96–160 px, 30 epochs, 20 min 3 s, 44.8 MB",
            "plan: export: 750 images, 160 px, 9.5 s, 45.8 MB, 5 rows",
            "plan: decode: 5,000 images, exists",
            "plan: total 20 min 12 s, 90.6 MB",
            "measured by hand",
        ]

    def test_a_table_on_a_terminal(self) -> None:
        printed = self.printed(terminal=True)
        for word in ("stage", "images", "px", "epochs", "time", "disk", "3,000", "96–160", "total", "20 min 12 s"):
            assert word in printed
        assert "plan:" not in printed

    def test_json_has_plain_units(self) -> None:
        value = json.loads(json.dumps(self.FORECAST.to_json()))
        assert value["seconds"] == pytest.approx(1212.5)
        assert value["disk_bytes"] == 90_600_000
        assert value["stages"][0]["sizes_px"] == [96, 160]


def test_unlabelled_images_take_their_share_of_steps_answers_and_disk() -> None:
    """1,000 labelled images and 500 of 4,000 others per epoch: six epochs need one view of these."""
    recipe = make_recipe("distill.teacher_views=3", "distill.unlabelled_ratio=0.5", "distill.batch_size=100")
    alone = stages(recipe, make_facts("distill"))
    facts = make_facts("distill", unlabelled=4000, unlabelled_bytes=10**9, decoders=2)
    mixed = stages(recipe, facts)
    assert mixed["unlabelled"].images == 4000
    assert mixed["unlabelled"].disk_bytes == 10**9
    assert mixed["unlabelled"].seconds == pytest.approx((2 * 4000 + 1300) * 0.01 / 2), "once for copies, once to decode"
    assert mixed["student"].images == 1500
    assert mixed["student"].note == "0.5 unlabelled per labelled image"
    assert mixed["student"].seconds == pytest.approx(alone["student"].seconds + 6 * 500 * 0.1)
    assert mixed["teacher logits"].images == 3 * 1000 + 4000
    assert mixed["teacher logits"].disk_bytes == (3 * 1000 + 4000 + 100) * 10 * 4
    assert mixed["control"].seconds == alone["control"].seconds
    assert "unlabelled" not in alone
    there = stages(recipe, replace(facts, unlabelled_bytes=0))["unlabelled"]
    assert (there.seconds, there.note) == (0, "exists")


def test_a_live_teacher_answers_unlabelled_images_too() -> None:
    recipe = make_recipe("distill.batch_size=100")
    alone = stages(recipe, make_facts("distill"))["student"].seconds
    mixed = stages(recipe, make_facts("distill", unlabelled=4000))["student"].seconds
    assert mixed == pytest.approx(alone + 6 * 1000 * (0.1 + 0.2))
