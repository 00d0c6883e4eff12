"""`toolkit bench` around the measuring: the baseline's gate, JSON alone, and errors before any work."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from report_samples import make_report

from toolkit.bench.measure.images import BenchImages
from toolkit.bench.report.baseline import compare_with_baseline
from toolkit.bench.schema import Report
from toolkit.cli import app, bench
from toolkit.errors import ArtifactError, GateError
from toolkit.modeldir import ModelDir
from toolkit.recipe import Recipe


class Measured:
    """bench.measure with a report that was made up, and a baseline beside it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = ModelDir(folder / "m")
        self.directory.path.mkdir()
        self.report = make_report().to_json()
        self.baseline = folder / "baseline.json"
        self.baseline.write_text(json.dumps(self.report))
        self.measured = 0
        dataset = SimpleNamespace(name="fashion-mnist", sha256="ab" * 32)
        setup = SimpleNamespace(recipe=Recipe(), model_dir=self.directory)
        setup.bench_images = BenchImages(dataset, None, np.arange(10_000))
        monkeypatch.setattr(bench, "prepare_finished", lambda *args, **options: setup)
        monkeypatch.setattr(bench, "bench_models", self._bench)
        monkeypatch.setattr(bench, "written_files", lambda directory: [])
        self.setup = setup

    def _bench(self, setup: object, provider: str, baseline: Report) -> Report:
        self.measured += 1
        report = Report.model_validate(self.report)
        return report.with_baseline(compare_with_baseline(report.rows, baseline.rows))

    def __call__(self, baseline: Path | None = None, *, as_json: bool = False) -> None:
        bench.measure(self.directory.path, None, None, "cpu", "cpu", [], baseline or self.baseline, as_json)


@pytest.fixture
def measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Measured:
    return Measured(tmp_path, monkeypatch)


def test_a_baseline_that_holds_is_said(measure: Measured, capsys: pytest.CaptureFixture[str]) -> None:
    measure()
    line, last = capsys.readouterr().out.splitlines()[-2:]
    held = "at most 1.2 times as slow, at most 1 points lost"
    assert line == f"baseline of 2026-11-24T12:00:00+00:00: 4 rows passed ({held})"
    assert last.endswith(f"; next: toolkit demo {measure.directory.path}")


def test_json_carries_the_comparison_and_nothing_else(measure: Measured, capsys: pytest.CaptureFixture[str]) -> None:
    measure(as_json=True)
    printed = json.loads(capsys.readouterr().out)
    assert [row["slowdown"] for row in printed["baseline"]] == [1.0] * 4


@pytest.mark.parametrize("as_json", [False, True])
def test_a_worse_report_is_shown_and_then_refused(
    measure: Measured, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    measure.report["rows"][3]["latency_ms"]["p50"] *= 2
    with pytest.raises(GateError, match=r"student in onnxruntime on cpu is 2\.00 times as slow"):
        measure(as_json=as_json)
    out = capsys.readouterr().out
    assert json.loads(out)["rows"] if as_json else "onnxruntime" in out
    if as_json:
        assert [row["slowdown"] for row in json.loads(out)["baseline"]] == [1.0, 1.0, 1.0, 2.0]
    assert "next:" not in out, "after a failed gate, no next command is named"


def test_the_directory_s_own_report_can_be_no_baseline(measure: Measured) -> None:
    """A failing report would take its place, and the next one would pass."""
    measure.directory.report_json.write_text(measure.baseline.read_text())
    with pytest.raises(ArtifactError, match=r"is the report that this benchmark will replace.*; copy it to another"):
        measure(measure.directory.report_json)
    assert measure.measured == 0


def test_other_images_are_refused_before_anything_is_measured(measure: Measured) -> None:
    measure.setup.bench_images = replace(measure.setup.bench_images, chosen=np.arange(500))
    with pytest.raises(ArtifactError, match=r"the baseline was measured on 10,000 images of fashion-mnist, .* on 500"):
        measure()
    assert measure.measured == 0


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """The arguments of run_load, which does not run: directory, role, precision, provider, clients, seconds."""
    asked: list[tuple[object, ...]] = []
    result = SimpleNamespace(summary=lambda: "", to_json=dict)

    def run_load(directory: ModelDir, *rest: object) -> SimpleNamespace:
        asked.append((str(directory.path), *rest))
        return result

    monkeypatch.setattr(bench, "run_load", run_load)
    monkeypatch.setattr("toolkit.sessions.providers.require_provider", lambda *_: None)
    return asked


@pytest.mark.parametrize(
    ("given", "provider"), [([], "auto"), (["--device", "cuda:1"], "auto:1"), (["--provider", "cuda:2"], "cuda:2")]
)
def test_the_load_is_on_the_gpu_that_was_asked_for(
    loads: list[tuple[object, ...]], given: list[str], provider: str
) -> None:
    app.app(["bench", "models/m", "--clients", "2", "--json", *given], standalone_mode=False)
    assert loads == [("models/m", "student", "fp32", provider, 2, 10.0)]


def test_load_test_and_bench_with_clients_are_the_same(loads: list[tuple[object, ...]]) -> None:
    options = ["--seconds", "3", "--model", "teacher", "--precision", "int8", "--provider", "cpu"]
    for command in ("bench", "load-test"):
        app.app([command, "models/m", "--clients", "4", *options], standalone_mode=False)
    assert loads == [("models/m", "teacher", "int8", "cpu", 4, 3.0)] * 2
    app.app(["load-test", "models/m"], standalone_mode=False)
    assert loads[-1] == ("models/m", "student", "fp32", "auto", 8, 10.0)


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_compare_and_bench_with_compare_are_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    one, other = (ModelDir(tmp_path / name) for name in "ab")
    for directory in (one, other):
        directory.path.mkdir()
        directory.report_json.write_text(json.dumps(make_report().to_json()))
    printed = []
    for words in (["compare", one.path, other.path], ["bench", one.path, "--compare", other.path]):
        app.app([*map(str, words), *flags], standalone_mode=False)
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert str(other.path) in printed[0]
