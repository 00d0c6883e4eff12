"""Made-up reports and answers, so that the sentences about them can be worked out by hand."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.bench.report.verdict import compare_with_teacher, ship
from toolkit.bench.schema import ClassRecall, Report, ReportRow
from toolkit.recipe import Recipe, load_builtin

PROVIDERS = {"torch": "cpu", "torch.compile": "cpu", "onnxruntime": "CPUExecutionProvider", "openvino": "CPU"}


def make_row(
    model: str,
    p50: float,
    accuracy: float,
    size: int,
    runtime: str = "onnxruntime",
    precision: str = "fp32",
    provider: str | None = None,
) -> ReportRow:
    """One row of a report; `p50` in ms, `accuracy` a fraction, `size` in bytes."""
    row = {
        "model": model,
        "precision": precision,
        "runtime": runtime,
        "provider": provider or PROVIDERS.get(runtime, "CPUExecutionProvider"),
        "threads": 2,
        "params": size // 4,
        "macs": size,
        "size_bytes": size,
        "accuracy_top1": accuracy,
        "accuracy_top5": 0.995,
        "macro_f1": accuracy - 0.01,
        "ece": 0.0312,
        "teacher_agreement": 1.0 if model == "teacher" else 0.95,
        "latency_ms": {
            "p50": p50, "p95": 1.2 * p50, "p99": 1.5 * p50, "mean": p50, "std": 0.1 * p50, "n": 100,
            "round_p50_min": 0.9 * p50, "round_p50_max": 1.1 * p50,
        },
        "throughput_img_s": {"1": 1000 / p50, "32": 3000 / p50},
        "end_to_end_ms": None if runtime.startswith("torch") else {"p50": 2 * p50, "p95": 3 * p50, "n": 100},
        "first_call_ms": 40.0,
        "peak_memory_mib": None,
        "calibration": "minmax, 128 training images" if precision == "int8" else None,
        "float_layers": ["fc.0"] if precision == "int8" else [],
    }  # fmt: skip
    return ReportRow.model_validate(row)


def four_rows() -> list[ReportRow]:
    """Teacher and student, in torch and in onnxruntime."""
    return [
        make_row("teacher", 6.75, 0.9079, 44_800_000, "torch"),
        make_row("teacher", 0.53, 0.9079, 44_700_000),
        make_row("student", 1.17, 0.9031, 1_040_000, "torch"),
        make_row("student", 0.15, 0.9031, 1_030_000),
    ]


def make_classes(names: Sequence[str], images: int = 1000) -> list[ClassRecall]:
    """The i-th class's recall is 0.9 for the teacher, and i thousandths below that for the student."""
    return [
        ClassRecall(
            name=name,
            images=images,
            teacher_recall=0.9,
            student_recall=0.9 - i / 1000,
            recall_difference=-i / 1000,
        )
        for i, name in enumerate(names)
    ]


def make_report(
    rows: list[ReportRow] | None = None,
    recipe: Recipe | None = None,
    classes: Sequence[str] = ("shirt", "coat", "bag"),
    name: str = "fashion-mnist",
) -> Report:
    rows = compare_with_teacher(four_rows() if rows is None else rows)
    report = {
        "schema": 1,
        "created": "2026-11-24T12:00:00+00:00",
        "toolkit_version": "0.1.0",
        "hardware": {
            "cpu": "AMD EPYC", "cores": 2, "memory_gib": 7.8, "gpu": None, "driver": None, "device": "cpu",
            "clock_mhz": 2400, "load_1m": 0.1, "other_load_cores": 0.0,
        },
        "versions": {"python": "3.11.9", "torch": "2.15.0", "onnxruntime": "1.31.1"},
        "dataset": {"name": name, "split": "test", "images": 10_000, "sha256": "ab" * 32},
        "recipe": (recipe or load_builtin("fashion-mnist")).model_dump(mode="json"),
        "rows": rows,
        "preprocess_ms": {"p50": 0.4, "p95": 0.5, "n": 100},
        "classes": make_classes(classes),
        "distillation": {
            "control_accuracy_top1": None, "gain_top1": None, "seeds": None, "mean": None, "std": None,
            "per_seed": [], "epochs": 3, "images_seen": 165_000, "seconds": 42.0, "train_img_s": 4000.0,
        },
        "verdict": ship(rows, 0.01, 10_000),
        "warnings": [],
        "timing_warnings": [],
        "license": "",
    }  # fmt: skip
    return Report.model_validate(report)


def first_report(report: Report) -> dict[str, Any]:
    """The same as the first version of the toolkit wrote it: without the fields that came later."""
    values = report.to_json()
    for name in ("preprocess_ms", "classes", "timing_warnings", "license"):
        del values[name]
    for name in ("device", "clock_mhz", "load_1m", "other_load_cores"):
        del values["hardware"][name]
    del values["distillation"]["per_seed"]
    for row in values["rows"]:
        for name in ("threads", "calibration", "float_layers", "end_to_end_ms", "first_call_ms"):
            del row[name]
        for name in ("round_p50_min", "round_p50_max"):
            del row["latency_ms"][name]
    return values


def make_answers(
    num_classes: int, images: int, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
    """labels (N,), teacher_logits and student_logits (N, C): the student errs more often and is surer of itself."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, images)
    truth = np.eye(num_classes)[labels]
    teacher = 4 * truth + rng.normal(0, 1.3, (images, num_classes))
    student = 1.4 * (3.4 * truth + rng.normal(0, 1.5, (images, num_classes)))
    return labels, teacher.astype(np.float32), student.astype(np.float32)
