"""All times of a report's rows: latency and throughput, end-to-end latency, first use; and their memory."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toolkit import console
from toolkit.bench.measure import end_to_end, timing
from toolkit.bench.measure.first_use import measure_first_uses
from toolkit.bench.measure.images import BenchImages
from toolkit.bench.measure.rows import Row
from toolkit.bench.schema import Duration, RowSpeed
from toolkit.data.dataset import Images
from toolkit.runtimes.opening import ONNX_RUNTIMES
from toolkit.settings import BenchRecipe

IMAGES = 64
"""Different images that are timed, or as many as the largest batch has."""


@dataclass(frozen=True)
class Speed:
    """Figures for report.json."""

    rows: list[RowSpeed]
    """One for each row, in their order."""
    preprocess_ms: Duration
    """Times of decoding, resizing and cropping one image file."""


def measure_speed(rows: Sequence[Row], recipe: BenchRecipe, images: BenchImages) -> Speed:
    """Measure all rows on the first of the images.

    Raises DeviceError if a row fails in a process of its own.
    """
    chosen = images.chosen[: max(IMAGES, *recipe.batch_sizes)]
    with console.progress("bench: first use", len(rows)) as advance:
        first_uses = measure_first_uses(rows, max(recipe.batch_sizes), advance)
    timings = _time_rows(rows, recipe, [images.seen_by(row.model).centre(chosen) for row in rows])
    whole = _time_end_to_end(rows, recipe, images.dataset.test, [images.pixels.names[i] for i in chosen[:IMAGES]])
    answers = iter(whole.end_to_end_ms)
    figures = [
        RowSpeed(
            latency_ms=timed.latency_ms,
            throughput_img_s=timed.throughput_img_s,
            end_to_end_ms=next(answers) if _reads_onnx(row) else None,
            first_call_ms=first_use.first_call_ms,
            peak_memory_mib=first_use.peak_memory_mib,
        )
        for row, timed, first_use in zip(rows, timings, first_uses, strict=True)
    ]
    return Speed(figures, whole.preprocess_ms)


def _time_rows(rows: Sequence[Row], recipe: BenchRecipe, pictures: Sequence[NDArray[np.uint8]]) -> list[timing.Timing]:
    predictors = [row.predictor for row in rows]
    with console.progress("bench: speed", timing.count_turns(len(rows), recipe.batch_sizes)) as advance:
        return timing.time_rows(predictors, pictures, recipe.batch_sizes, _budget(recipe), advance)


def _time_end_to_end(
    rows: Sequence[Row], recipe: BenchRecipe, images: Images, names: Sequence[str]
) -> end_to_end.EndToEnd:
    predictors = [row.predictor for row in rows if _reads_onnx(row)]
    contents = end_to_end.encode_images(images, names)
    with console.progress("bench: end to end", end_to_end.count_turns(len(predictors))) as advance:
        ships = next(row.predictor.preprocess for row in rows if row.model == "student")
        return end_to_end.time_end_to_end(ships, predictors, contents, _budget(recipe), advance)


def _budget(recipe: BenchRecipe) -> timing.Budget:
    return timing.Budget(recipe.samples, recipe.seconds)


def _reads_onnx(row: Row) -> bool:
    return row.predictor.runtime in ONNX_RUNTIMES
