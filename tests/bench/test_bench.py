"""The report: its schema, its figures against independent ones, its sentences, and its errors."""

import json
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_sessions import OnCuda, pretend_cuda
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError
from report_samples import make_row
from tiny_onnx import COLOURS, save_colour_model
from torch import nn

from toolkit import console
from toolkit.bench import bench as report_module
from toolkit.bench.bench import run_bench, written_files
from toolkit.bench.measure import end_to_end, reference, speed, timing
from toolkit.bench.measure.first_use import FirstUse
from toolkit.bench.measure.images import BenchImages, choose_images
from toolkit.bench.measure.rows import Row, open_rows
from toolkit.bench.report.baseline import check_against_baseline
from toolkit.bench.report.card import MADE_BY
from toolkit.bench.report.examples import Examples
from toolkit.bench.report.side_by_side import compare_reports
from toolkit.bench.report.table import print_table, render_markdown
from toolkit.bench.report.verdict import compare_with_teacher, describe_difference, find_contradictions, ship
from toolkit.bench.schema import Report, read_report
from toolkit.data.dataset import Dataset, Images
from toolkit.data.pixels import Pixels, load_pixels
from toolkit.data.preprocess import Preprocess
from toolkit.errors import ArtifactError, DataError
from toolkit.modeldir import BENCH_PLOTS, ModelDir
from toolkit.networks.registry import build, spec_of
from toolkit.networks.weights import ModelInfo, save_model
from toolkit.recipe import Recipe

DRAW = report_module._draw
RECIPE = Recipe.from_dict(
    {"data": {"image_size": 32, "resize": 0}, "bench": {"samples": 10, "seconds": 0.02, "batch_sizes": [1, 4]}}, "test"
)
PREPROCESS = Preprocess.from_recipe(RECIPE.data)

# ---- what report.json holds ---- -----------------------------------------------------------------------------------


def check_file(folder: Path) -> Report:
    """report.json: no field is missing, unknown or of another type, and names are those of DESIGN.md."""
    text = (folder / "report.json").read_text(encoding="utf-8")
    report = Report.model_validate_json(text, extra="forbid")
    assert text == json.dumps(report.to_json(), indent=2, ensure_ascii=False) + "\n", "no value is of another type"
    for part in (report, report.hardware, report.distillation, *report.rows, *(row.latency_ms for row in report.rows)):
        assert set(type(part).model_fields) - part.model_fields_set <= {"vs_teacher", "baseline"}
    assert datetime.fromisoformat(report.created).tzinfo is not None
    assert report.dataset.split == "test"
    assert len(report.rows) >= 4
    assert len(report.verdict) >= 20
    assert report.hardware.device is not None
    for row in report.rows:
        assert row.model in {"teacher", "student", "control"}
        assert row.precision in {"fp32", "fp16", "int8"}
        assert row.runtime in {"torch", "torch.compile", "onnxruntime", "onnxruntime.io_binding", "openvino"}
        assert row.threads is not None
        assert row.first_call_ms is not None
        assert row.peak_memory_mib is None or row.peak_memory_mib > 0
    assert report.preprocess_ms is not None
    return report


# ---- rows whose answers are known -----------------------------------------------------------------------------------


class FakePredictor:
    """Logits are ten times the mean colours, but every `wrong_every`-th image is called the class after."""

    classes = COLOURS
    preprocess = PREPROCESS
    threads = 1

    def __init__(self, runtime: str, wrong_every: int) -> None:
        self.runtime = runtime
        self.provider = "cpu" if runtime == "torch" else "CPUExecutionProvider"
        self.wrong_every = wrong_every

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        logits = 10 * images.astype(np.float32).mean((1, 2)) / 255
        marks = images[:, 0, 0, 0]  # the first pixel's red is the image's number
        return np.where((marks % self.wrong_every == 0)[:, None], np.roll(logits, 1, axis=1), logits)


def make_rows(folder: Path, wrong_every: dict[tuple[str, str], int]) -> list[Row]:
    networks = {"teacher": nn.Conv2d(3, 8, 3), "student": nn.Conv2d(3, 2, 3), "control": nn.Conv2d(3, 2, 3)}
    rows = []
    for (role, runtime), every in wrong_every.items():
        path = folder / f"{role}.{'safetensors' if runtime == 'torch' else 'onnx'}"
        path.write_bytes(b"x" * (5000 if role == "teacher" else 1000))
        extra = {"epochs": 3, "images_seen": 300, "seconds": 1.5, "train_img_s": 200.0, "valid_accuracy": 0.5}
        rows.append(Row(role, "fp32", path, FakePredictor(runtime, every), networks[role], extra))  # type: ignore[arg-type]
    return rows


