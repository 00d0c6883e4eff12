"""Everything about the speed of a report's rows: timed in turns, whole answers, first use, memory."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit import console
from toolkit.bench.measure import end_to_end, timing
from toolkit.bench.measure.first_use import measure_first_uses
from toolkit.bench.measure.rows import Row
from toolkit.data.dataset import Images
from toolkit.data.pixels import Pixels
from toolkit.recipe import BenchRecipe
from toolkit.runtimes.opening import ONNX_RUNTIMES

IMAGES = 64
"""Different images that are timed, or as many as the largest batch has."""


@dataclass(frozen=True)
class Speed:
    """Figures for report.json."""

    rows: list[dict[str, Any]]
    """For each row latency_ms, throughput_img_s, end_to_end_ms (None for torch), first_call_ms and peak_memory_mib."""
    preprocess_ms: dict[str, Any]
    """p50, p95 and n of decoding, resizing and cropping one image file."""


def measure_speed(
    rows: Sequence[Row], recipe: BenchRecipe, pixels: Pixels, images: Images, indices: NDArray[np.integer]
) -> Speed:
    """Measure all rows on the first of the test images at `indices`; `images` is the split that `pixels` are of.

    Raises DeviceError where a row fails in a process of its own.
    """
    chosen = indices[: max(IMAGES, *recipe.batch_sizes)]
    with console.progress("bench: first use", len(rows)) as advance:
        first_uses = measure_first_uses(rows, max(recipe.batch_sizes), advance)
    timings = _time_rows(rows, recipe, pixels.centre(chosen))
    whole = _time_end_to_end(rows, recipe, images, [pixels.names[i] for i in chosen[:IMAGES]])
    answers = iter(whole.end_to_end_ms)
    figures = [
        asdict(timed) | {"end_to_end_ms": asdict(next(answers)) if _reads_onnx(row) else None} | asdict(first_use)
        for row, timed, first_use in zip(rows, timings, first_uses, strict=True)
    ]
    return Speed(figures, asdict(whole.preprocess_ms))


def _time_rows(rows: Sequence[Row], recipe: BenchRecipe, pictures: NDArray[np.uint8]) -> list[timing.Timing]:
    predictors = [row.predictor for row in rows]
    with console.progress("bench: speed", timing.count_turns(len(rows), recipe.batch_sizes)) as advance:
        return timing.time_rows(
            predictors, pictures, recipe.samples, recipe.seconds, recipe.batch_sizes, advance=advance
        )


def _time_end_to_end(
    rows: Sequence[Row], recipe: BenchRecipe, images: Images, names: Sequence[str]
) -> end_to_end.EndToEnd:
    predictors = [row.predictor for row in rows if _reads_onnx(row)]
    contents = end_to_end.encode_images(images, names)
    with console.progress("bench: end to end", end_to_end.count_turns(len(predictors))) as advance:
        return end_to_end.time_end_to_end(
            rows[0].predictor.preprocess, predictors, contents, recipe.samples, recipe.seconds, advance=advance
        )


def _reads_onnx(row: Row) -> bool:
    return row.predictor.runtime in ONNX_RUNTIMES
