"""The row to ship: the fastest one that is accurate enough, and honest sentences if there is none."""

import pytest
from report_samples import make_row

from toolkit.bench.report.verdict import (
    compare_with_teacher,
    find_contradictions,
    find_shipped,
    name_gpu,
    name_runtime,
    ship,
)
from toolkit.bench.schema import Hardware, find_row, short_provider

TEACHER = make_row("teacher", 2.0, 0.92, 40_000_000)


def test_the_fastest_row_within_the_drop_is_shipped() -> None:
    rows = [
        TEACHER,
        make_row("student", 0.7, 0.919, 1_000_000),
        make_row("student", 0.5, 0.917, 400_000, precision="int8"),
        make_row("student", 0.1, 0.85, 400_000, precision="fp16"),
        make_row("control", 0.05, 0.92, 400_000),
    ]
    assert ship(rows, 0.01, 10_000) == (
        "Ship student int8 in onnxruntime: compared with the teacher's fastest row, it is 100 times smaller, "
        "4.0 times faster and 0.3 points less accurate on 10,000 test images."
    )
    assert ship(rows, 0.001, 10_000).startswith(
        "Ship student in onnxruntime: compared with the teacher's fastest row, it is"
    )


def test_a_drop_of_exactly_the_bound_is_allowed() -> None:
    rows = [make_row("teacher", 2, 0.91, 10), make_row("student", 1, 0.9, 10)]
    assert 0.91 - 0.9 > 0.01  # in floating point
    assert ship(rows, 0.01, 100).startswith("Ship student")
    assert ship(rows, 0.0099, 100).startswith("Ship no student yet")


def test_if_no_row_is_accurate_enough_the_nearest_is_named() -> None:
    rows = [TEACHER, make_row("student", 1, 0.88, 10), make_row("student", 0.5, 0.87, 10, precision="int8")]
    assert ship(rows, 0.01, 2_500) == (
        "Ship no student yet: none is within --max-drop 0.01 of the teacher. The closest, student in onnxruntime, is "
        "4.00 points less accurate on 2,500 test images: 88.00 % against 92.00 %."
    )


def test_if_no_speed_is_won_that_is_said() -> None:
    rows = [TEACHER, make_row("student", 3.0, 0.92, 4_000_000), make_row("student", 4.0, 0.92, 10, "torch")]
    assert ship(rows, 0.01, 100) == (
        "The student is no faster here. Its fastest row, student in onnxruntime, is 10.0 times smaller, 1.5 times "
        "slower and as accurate on 100 test images, compared with the teacher's fastest row."
    )


def test_speed_is_against_the_teachers_fastest_row_that_keeps_its_accuracy() -> None:
    rows = [
        make_row("teacher", 8.0, 0.92, 40, "torch"),
        TEACHER,
        make_row("teacher", 1.0, 0.918, 10_000_000, precision="int8"),
        make_row("teacher", 0.1, 0.5, 10_000_000, precision="fp16"),  # ruined: no reference
        make_row("student", 0.5, 0.919, 1_000_000),
    ]
    assert ship(rows, 0.01, 100) == (
        "Ship student in onnxruntime: compared with the teacher's fastest row and its best accuracy, it is 10.0 times "
        "smaller, 2.0 times faster and 0.1 points less accurate on 100 test images."
    )


def test_a_row_that_no_caller_sees_is_not_shipped() -> None:
    rows = [
        TEACHER,
        make_row("teacher", 0.5, 0.92, 40_000_000, "onnxruntime.io_binding"),
        make_row("student", 1.0, 0.92, 1_000_000),
        make_row("student", 0.1, 0.92, 1_000_000, "onnxruntime.io_binding"),
    ]
    sentence = ship(rows, 0.01, 100)
    assert sentence.startswith("Ship student in onnxruntime: ")
    assert "2.0 times faster" in sentence


def test_each_kind_of_device_has_its_own_reference() -> None:
    rows = [
        TEACHER,
        make_row("teacher", 0.4, 0.92, 40_000_000, "torch", provider="cuda:0"),
        make_row("student", 0.2, 0.92, 1_000_000),
        make_row("student", 0.1, 0.92, 1_000_000, provider="CUDAExecutionProvider"),
    ]
    sentence = ship(rows, 0.01, 100)
    assert sentence.startswith("Ship student in onnxruntime cuda: ")
    assert "4.0 times faster" in sentence
    assert "10.0 times faster" in ship(rows[:3], 0.01, 100)


