"""The baseline gate: each bound with a report that breaks it, and reports that cannot be compared at all."""

import json
from pathlib import Path
from typing import Any

import pytest
from report_samples import first_report, make_report, make_row

from toolkit.bench.report import baseline as gate
from toolkit.bench.schema import BaselineComparison, Report, read_report
from toolkit.errors import ArtifactError, GateError


@pytest.fixture
def baseline() -> dict[str, Any]:
    return make_report().to_json()


@pytest.fixture
def report() -> dict[str, Any]:
    return make_report().to_json()


def check_against_baseline(
    report: dict[str, Any], baseline: dict[str, Any], max_slowdown: float, max_drop: float
) -> list[BaselineComparison]:
    """Of reports as they stand in the files."""
    now, before = Report.model_validate(report), Report.model_validate(baseline)
    return gate.check_against_baseline(now, before, max_slowdown, max_drop)


def test_a_report_passes_against_itself(report: dict[str, Any], baseline: dict[str, Any]) -> None:
    found = check_against_baseline(report, baseline, 1.0, 0.0)
    assert [one.name for one in found] == [
        "teacher in torch on cpu",
        "teacher in onnxruntime on cpu",
        "student in torch on cpu",
        "student in onnxruntime on cpu",
    ]
    assert {(one.slowdown, one.drop) for one in found} == {(1.0, 0.0)}


def test_a_slower_row_fails(report: dict[str, Any], baseline: dict[str, Any]) -> None:
    report["rows"][3]["latency_ms"]["p50"] = 0.1801
    expected = (
        r"^worse than the baseline of 2026-11-24T12:00:00\+00:00: student in onnxruntime on cpu is 1\.20 times as slow "
        r"\(0\.150 -> 0\.180 ms, 1\.2 times allowed\); fix that, measure again on an idle machine"
    )
    with pytest.raises(GateError, match=expected) as caught:
        check_against_baseline(report, baseline, 1.2, 0.01)
    assert caught.value.exit_code == 3
    report["rows"][3]["latency_ms"]["p50"] = 1.2 * 0.15
    (*_, last) = check_against_baseline(report, baseline, 1.2, 0.01)
    assert last.slowdown == pytest.approx(1.2)


def test_a_less_accurate_row_fails(report: dict[str, Any], baseline: dict[str, Any]) -> None:
    report["rows"][2]["accuracy_top1"] = 0.8925
    with pytest.raises(GateError, match=r"student in torch on cpu lost 1\.06 points of top-1 \(1 allowed\);"):
        check_against_baseline(report, baseline, 1.2, 0.01)
    assert check_against_baseline(report, baseline, 1.2, 0.0107)[2].drop == pytest.approx(0.0106)


def test_a_drop_of_exactly_the_bound_passes(report: dict[str, Any], baseline: dict[str, Any]) -> None:
    baseline["rows"][2]["accuracy_top1"], report["rows"][2]["accuracy_top1"] = 0.91, 0.9
    found = check_against_baseline(report, baseline, 1.2, 0.01)
    assert found[2].name == "student in torch on cpu"
    assert found[2].drop == pytest.approx(0.01)
    with pytest.raises(GateError, match=r"student in torch on cpu lost 1\.00 points of top-1"):
        check_against_baseline(report, baseline, 1.2, 0.00999)


def test_every_failure_is_named(report: dict[str, Any], baseline: dict[str, Any]) -> None:
    report["rows"][0]["latency_ms"]["p50"] *= 3
    report["rows"][0]["accuracy_top1"] -= 0.5
    del report["rows"][3]
    with pytest.raises(GateError) as caught:
        check_against_baseline(report, baseline, 1.2, 0.01)
    message = str(caught.value)
    assert "student in onnxruntime on cpu is missing; teacher in torch on cpu is 3.00 times as slow" in message
    assert "teacher in torch on cpu lost 50.00 points of top-1" in message


@pytest.mark.parametrize("key", ["precision", "runtime", "provider"])
def test_a_row_of_another_kind_is_no_match(report: dict[str, Any], baseline: dict[str, Any], key: str) -> None:
    report["rows"][3][key] = {"precision": "int8", "runtime": "openvino", "provider": "CUDAExecutionProvider"}[key]
    with pytest.raises(GateError, match=r"student in onnxruntime on cpu is missing"):
        check_against_baseline(report, baseline, 100, 1)


