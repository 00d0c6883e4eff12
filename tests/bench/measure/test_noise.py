"""Warnings about speed, from rows and machines with made-up figures."""

import pytest
from report_samples import make_row

from toolkit.bench.measure.noise import find_close_rows, find_load, find_noise, find_restless_rows
from toolkit.bench.schema import Hardware, ReportRow


def row_of(
    model: str, low: float, p50: float, high: float, precision: str = "fp32", runtime: str = "onnxruntime"
) -> ReportRow:
    row = make_row(model, p50, 0.9, 1000, runtime, precision)
    latency = row.latency_ms.model_copy(update={"round_p50_min": low, "round_p50_max": high})
    return row.model_copy(update={"latency_ms": latency})


def machine(cores: int, load: float | None) -> Hardware:
    """`load` in cores that other programs keep busy."""
    return Hardware(cpu="a processor", cores=cores, memory_gib=8, gpu=None, driver=None, other_load_cores=load)


QUIET = machine(4, 0.2)


def test_rows_whose_rounds_overlap_cannot_be_ranked() -> None:
    rows = [row_of("student", 0.95, 1.0, 1.1), row_of("student", 1.05, 1.15, 1.2, "int8"), row_of("teacher", 5, 5, 5)]
    (warning,) = find_close_rows(rows)
    assert warning == (
        "student fp32 (onnxruntime) and student int8 (onnxruntime) cannot be ranked by latency:"
        " their p50 by round overlap, 0.95 to 1.1 ms and 1.05 to 1.2 ms"
    )
    assert find_close_rows(rows[::-1]) == [warning], "the order of the rows does not matter"


def test_rows_apart_are_ranked() -> None:
    assert find_close_rows([row_of("student", 0.9, 1.0, 1.1), row_of("teacher", 1.11, 1.2, 1.3)]) == []
    assert find_close_rows([row_of("student", 0.9, 1.0, 1.1)]) == []
    assert find_close_rows([]) == []


def test_a_control_is_as_fast_as_its_student_by_construction() -> None:
    rows = [row_of("student", 0.9, 1.0, 1.1), row_of("control", 0.9, 1.0, 1.1), row_of("teacher", 2, 2, 2)]
    assert find_close_rows(rows) == []


def test_only_neighbours_are_compared() -> None:
    rows = [row_of("student", 1, 2, 9, runtime=runtime) for runtime in ("torch", "onnxruntime", "openvino")]
    assert len(find_close_rows(rows)) == 2


def test_a_row_that_varies_by_more_than_a_fifth_is_named() -> None:
    assert find_restless_rows([row_of("student", 0.91, 1.0, 1.1)]) == []
    (warning,) = find_restless_rows([row_of("student", 0.9, 1.0, 1.11), row_of("teacher", 4.8, 5.0, 5.2)])
    assert warning == (
        "the latency of student fp32 (onnxruntime) is not steady: its p50 by round is 0.9 to 1.11 ms,"
        " a range of 21 % of 1 ms; measure again on a quieter machine"
    )


@pytest.mark.parametrize(("load", "cores"), [(0.5, 2), (0.0, 1), (None, 4), (15.9, 64)])
def test_a_quiet_machine(load: float | None, cores: int) -> None:
    assert find_load(machine(cores, load)) == []


def test_a_busy_machine_is_reported() -> None:
    (warning,) = find_load(machine(2, 0.53))
    assert warning == (
        "other programs kept 0.5 of 2 cores busy when the benchmark began, so its times are too long;"
        " measure again when the machine is idle"
    )


def test_all_warnings_together() -> None:
    rows = [row_of("student", 0.5, 1.0, 1.1), row_of("teacher", 1.0, 1.2, 1.3)]
    warnings = find_noise(rows, machine(1, 1.0))
    assert [warning.split()[0] for warning in warnings] == ["other", "the", "the", "student"]
    assert find_noise(rows[:1], QUIET) == find_restless_rows(rows[:1])