def test_rows_are_compared_on_their_own_provider() -> None:
    rows = [
        make_row("teacher", 20, 0.9, 100),
        make_row("teacher", 2, 0.9, 100, provider="CUDAExecutionProvider"),
        make_row("student", 5, 0.9, 50),
        make_row("student", 1, 0.9, 50, provider="CUDAExecutionProvider"),
        make_row("student", 1, 0.9, 50, provider="CUDAExecutionProvider:1"),
    ]
    compared = compare_with_teacher(rows)
    assert [row.vs_teacher.times_faster for row in compared[2:4] if row.vs_teacher] == [4.0, 2.0]
    assert "vs_teacher" not in compared[4].to_json()
    assert all(row.vs_teacher is None for row in rows), "what was given stays as it was"
    assert find_row(rows, "student", "onnxruntime", provider="CUDAExecutionProvider") is rows[3]
    assert find_row(rows, "student", "openvino") is None


def test_runtimes_are_distinguished_by_provider_if_necessary() -> None:
    cpu, cuda = make_row("student", 1, 0.9, 1), make_row("student", 1, 0.9, 1, provider="CUDAExecutionProvider")
    assert name_runtime(cpu, [cpu]) == "onnxruntime"
    assert [name_runtime(row, [cpu, cuda]) for row in (cpu, cuda)] == ["onnxruntime cpu", "onnxruntime cuda"]


def test_providers_have_short_names() -> None:
    named = {"CPUExecutionProvider": "cpu", "CUDAExecutionProvider": "cuda", "CUDAExecutionProvider:1": "cuda:1"}
    assert {name: short_provider(name) for name in (*named, "cuda:0")} == named | {"cuda:0": "cuda:0"}


@pytest.mark.parametrize(
    ("hardware", "name"),
    [
        ({"gpu": None, "device": "cpu"}, None),
        ({"gpu": "T4, H200", "device": "cuda:1, H200"}, "cuda:1, H200"),
        ({"gpu": "T4, H200", "device": "cpu"}, "T4, H200"),
        ({"gpu": "T4"}, "T4"),
    ],
)
def test_the_gpu_that_was_used_is_named(hardware: dict[str, str | None], name: str | None) -> None:
    machine = {"cpu": "a processor", "cores": 2, "memory_gib": 8.0, "driver": None, **hardware}
    assert name_gpu(Hardware.model_validate(machine)) == name


def test_the_fp32_file_in_onnxruntime_ships_if_there_is_one() -> None:
    torch, onnx = make_row("student", 1, 0.9, 1, "torch"), make_row("student", 1, 0.9, 1)
    assert find_shipped([TEACHER, torch, onnx]) is onnx
    assert find_shipped([TEACHER, torch]) is torch


@pytest.mark.parametrize(
    ("runtime", "expected"),
    [
        ("onnxruntime", "student.onnx and student.safetensors should agree"),
        ("openvino", "student.onnx and student.safetensors should agree"),
        ("torch.compile", "student.safetensors compiled and uncompiled should agree"),
    ],
)
def test_contradictions_name_the_files_of_their_runtime(runtime: str, expected: str) -> None:
    rows = [make_row("student", 1, 0.9, 1, "torch"), make_row("student", 1, 0.8, 1, runtime)]
    (sentence,) = find_contradictions(rows, 0.001)
    assert sentence.startswith(expected)
    assert f"top-1 is 0.8000 in {runtime} and 0.9000 in torch" in sentence


def test_without_a_teacher_the_fastest_of_the_accurate_rows_is_shipped() -> None:
    rows = [
        make_row("student", 0.7, 0.919, 1_000_000),
        make_row("student", 0.5, 0.915, 400_000, precision="int8"),
        make_row("student", 0.1, 0.85, 400_000, precision="fp16"),
        make_row("control", 0.05, 0.93, 400_000),
    ]
    why = "There is no teacher to measure, because its answers came from a file."
    assert ship(rows, 0.01, 10_000, why) == (
        f"Ship student int8 in onnxruntime: it has 91.50 % of 10,000 test images right, and one image takes 0.50 ms"
        f" (p50). {why}"
    )
    assert ship(rows, 0.001, 10_000, why).startswith("Ship student in onnxruntime: it has 91.90 %")