def test_better_and_new_rows_pass(report: dict[str, Any], baseline: dict[str, Any]) -> None:
    report["rows"][3]["latency_ms"]["p50"] /= 10
    report["rows"][3]["accuracy_top1"] += 0.05
    report["rows"].append(make_row("student", 99.0, 0.1, 1, precision="int8").to_json())
    assert len(check_against_baseline(report, baseline, 1.0, 0.0)) == 4


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        (
            "sha256",
            "cd" * 32,
            "this report on 10,000 of fashion-mnist with other content: accuracies cannot be compared",
        ),
        ("images", 500, "was measured on 10,000 images of fashion-mnist, this report on 500 of fashion-mnist: acc"),
    ],
)
def test_other_images_cannot_be_compared(
    report: dict[str, Any], baseline: dict[str, Any], key: str, value: Any, expected: str
) -> None:
    report["dataset"][key] = value
    with pytest.raises(ArtifactError, match=expected):
        check_against_baseline(report, baseline, 1.2, 0.01)


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("cpu", "another cpu (AMD EPYC, now Another)"),
        ("gpu", "another gpu (none, now Another)"),
    ],
)
def test_another_machine_is_remarked_on(
    report: dict[str, Any], baseline: dict[str, Any], part: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    check_against_baseline(report, baseline, 1.2, 0.01)
    assert capsys.readouterr().err == ""
    report["hardware"][part] = "Another"
    check_against_baseline(report, baseline, 1.2, 0.01)
    assert f"warning: the baseline was measured on {expected}" in capsys.readouterr().err


# ---- reading ---------------------------------------------------------------------------------------------------------


def test_a_report_is_read_as_it_was_written(tmp_path: Path, report: dict[str, Any]) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report), encoding="utf-8")
    assert read_report(path).to_json() == report


def test_the_first_reports_are_still_baselines(tmp_path: Path, report: dict[str, Any]) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps(first_report(make_report())), encoding="utf-8")
    before = read_report(path)
    assert before.to_json() == json.loads(path.read_text(encoding="utf-8"))
    assert len(gate.check_against_baseline(Report.model_validate(report), before, 1.0, 0.0)) == 4


def test_fields_of_a_later_version_are_ignored(tmp_path: Path, report: dict[str, Any]) -> None:
    path = tmp_path / "report.json"
    changed = report | {"weather": "fine", "rows": [row | {"power_w": 3.0} for row in report["rows"]]}
    path.write_text(json.dumps(changed), encoding="utf-8")
    assert read_report(path).to_json() == report


def test_a_missing_report_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"there is no report .*none\.json; make it with toolkit bench"):
        read_report(tmp_path / "none.json")
    with pytest.raises(ArtifactError, match=r"cannot read the report .*: Is a directory"):
        read_report(tmp_path)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda report: report.pop("schema"), "schema: field required"),
        (lambda report: report.pop("rows"), "rows: field required"),
        (lambda report: report.update(rows=[]), "rows: list should have at least 1 item"),
        (lambda report: report["rows"][1].pop("provider"), r"rows\.1\.provider: field required"),
        (lambda report: report["rows"][0]["latency_ms"].update(p50=0), r"rows\.0\.latency_ms\.p50: input should be gr"),
        (lambda report: report["rows"][0]["latency_ms"].update(p50=float("nan")), r"p50: input should be"),
        (lambda report: report["rows"][0].update(accuracy_top1=90.3), r"rows\.0\.accuracy_top1: input should be less"),
        (lambda report: report["dataset"].pop("sha256"), r"dataset\.sha256: field required"),
    ],
)
def test_other_json_is_no_report(tmp_path: Path, report: dict[str, Any], change: Any, expected: str) -> None:
    change(report)
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report), encoding="utf-8")
    with pytest.raises(ArtifactError, match=rf"report\.json is not a report of toolkit bench: .*{expected}"):
        read_report(path)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff\xfe", b'{"schema": 1'])
def test_a_file_that_is_no_json_is_no_report(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(text)
    with pytest.raises(ArtifactError, match=r"report\.json is not a report of toolkit bench: ") as caught:
        read_report(path)
    assert "\n" not in str(caught.value)


def test_another_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text('{"schema": 2, "lines": []}', encoding="utf-8")
    with pytest.raises(ArtifactError, match="has schema 2, and this toolkit reads schema 1; make it again"):
        read_report(path)
