"""Rows of a report side by side: each student row against its teacher row, ONNX against torch, and the verdict.

Works on the dictionaries of report.json, so that an old report can be read again.
"""

from collections.abc import Sequence
from typing import Any

ReportRow = dict[str, Any]

SAME = 0.05
"""Ratios within this of 1, and points within this of 0, are called equal."""


def compare_with_teacher(rows: Sequence[ReportRow]) -> None:
    """Give every row that is not the teacher's a `vs_teacher`, against the teacher's row in the same runtime.

    `times_smaller` and `times_faster` (p50 of batch 1) are the teacher's figure over the row's, so below 1 where the
    row is larger or slower; `accuracy_top1_difference` is the row's less the teacher's, as a fraction.
    """
    for row in rows:
        teacher = find_row(rows, "teacher", row["runtime"])
        if row["model"] == "teacher" or teacher is None:
            continue
        row["vs_teacher"] = {
            "times_smaller": teacher["size_bytes"] / row["size_bytes"],
            "times_faster": teacher["latency_ms"]["p50"] / row["latency_ms"]["p50"],
            "accuracy_top1_difference": row["accuracy_top1"] - teacher["accuracy_top1"],
        }


def find_row(rows: Sequence[ReportRow], model: str, runtime: str, precision: str = "fp32") -> ReportRow | None:
    wanted = (model, runtime, precision)
    return next((row for row in rows if (row["model"], row["runtime"], row["precision"]) == wanted), None)


def find_contradictions(rows: Sequence[ReportRow], tolerance: float) -> list[str]:
    """A sentence for each model whose top-1 accuracy in ONNX is more than `tolerance` off that in torch (both fp32)."""
    found = []
    for onnx in rows:
        torch = find_row(rows, onnx["model"], "torch")
        if onnx["runtime"] == "torch" or onnx["precision"] != "fp32" or torch is None:
            continue
        if abs(onnx["accuracy_top1"] - torch["accuracy_top1"]) > tolerance:
            found.append(
                f"{onnx['model']}.onnx and {onnx['model']}.safetensors should agree and do not: top-1 is "
                f"{onnx['accuracy_top1']:.4f} in {onnx['runtime']} and {torch['accuracy_top1']:.4f} in torch; "
                "export it again with toolkit export --onnx --force"
            )
    return found


def judge(rows: Sequence[ReportRow], images: int) -> str:
    """One sentence: what shipping the student wins and loses, in onnxruntime where it was measured."""
    students = [row for row in rows if row["model"] == "student" and "vs_teacher" in row]
    student = find_row(students, "student", "onnxruntime") or students[0]
    return (
        f"Against the teacher ({student['runtime']}, batch 1), the student is {describe_difference(student)} "
        f"on {images:,} test images."
    )


def describe_difference(row: ReportRow) -> str:
    """`44.8 times smaller, 12.3 times faster and 0.4 points less accurate`"""
    against = row["vs_teacher"]
    points = 100 * against["accuracy_top1_difference"]
    accuracy = f"{abs(points):.1f} points {'more' if points > 0 else 'less'} accurate"
    return (
        f"{_times(against['times_smaller'], 'smaller', 'larger', 'as large')}, "
        f"{_times(against['times_faster'], 'faster', 'slower', 'as fast')} "
        f"and {'as accurate' if abs(points) < SAME else accuracy}"
    )


def _times(ratio: float, more: str, less: str, same: str) -> str:
    if abs(ratio - 1) < SAME:
        return f"about {same}"
    factor, word = (ratio, more) if ratio > 1 else (1 / ratio, less)
    return f"{factor:.0f} times {word}" if factor >= 100 else f"{factor:.1f} times {word}"
