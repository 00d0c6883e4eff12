"""Two reports side by side: figures worked out by hand, and every kind of difference between them."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from report_samples import first_report, make_report, make_row

from toolkit.bench.report.side_by_side import compare_reports, print_side_by_side
from toolkit.bench.schema import Report
from toolkit.recipe import load_builtin

NAMES = ("models/a", "models/b")


def compare(first: Report, second: Report) -> dict[str, Any]:
    return compare_reports(first, second, NAMES).to_json()


def change(report: Report, changed: Callable[[dict[str, Any]], object]) -> Report:
    values = report.to_json()
    changed(values)
    return Report.model_validate(values)


def test_each_row_beside_its_own() -> None:
    first = make_report()
    second = make_report([make_row("student", 0.3, 0.9131, 2_060_000), make_row("teacher", 6.75, 0.9, 9, "torch")])
    rows = compare(first, second)["rows"]
    assert [(row["model"], row["runtime"]) for row in rows] == [
        ("teacher", "torch"),
        ("teacher", "onnxruntime"),
        ("student", "torch"),
        ("student", "onnxruntime"),
    ]
    assert rows[3] == {
        "model": "student",
        "precision": "fp32",
        "runtime": "onnxruntime",
        "provider": ["CPUExecutionProvider", "CPUExecutionProvider"],
        "accuracy_top1": [0.9031, 0.9131],
        "accuracy_top1_difference": pytest.approx(0.01),
        "latency_ms_p50": [0.15, 0.3],
        "times_faster": 0.5,
        "size_bytes": [1_030_000, 2_060_000],
        "times_smaller": 0.5,
    }
    assert rows[1]["accuracy_top1"] == [0.9079, None]
    assert rows[1]["times_faster"] is rows[1]["times_smaller"] is rows[1]["accuracy_top1_difference"] is None


def test_rows_of_the_second_alone_come_last() -> None:
    second = make_report([make_row("student", 1, 0.9, 9, precision="int8"), make_row("teacher", 1, 0.9, 9)])
    rows = compare(make_report(), second)["rows"]
    assert (rows[-1]["precision"], rows[-1]["latency_ms_p50"]) == ("int8", [None, 1])
    assert len(rows) == 5


def test_of_several_providers_each_finds_its_own() -> None:
    cuda = make_row("student", 0.1, 0.9, 9, provider="CUDAExecutionProvider")
    cpu, teacher = make_row("student", 1, 0.9, 9), make_row("teacher", 1, 0.9, 9)
    rows = compare(make_report([teacher, cpu, cuda]), make_report([teacher, cuda, cpu]))["rows"]
    assert [row["provider"] for row in rows[1:]] == [["CPUExecutionProvider"] * 2, ["CUDAExecutionProvider"] * 2]
    alone = compare(make_report([teacher, cpu]), make_report([teacher, cuda]))["rows"][1]
    assert alone["provider"] == ["CPUExecutionProvider", "CUDAExecutionProvider"]
    assert alone["times_faster"] == 10
    both = compare(make_report([teacher, cpu, cuda]), make_report([teacher, cuda]))["rows"]
    assert [row["provider"] for row in both[1:]] == [["CPUExecutionProvider", None], ["CUDAExecutionProvider"] * 2]


def test_a_report_beside_itself_differs_in_nothing() -> None:
    comparison = compare(make_report(), make_report())
    assert comparison["differences"] == []
    figures = ("times_faster", "times_smaller", "accuracy_top1_difference")
    assert {tuple(row[key] for key in figures) for row in comparison["rows"]} == {(1.0, 1.0, 0.0)}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (
            lambda report: report["dataset"].update(name="food", images=20, sha256="cd" * 32),
            "data: 10,000 images of fashion-mnist (abababababab…) in A, 20 images of food (cdcdcdcdcdcd…) in B: "
            "accuracies are not from the same images",
        ),
        (
            lambda report: report["hardware"].update(gpu="H100", cores=16),
            "hardware: cores 2 in A, 16 in B; gpu none in A, H100 in B: times are not from the same machine",
        ),
        (lambda report: report["versions"].update(torch="2.16.0"), "versions: torch 2.15.0 in A, 2.16.0 in B"),
        (lambda report: report["versions"].pop("torch"), "versions: torch 2.15.0 in A, none in B"),
        (
            lambda report: report["recipe"]["distill"].update(temperature=8.0),
            "recipe: distill.temperature 4.0 in A, 8.0 in B",
        ),
    ],
)
def test_each_other_difference_is_said(changed: Any, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    comparison = compare_reports(make_report(), change(make_report(), changed), NAMES)
    assert comparison.differences == [expected]
    print_side_by_side(comparison)
    assert expected in capsys.readouterr().out


def test_settings_that_have_moved_since_are_compared_where_they_stand_now() -> None:
    def write_as_once(report: dict[str, Any]) -> None:
        report["recipe"]["distill"] |= report["recipe"].pop("training") | {"seed": 3}

    comparison = compare_reports(make_report(), change(make_report(), write_as_once), NAMES)
    assert comparison.differences == ["recipe: training.seed 0 in A, 3 in B"]


def test_the_load_of_the_moment_makes_no_other_machine() -> None:
    second = change(
        make_report(), lambda report: report["hardware"].update(clock_mhz=3000, load_1m=1.5, other_load_cores=0.7)
    )
    assert compare(make_report(), second)["differences"] == []


def test_json_and_tables_say_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    second = make_report([make_row("student", 0.3, 0.9131, 2_060_000), make_row("teacher", 6.75, 0.9, 9, "torch")])
    comparison = compare_reports(make_report(recipe=load_builtin("fashion-mnist")), second, NAMES)
    assert json.loads(json.dumps(comparison.to_json(), allow_nan=False)) == comparison.to_json()
    print_side_by_side(comparison)
    out = capsys.readouterr().out
    assert "A: models/a" in out
    (line,) = [line for line in out.splitlines() if line.startswith("student") and "onnxruntime" in line]
    cells = line.split()
    assert cells[1:3] == ["onnxruntime", "cpu"]
    assert cells[3:] == [
        *("90.31", "%", "91.31", "%", "+1.00", "0.150", "0.300", "0.50"),
        *("1.0", "MB", "2.1", "MB", "0.50"),
    ]
    (missing,) = [line for line in out.splitlines() if line.startswith("teacher") and "onnxruntime" in line]
    assert missing.split()[5:] == ["–", "0.530", "–", "44.7", "MB", "–"]


def test_the_first_reports_are_still_compared() -> None:
    comparison = compare(Report.model_validate(first_report(make_report())), make_report())
    assert comparison["differences"] == []
    assert len(comparison["rows"]) == 4