def make_data(count: int = 60) -> tuple[Dataset, Pixels]:
    """Plain pictures: class c has the channel c at 200; the first pixel's red is the picture's number."""
    labels = np.arange(count) % 3
    arrays = np.full((count, 32, 32, 3), 20, np.uint8)
    arrays[np.arange(count), :, :, labels] = 200
    arrays[:, 0, 0, 0] = np.arange(count)
    images = Images.from_array("test", arrays, labels)
    dataset = Dataset("colours", COLOURS, images, images, images, sha256="ab" * 32)
    return dataset, load_pixels(dataset, "test", PREPROCESS)


FOUR = {
    ("teacher", "torch"): 10,
    ("teacher", "onnxruntime"): 10,
    ("student", "torch"): 4,
    ("student", "onnxruntime"): 4,
}


@dataclass
class Bench:
    """run_bench over rows whose answers are known."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch

    def run(
        self,
        wrong_every: dict[tuple[str, str], int] = FOUR,
        recipe: Recipe = RECIPE,
        baseline: Report | None = None,
    ) -> Report:
        rows = make_rows(self.folder, wrong_every)
        self.monkeypatch.setattr(report_module, "open_rows", lambda *args: rows)
        first_uses = lambda rows, batch_size, advance: [FirstUse(7.5, batch_size + 0.5)] * len(rows)  # noqa: E731
        self.monkeypatch.setattr(speed, "measure_first_uses", first_uses)
        images = BenchImages.choose(*make_data(), recipe.bench.images)
        return run_bench(ModelDir(self.folder), recipe, images, device="cpu", provider="cpu", baseline=baseline)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Its pictures are drawn for tests of them alone: see `_draws`."""
    monkeypatch.setattr(timing, "SETTLE_MS", 0.0)
    monkeypatch.setattr(report_module, "_draw", lambda *_: dict.fromkeys(BENCH_PLOTS, b"a picture"))
    monkeypatch.setattr(report_module, "find_noise", lambda rows, hardware: [])
    return Bench(tmp_path, monkeypatch)


