"""The benchmark: what is lost and what is won by shipping the student. Writes report.json, report.md and a plot."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit import __version__, console
from toolkit.bench.comparison import compare_with_teacher, find_contradictions, judge
from toolkit.bench.cost import measure_peak_memory_mib
from toolkit.bench.fidelity import measure_fidelity
from toolkit.bench.gain import measure_gain
from toolkit.bench.plots import draw_accuracy_latency
from toolkit.bench.rows import Row, answer_images, choose_images, open_rows
from toolkit.bench.table import print_table, render_markdown
from toolkit.bench.timing import count_turns, time_rows
from toolkit.data.pixels import Pixels
from toolkit.data.sources import Dataset
from toolkit.environment import describe_hardware, describe_versions, pick_device
from toolkit.errors import DataError
from toolkit.modeldir import ModelDir, write_atomically
from toolkit.recipe import BenchRecipe, Recipe

__all__ = ["print_table", "run_bench"]

SCHEMA = 1
"""Version of report.json: fields may be added, never renamed."""


def run_bench(
    model_dir: ModelDir,
    recipe: Recipe,
    test_pixels: Pixels,
    dataset: Dataset,
    *,
    device: str = "auto",
    provider: str = "auto",
) -> dict[str, Any]:
    """Measure teacher and student (and the control, where there is one) in torch on `device` and in onnxruntime.

    Returns the report that is written to report.json. Raises ArtifactError where weights or ONNX files are missing,
    DataError where the test images are not of the model's classes, DeviceError.
    """
    device = pick_device(device)
    rows = open_rows(model_dir, device, provider)
    _require_fitting_images(rows, test_pixels, dataset)
    chosen = choose_images(len(test_pixels), recipe.bench.images)
    measured, images = _measure(rows, recipe.bench, test_pixels, chosen), len(chosen)
    compare_with_teacher(measured)
    warnings = find_contradictions(measured, recipe.export.max_accuracy_drop)
    for warning in warnings:
        console.say(f"careful: {warning}")
    report = {
        "schema": SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "toolkit_version": __version__,
        "hardware": describe_hardware(),
        "versions": describe_versions(),
        "dataset": {"name": dataset.name, "split": "test", "images": images, "sha256": dataset.sha256},
        "recipe": recipe.model_dump(mode="json"),
        "rows": measured,
        "distillation": measure_gain(model_dir, recipe.distill.seed, rows, measured, test_pixels, chosen, device),
        "verdict": judge(measured, images),
        "warnings": warnings,
    }
    _write(model_dir, report)
    return report


def _measure(
    rows: Sequence[Row], recipe: BenchRecipe, pixels: Pixels, indices: NDArray[np.integer]
) -> list[dict[str, Any]]:
    """The report's rows; their quality is that on the images at `indices`."""
    labels = pixels.labels[indices]
    with console.progress("bench: quality", len(indices) * len(rows)) as advance:
        answers = answer_images([row.predictor for row in rows], pixels, indices, advance)
    images = pixels.centre(indices[: max(64, *recipe.batch_sizes)])
    with console.progress("bench: speed", count_turns(len(rows), recipe.batch_sizes)) as advance:
        timings = time_rows(
            [row.predictor for row in rows],
            images,
            recipe.samples,
            recipe.seconds,
            recipe.batch_sizes,
            advance=advance,
        )
    largest_batch = images[: max(recipe.batch_sizes)]
    return [
        row.describe()
        | asdict(measure_fidelity(logits, labels, answers[0]))
        | asdict(timing)
        | {"peak_memory_mib": measure_peak_memory_mib(row.predictor, largest_batch, row.network)}
        for row, logits, timing in zip(rows, answers, timings, strict=True)
    ]


def _require_fitting_images(rows: Sequence[Row], pixels: Pixels, dataset: Dataset) -> None:
    if len(pixels) == 0:
        raise DataError(f"{dataset.name} has no readable test image", "add some, or give another set with --data")
    known, given = rows[0].predictor.classes, dataset.classes
    if known != given:
        detail = f"{len(known)} and {len(given)}" if len(known) != len(given) else "the same number, other names"
        raise DataError(
            f"{rows[0].path} was not trained on the classes of {dataset.name} ({detail})",
            "give the data it was trained on with --data",
        )
    seen, cut = rows[0].predictor.preprocess, pixels.preprocess
    if (seen.image_size, seen.resize) != (cut.image_size, cut.resize):
        raise DataError(
            f"{rows[0].path} sees {seen.image_size} px, resized to {seen.resize}; the recipe cuts images to "
            f"{cut.image_size} px, resized to {cut.resize}",
            f"use --set data.image_size={seen.image_size} --set data.resize={seen.resize}",
        )


def _write(model_dir: ModelDir, report: dict[str, Any]) -> None:
    picture = draw_accuracy_latency(report)
    with write_atomically(model_dir.plot("accuracy_latency")) as path:
        path.write_bytes(picture)
    with write_atomically(model_dir.report_markdown) as path:
        path.write_text(render_markdown(report), encoding="utf-8")
    with write_atomically(model_dir.report_json) as path:
        path.write_text(json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
