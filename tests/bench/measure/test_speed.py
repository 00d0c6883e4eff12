"""All figures of speed together: one of each for every row, whatever it runs in."""

from pathlib import Path

import pytest
from bench_samples import PREPROCESS, RECIPE, make_dataset, save_model_dir

from toolkit.bench.measure import speed, timing
from toolkit.bench.measure.first_use import FirstUse
from toolkit.bench.measure.images import BenchImages
from toolkit.bench.measure.rows import Row, open_rows
from toolkit.bench.measure.speed import measure_speed
from toolkit.data.pixels import load_pixels


def test_every_row_gets_every_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SETTLE_MS", 0.0)
    asked: list[tuple[str, int]] = []

    def remember(rows: list[Row], batch_size: int, advance: object) -> list[FirstUse]:
        asked.extend((row.name, batch_size) for row in rows)
        return [FirstUse(first_call_ms=float(number), peak_memory_mib=None) for number in range(1, 1 + len(rows))]

    monkeypatch.setattr(speed, "measure_first_uses", remember)
    rows = open_rows(save_model_dir(tmp_path), "cpu", "cpu")
    dataset = make_dataset()
    pixels = load_pixels(dataset, "test", PREPROCESS)
    found = measure_speed(rows, RECIPE.bench, BenchImages.choose(dataset, pixels, 0))
    assert asked == [(row.name, 4) for row in rows]
    assert [row.first_call_ms for row in found.rows] == [1, 2, 3, 4]
    for row, figures in zip(rows, found.rows, strict=True):
        assert set(figures.to_json()) == {
            "latency_ms", "throughput_img_s", "end_to_end_ms", "first_call_ms", "peak_memory_mib"
        }  # fmt: skip
        latency = figures.latency_ms
        assert latency.round_p50_min <= latency.p50 <= latency.round_p50_max
        assert set(figures.throughput_img_s) == {"1", "4"}
        assert (figures.end_to_end_ms is None) == (row.predictor.runtime == "torch")
    for figures in found.rows[1::2]:
        assert figures.end_to_end_ms is not None
        assert figures.end_to_end_ms.p95 >= figures.end_to_end_ms.p50 > 0
        assert figures.end_to_end_ms.n >= 1
    assert set(found.preprocess_ms.to_json()) == {"p50", "p95", "n"}
    assert found.preprocess_ms.p50 > 0
