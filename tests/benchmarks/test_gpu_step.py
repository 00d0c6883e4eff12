"""The table of a card: on the CPU a small one, in one JSON line, whose limits follow from its own ceilings."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from toolkit.distill.rehearsal import Launches, Rehearsal
from toolkit.doctor import ceilings

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import gpu_step
from gpu_step import ROWS, Row, find_limits, measure_row

CEILINGS = {"fp32_tflop_s": 0.1, "bf16_tflop_s": 1000.0, "copy_gb_s": 100.0}


@pytest.mark.slow
def test_ends_in_one_json_line(tmp_path: Path) -> None:
    command = [sys.executable, gpu_step.__file__, "--device", "cpu", "--images", "16", "--cudnn-benchmark"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    result = json.loads(line)
    assert result["device"] == "cpu"
    assert result["cudnn_benchmark"] is True
    assert {"fp32_tflop_s", "copy_gb_s", "launch_us"} <= set(result["ceilings"])
    assert all(value > 0 for value in result["ceilings"].values())
    rows = [
        (row["image_size_px"], row["batch_size"], row["rotation_degrees"], row["teacher"]) for row in result["rows"]
    ]
    assert rows == [(*vars(row).values(), teacher) for row in ROWS["cpu"] for teacher in ("live", "stored")]
    for row in result["rows"]:
        assert row["share_of_limit"] == pytest.approx(row["img_s"] / row["limit_img_s"])
        assert row["kernels"] is None, "a CPU launches none"
        assert row["remarks"] == []
    assert "img/s" in done.stderr
    assert "train loss" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_tighter_of_the_two_limits_counts() -> None:
    by_arithmetic, by_memory = (find_limits(64, "stored", precision, CEILINGS) for precision in ("fp32", "bf16"))
    assert by_arithmetic.images_s == pytest.approx(0.1e12 / by_arithmetic.flop)
    assert by_memory.images_s == pytest.approx(100e9 / by_memory.bytes)
    live = find_limits(64, "live", "fp32", CEILINGS)
    assert live.flop > 2 * by_arithmetic.flop
    assert live.bytes > by_arithmetic.bytes


def test_a_row_has_its_speed_and_the_launches_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(self: Rehearsal) -> float:
        assert self.settings == ("data.rotation_degrees=15.0",)
        assert (self.steps, self.live) == (4, True)
        return 500.0

    monkeypatch.setattr(Rehearsal, "images_per_second", train)
    monkeypatch.setattr(Rehearsal, "count_launches", lambda self: Launches(365, 7, 0.1))
    row = measure_row(Row(64, 8, 15.0), "live", "cpu", "fp32", CEILINGS, images=32)
    assert (row["img_s"], row["kernels"], row["sent"], row["read"]) == (500.0, 365, 7, 0.1)
    assert "365 kernels, 7.0 copies from the host a step" in "  ".join(gpu_step._tell(row))


def test_remarks_of_the_engine_are_kept_and_its_lines_per_epoch_are_not() -> None:
    said = (
        "out of memory: going on with 4 images at a time\n"
        "student    1/3  train loss 1.3\n"
        "USDT:2026-11-27 21:52:04 1:1 X.cpp:39] profiler_start\n"
    )
    assert gpu_step._remarks(said) == ["out of memory: going on with 4 images at a time"]


def test_a_row_that_fails_says_why_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Rehearsal) -> float:
        raise RuntimeError("CUDA error: out of memory\nand more")

    monkeypatch.setattr(Rehearsal, "images_per_second", fail)
    row = measure_row(Row(64, 8), "stored", "cpu", "fp32", CEILINGS, images=8)
    assert row["error"] == "CUDA error: out of memory"
    assert list(gpu_step._tell(row)) == ["64 px, batch 8, stored, ±0°:", "failed: CUDA error: out of memory"]


def test_a_gpus_ceilings_have_the_way_from_the_host_and_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("product_flop_s", "copy_bytes_s", "bus_bytes_s", "launch_seconds"):
        assert hasattr(ceilings, name)
        monkeypatch.setattr(gpu_step, name, lambda *rest, **more: 1e12)
    monkeypatch.setattr(gpu_step, "has_fast_bf16", lambda device: True)
    names = {"fp32_tflop_s", "bf16_tflop_s", "tf32_tflop_s", "copy_gb_s", "pageable_gb_s", "pinned_gb_s", "launch_us"}
    assert set(gpu_step.measure_ceilings("cuda:0")) == names


def test_a_device_that_is_not_here_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_step.py", "--device", "tpu"])
    with pytest.raises(SystemExit, match=r"^error: unknown device 'tpu'; give auto, cpu, cuda or cuda:N$"):
        gpu_step.main()