@pytest.fixture
def _draws(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bench draws its pictures."""
    monkeypatch.setattr(report_module, "_draw", DRAW)


def test_report_json_has_schema_1(bench: Bench) -> None:
    report = bench.run()
    assert json.loads((bench.folder / "report.json").read_text(encoding="utf-8")) == report.to_json()
    assert check_file(bench.folder) == report
    assert report.dataset.to_json() == {"name": "colours", "split": "test", "images": 60, "sha256": "ab" * 32}
    assert report.recipe == RECIPE.model_dump(mode="json")
    assert [(row.model, row.runtime) for row in report.rows] == list(FOUR)


def test_a_baseline_is_compared_with_before_the_report_is_written(bench: Bench) -> None:
    before = bench.run()
    worse = bench.run(FOUR | {("student", "torch"): 2}, baseline=before)
    assert check_file(bench.folder) == worse, "the gate, which this would not meet, is no reason to hide figures"
    assert worse.baseline is not None
    assert [one.name for one in worse.baseline][2] == "student in torch on cpu"
    assert [one.drop for one in worse.baseline] == [0.0, 0.0, 0.25, 0.0]
    for one, then, now in zip(worse.baseline, before.rows, worse.rows, strict=True):
        assert (one.baseline_ms, one.now_ms) == (then.latency_ms.p50, now.latency_ms.p50)
        assert one.slowdown == one.now_ms / one.baseline_ms
    again = bench.run(FOUR | {("control", "torch"): 3}, baseline=worse)
    assert again.baseline is not None
    assert len(again.baseline) == 4, "rows that are new have nothing to be compared with"


def test_a_report_stays_as_it_was_built(bench: Bench) -> None:
    report = bench.run()
    with pytest.raises(ValidationError, match="frozen"):
        report.rows[0].accuracy_top1 = 1.0


def test_figures_of_the_rows(bench: Bench) -> None:
    teacher, _, student, _ = bench.run().rows
    numbers = np.arange(60)
    assert teacher.accuracy_top1 == np.mean(numbers % 10 != 0) == 0.9
    assert student.accuracy_top1 == np.mean(numbers % 4 != 0) == 0.75
    assert student.teacher_agreement == np.mean((numbers % 10 == 0) == (numbers % 4 == 0))
    assert student.accuracy_top5 == 1.0
    assert student.params == 3 * 2 * 9 + 2
    assert student.macs == 30 * 30 * 2 * 27
    assert student.size_bytes == 1000
    assert set(student.throughput_img_s) == {"1", "4"}
    assert student.vs_teacher.times_smaller == 5.0
    assert student.vs_teacher.accuracy_top1_difference == pytest.approx(-0.15)
    ratio = teacher.latency_ms.p50 / student.latency_ms.p50
    assert student.vs_teacher.times_faster == pytest.approx(ratio)
    assert "vs_teacher" not in teacher.to_json()
    assert (student.first_call_ms, student.peak_memory_mib, student.threads) == (7.5, 4.5, 1)


def test_whole_answers_are_timed_for_files_that_serve(bench: Bench) -> None:
    """On a clock that moves by 6 ms for the preprocessing and by 4 ms for the network."""
    now_ns = [0]
    prepare, answer = end_to_end.prepare_image, FakePredictor.logits

    def prepare_slowly(content: bytes, preprocess: Preprocess) -> NDArray[np.uint8]:
        now_ns[0] += 6_000_000
        return prepare(content, preprocess)

    def answer_slowly(predictor: FakePredictor, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        now_ns[0] += 4_000_000
        return answer(predictor, images)

    bench.monkeypatch.setattr(end_to_end, "prepare_image", prepare_slowly)
    bench.monkeypatch.setattr(FakePredictor, "logits", answer_slowly)
    budget = timing.Budget(RECIPE.bench.samples, RECIPE.bench.seconds, clock=lambda: now_ns[0])
    bench.monkeypatch.setattr(speed, "_budget", lambda recipe: budget)
    report = bench.run()
    for row in report.rows:
        assert (row.end_to_end_ms is not None) == (row.runtime == "onnxruntime")
    assert report.rows[1].end_to_end_ms.p50 == 10
    assert report.preprocess_ms.p50 == 6


def test_classes_are_those_of_the_teacher_and_of_what_ships(bench: Bench) -> None:
    classes = bench.run(FOUR | {("student", "torch"): 2}).classes
    numbers, labels = np.arange(60), np.arange(60) % 3
    assert [one.name for one in classes] == list(COLOURS)
    for label, one in enumerate(classes):
        own = labels == label
        assert one.images == 20
        assert one.teacher_recall == pytest.approx(np.mean(numbers[own] % 10 != 0))
        assert one.student_recall == pytest.approx(np.mean(numbers[own] % 4 != 0))  # the ONNX file's, not torch's


def test_noise_is_reported(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.monkeypatch.setattr(report_module, "find_noise", lambda rows, hardware: [f"{hardware.cores} are busy"])
    (warning,) = bench.run().timing_warnings
    assert f"warning: {warning}" in capsys.readouterr().err


def test_many_warnings_about_speed_are_cut_short(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.monkeypatch.setattr(report_module, "find_noise", lambda rows, hardware: [f"row {i}" for i in range(9)])
    assert len(bench.run().timing_warnings) == 9
    printed = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert printed == [*(f"warning: row {i}" for i in range(4)), "warning: 5 more warnings about speed in report.md"]
    assert "row 8" in (bench.folder / "report.md").read_text(encoding="utf-8")


def test_test_images_are_kept_for_the_demo(bench: Bench) -> None:
    recipe = RECIPE.with_overrides(["bench.disagreements=3"])
    bench.run(FOUR | {("student", "torch"): 2}, recipe)
    kept = Examples.read(bench.folder / "examples.zip")
    numbers = np.arange(60)
    assert kept.differing == np.sum((numbers % 10 == 0) != (numbers % 4 == 0))  # the ONNX file's, not torch's
    assert (kept.images, len(kept.disagreements), len(kept.examples)) == (60, 3, len(COLOURS))


@pytest.mark.usefixtures("_draws")
def test_all_that_is_promised_is_written(bench: Bench) -> None:
    """It is named too, and the only other files are the models'."""
    before = set(bench.folder.iterdir())
    bench.run()
    written = written_files(ModelDir(bench.folder))
    pictures = {"accuracy_latency.png", "reliability.png", "confusion_difference.png"}
    assert {path.name for path in written} == {"report.json", "report.md", "README.md", "examples.zip"} | pictures
    models = {f"{role}.{kind}" for role in ("teacher", "student") for kind in ("safetensors", "onnx")}
    assert {path.name for path in set(bench.folder.iterdir()) - before - set(written)} == models
    assert all(path.stat().st_size > 0 for path in written)


def test_a_readme_of_somebody_s_own_stays(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    card = bench.folder / "README.md"
    card.write_text("my notes")
    bench.run()
    assert card.read_text() == "my notes"
    assert "was not written by toolkit bench and stays as it is" in capsys.readouterr().err
    assert card not in written_files(ModelDir(bench.folder))
    card.unlink()
    for _ in range(2):
        bench.run()
        assert MADE_BY in card.read_text(encoding="utf-8")


def test_the_distillation_section_passes_on_the_student_s_figures(bench: Bench) -> None:
    distillation = bench.run().distillation.to_json()
    assert distillation.pop("knowledge") is not None  # its figures have tests of their own
    assert distillation == {
        "control_accuracy_top1": None,
        "gain_top1": None,
        "seeds": None,
        "mean": None,
        "std": None,
        "per_seed": [],
        "epochs": 3,
        "images_seen": 300,
        "seconds": 1.5,
        "train_img_s": 200.0,
        "unlabelled_images": None,
    }


def test_a_control_gets_its_row_and_the_gain(bench: Bench) -> None:
    report = bench.run(FOUR | {("control", "torch"): 3})
    check_file(bench.folder)
    control = report.rows[-1]
    assert control.model == "control"
    assert report.distillation.control_accuracy_top1 == control.accuracy_top1 == pytest.approx(2 / 3)
    assert report.distillation.gain_top1 == pytest.approx(0.75 - 2 / 3)
    assert report.distillation.seeds == (0,)
    assert report.distillation.std is None
    markdown = (bench.folder / "report.md").read_text(encoding="utf-8")
    assert "The teacher was worth +8.33 points: top-1 75.00 % with it, 66.67 % without (one seed" in markdown


ALONE = {("student", "torch"): 4, ("student", "onnxruntime"): 4}
NO_TEACHER = "There is no teacher to measure, because its answers came from a file."


@pytest.mark.usefixtures("_draws")
def test_a_student_whose_teacher_cannot_be_measured(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.monkeypatch.setattr(reference, "why_unmeasured", lambda path: "its answers came from a file")
    bench.run()
    report = bench.run(ALONE | {("control", "torch"): 3})
    assert read_report(bench.folder / "report.json") == report
    assert report.no_teacher == NO_TEACHER
    assert report.verdict == ship(report.rows, RECIPE.bench.max_drop, 60, NO_TEACHER)
    assert [row.teacher_agreement for row in report.rows] == [None] * 3
    assert all(row.vs_teacher is None for row in report.rows)
    assert [one.control_recall for one in report.classes] == pytest.approx([0.0, 1.0, 1.0])
    assert Examples.read(bench.folder / "examples.zip").disagreements == ()
    markdown = (bench.folder / "report.md").read_text(encoding="utf-8")
    assert markdown.startswith("# Student on colours\n")
    assert "than the control](confusion_difference.png)" in markdown
    card = (bench.folder / "README.md").read_text(encoding="utf-8")
    assert "distilled from a teacher that was not measured" in card
    assert "Against the control: " in card
    print_table(report)
    assert NO_TEACHER in " ".join(capsys.readouterr().out.split())
    both = compare_reports(report, report, ("a", "b"))
    assert [row.model for row in both.rows] == ["student", "student", "control"]
    assert len(check_against_baseline(report, report, 1.2, 0.01)) == 3


@pytest.mark.usefixtures("_draws")
def test_a_student_alone(bench: Bench) -> None:
    """Pictures of an earlier benchmark, which had something to compare with, do not stay."""
    bench.monkeypatch.setattr(reference, "why_unmeasured", lambda path: "")
    bench.run()
    report = bench.run(ALONE)
    assert report.no_teacher == "There is no teacher to measure, because it is an ONNX file, which torch cannot run."
    assert all(one.student_recall is not None and one.recall_difference is None for one in report.classes)
    assert not (bench.folder / "confusion_difference.png").exists()
    assert bench.folder / "confusion_difference.png" not in written_files(ModelDir(bench.folder))
    assert "confusion_difference" not in (bench.folder / "report.md").read_text(encoding="utf-8")
    assert "An image classifier of 3 classes" in (bench.folder / "README.md").read_text(encoding="utf-8")


def test_rows_that_should_agree_and_do_not_are_flagged(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    report = bench.run(FOUR | {("student", "onnxruntime"): 3})
    (warning,) = report.warnings
    assert warning.startswith("student.onnx and student.safetensors should agree, but do not: top-1 is 0.6667")
    assert warning in capsys.readouterr().err
    assert warning in (bench.folder / "report.md").read_text(encoding="utf-8")
    assert bench.run().warnings == ()


def test_fewer_images_are_spread_over_the_split(bench: Bench) -> None:
    report = bench.run(recipe=RECIPE.with_overrides(["bench.images=20"]))
    assert report.dataset.images == 20
    chosen = np.round(np.arange(20) * 59 / 19)  # the first, the last and evenly between them
    assert report.rows[0].accuracy_top1 == np.mean(chosen % 10 != 0)
    np.testing.assert_array_equal(choose_images(10, 4), [0, 3, 6, 9])
    np.testing.assert_array_equal(choose_images(3, 0), [0, 1, 2])
    np.testing.assert_array_equal(choose_images(3, 9), [0, 1, 2])


def test_nothing_half_written_stays(bench: Bench) -> None:
    """A disk that is full when the last file, report.json, is half written."""
    write_text = Path.write_text

    def fill_the_disk(path: Path, text: str, **options: Any) -> int:
        if '"schema": 1' not in text:
            return write_text(path, text, **options)
        write_text(path, text[: len(text) // 2], **options)
        raise OSError(28, "No space left on device")

    bench.monkeypatch.setattr(Path, "write_text", fill_the_disk)
    with pytest.raises(ArtifactError, match=r"cannot write .*report\.json: No space left on device"):
        bench.run()
    left = {path.name for path in bench.folder.iterdir()}
    assert "report.md" in left, "it comes before"
    assert "report.json" not in left
    assert not any(name.startswith(".") for name in left)


def test_the_table_fits_80_columns_and_ends_in_the_verdict(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    report = bench.run()
    capsys.readouterr()
    print_table(report)
    out = capsys.readouterr().out
    lines = out.splitlines()
    table = [line for line in lines if " torch " in line or " onnxruntime " in line][1:5]
    assert max(len(line) for line in table) <= 80
    assert [line.split()[:2] for line in table] == [list(names) for names in FOUR]
    assert "90.00" in table[0]
    assert "75.00" in table[2]
    assert "5.0 times smaller" in out
    assert "Classes that lose most: " in out
    assert lines[-1] == report.verdict


def test_a_wide_terminal_shows_every_column(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    report = bench.run()
    capsys.readouterr()
    bench.monkeypatch.setattr(console.out, "_width", 240)
    print_table(report)
    heading = next(line for line in capsys.readouterr().out.splitlines() if "params" in line)
    names = ("MACs", "top-5 %", "F1", "ECE", "p99 ms", "end-to-end ms", "first call ms", "MiB", "img/s 1", "img/s 4")
    for name in names:
        assert name in heading


def test_the_markdown_is_complete(bench: Bench) -> None:
    report = bench.run()
    text = (bench.folder / "report.md").read_text(encoding="utf-8")
    assert text == render_markdown(report)
    assert report.verdict in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    for heading, rows in (
        ("| model | runtime | provider | top-1", 4),
        ("| class |", 3),
        ("| model | runtime | threads", 4),
    ):
        at = next(i for i, line in enumerate(tables) if line.startswith(heading))
        assert len({line.count("|") for line in tables[at : at + rows + 2]}) == 1
    for name in ("accuracy_latency", "reliability", "confusion_difference"):
        assert f"]({name}.png)" in text


@pytest.mark.usefixtures("_draws")
def test_the_plot_is_a_picture_with_ink_of_both_models(bench: Bench) -> None:
    bench.run()
    with Image.open(bench.folder / "accuracy_latency.png") as picture:
        assert picture.width >= 1000
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3).astype(int)
    bluish, reddish = pixels[:, 2] - pixels[:, 0], pixels[:, 0] - pixels[:, 2]
    assert (bluish > 40).sum() > 1000
    assert (reddish > 60).sum() > 300


# ---- words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "p50", "accuracy", "expected"),
    [
        (1_000_000, 1.0, 0.916, "44.8 times smaller, 12.3 times faster and 0.4 points less accurate"),
        (44_800_000, 12.3, 0.92, "about as large, about as fast and as accurate"),
        (89_600_000, 24.6, 0.93, "2.0 times larger, 2.0 times slower and 1.0 points more accurate"),
        (100_000, 0.1, 0.92, "448 times smaller, 123 times faster and as accurate"),
    ],
)
def test_a_difference_in_words(size: int, p50: float, accuracy: float, expected: str) -> None:
    rows = [make_row("teacher", 12.3, 0.92, 44_800_000), make_row("student", p50, accuracy, size)]
    assert describe_difference(compare_with_teacher(rows)[1]) == expected


def test_each_row_is_compared_in_its_own_runtime() -> None:
    rows = [
        make_row("teacher", 20.0, 0.9, 100, "torch"),
        make_row("teacher", 10.0, 0.9, 100),
        make_row("student", 5.0, 0.9, 50, "torch"),
        make_row("student", 5.0, 0.9, 50),
    ]
    differences = [row.vs_teacher for row in compare_with_teacher(rows)]
    assert [one and one.times_faster for one in differences] == [None, None, 4.0, 2.0]


def test_a_small_difference_between_runtimes_is_no_contradiction() -> None:
    rows = [make_row("student", 1, 0.9000, 1, "torch"), make_row("student", 1, 0.9009, 1)]
    assert find_contradictions(rows, 0.001) == []
    assert len(find_contradictions(rows, 0.0001)) == 1


# ---- real files ------------------------------------------------------------------------------------------------------


def save_network(model_dir: ModelDir, role: Any, classes: tuple[str, ...], preprocess: Preprocess = PREPROCESS) -> None:
    network = build("depthwise", len(classes), base=2, width_mult=1.0)
    sha = RECIPE.control_fingerprint() if role == "control" else "0" * 64
    recipe = RECIPE.model_dump(mode="json")
    info = ModelInfo(
        role, spec_of(network), classes, preprocess, recipe, sha, "1" * 64, None, "0.1.0", {"epochs": 2}
    )  # fmt: skip
    save_model(model_dir.weights(role), network, info)


def test_rows_of_real_files_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SETTLE_MS", 0.0)
    model_dir = ModelDir(tmp_path)
    for role in ("teacher", "student"):
        save_network(model_dir, role, COLOURS)
        save_colour_model(model_dir.onnx(role), image_size=32, resize=0)
    save_network(model_dir, "control", COLOURS)
    images = BenchImages.choose(*make_data(), 0)
    report = run_bench(model_dir, RECIPE, images, device="cpu", provider="cpu")
    check_file(tmp_path)
    rows = {(row.model, row.runtime): row for row in report.rows}
    assert list(rows) == [*FOUR, ("control", "torch")]
    assert rows["student", "onnxruntime"].accuracy_top1 == 1.0  # the colour model is right about every colour
    assert rows["student", "onnxruntime"].provider == "CPUExecutionProvider"
    assert rows["student", "onnxruntime"].params == rows["student", "torch"].params > 0
    assert rows["student", "torch"].size_bytes == model_dir.weights("student").stat().st_size
    assert report.distillation.epochs == 2


def test_onnxruntime_on_a_gpu_from_end_to_end(bench: Bench) -> None:
    """As on a machine with two GPUs, both without torch; the sentence on int8 is one about speed."""
    model_dir = ModelDir(bench.folder)
    for role in ("teacher", "student"):
        save_network(model_dir, role, COLOURS)
        save_colour_model(model_dir.onnx(role), image_size=32, resize=0)
    save_colour_model(model_dir.onnx("student", "int8"), image_size=32, resize=0)
    pretend_cuda(bench.monkeypatch, OnCuda())
    first_uses = lambda rows, batch_size, advance: [FirstUse(7.5, None)] * len(rows)  # noqa: E731
    bench.monkeypatch.setattr(speed, "measure_first_uses", first_uses)
    images = BenchImages.choose(*make_data(), 0)
    report = run_bench(model_dir, RECIPE, images, device="cpu", provider="cuda:1")
    check_file(bench.folder)
    (kept, bound), providers = (
        [row for row in report.rows if (row.model, row.runtime.split(".")[0]) == ("student", "onnxruntime")],
        {row.runtime: row.provider for row in report.rows},
    )
    assert providers == {
        "torch": "cpu", "onnxruntime": "CUDAExecutionProvider:1", "onnxruntime.io_binding": "CUDAExecutionProvider:1"
    }  # fmt: skip
    assert (kept.runtime, bound.runtime) == ("onnxruntime", "onnxruntime.io_binding")
    assert kept.accuracy_top1 == bound.accuracy_top1 == 1.0
    assert kept.end_to_end_ms is not None
    assert bound.end_to_end_ms is None
    (remark,) = report.timing_warnings
    assert remark.startswith("onnxruntime has no row for student.int8.onnx: ")
    assert remark in (bench.folder / "report.md").read_text(encoding="utf-8")


def test_a_control_of_other_settings_is_left_out_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model_dir = ModelDir(tmp_path)
    for role in ("teacher", "student"):
        save_network(model_dir, role, COLOURS)
        save_colour_model(model_dir.onnx(role), image_size=32, resize=0)
    model_dir.weights("control").write_bytes(model_dir.weights("student").read_bytes())  # its fingerprint is another
    assert {row.model for row in open_rows(model_dir, "cpu", "cpu")} == {"teacher", "student"}
    assert "control.safetensors was trained with other settings than the student" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("teacher.safetensors", r"has no teacher\.safetensors; make it with: toolkit distill"),
        ("student.onnx", r"has no student\.onnx; make it with: toolkit export --onnx"),
    ],
)
def test_a_missing_file_names_the_command(tmp_path: Path, missing: str, message: str) -> None:
    model_dir = ModelDir(tmp_path)
    for role in ("teacher", "student"):
        save_network(model_dir, role, COLOURS)
        save_colour_model(model_dir.onnx(role), image_size=32, resize=0)
    (tmp_path / missing).unlink()
    with pytest.raises(ArtifactError, match=message):
        open_rows(model_dir, "cpu", "cpu")


def test_files_of_two_runs_are_refused(tmp_path: Path) -> None:
    model_dir = ModelDir(tmp_path)
    for role in ("teacher", "student"):
        save_network(model_dir, role, COLOURS)
        save_colour_model(model_dir.onnx(role), image_size=32, resize=0)
    save_colour_model(model_dir.onnx("student"), ("a", "b", "c"), image_size=32, resize=0)
    with pytest.raises(ArtifactError, match="were made for other classes"):
        open_rows(model_dir, "cpu", "cpu")
    save_colour_model(model_dir.onnx("student"), image_size=16, resize=20)
    with pytest.raises(ArtifactError, match="sees 16 px, resized to 20"):
        open_rows(model_dir, "cpu", "cpu")


def test_images_that_do_not_fit_the_model_are_refused(bench: Bench) -> None:
    rows = make_rows(bench.folder, FOUR)
    bench.monkeypatch.setattr(report_module, "open_rows", lambda *args: rows)
    images = BenchImages.choose(*make_data(), 0)
    dataset, pixels = images.dataset, images.pixels
    model_dir = ModelDir(bench.folder)
    with pytest.raises(DataError, match=r"not trained on the classes of colours \(3 and 2\)"):
        run_bench(model_dir, RECIPE, replace(images, dataset=replace(dataset, classes=("a", "b"))), device="cpu")
    with pytest.raises(DataError, match="the same number, but other names"):
        run_bench(model_dir, RECIPE, replace(images, dataset=replace(dataset, classes=("a", "b", "c"))), device="cpu")
    with pytest.raises(DataError, match="has no readable test image"):
        run_bench(model_dir, RECIPE, BenchImages.choose(dataset, replace(pixels, names=()), 0), device="cpu")
    smaller = replace(pixels, preprocess=replace(PREPROCESS, image_size=16))
    with pytest.raises(DataError, match=r"use data\.image_size=32 and data\.resize=0"):
        run_bench(model_dir, RECIPE, replace(images, pixels=smaller))
