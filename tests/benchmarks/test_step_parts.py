"""The parts of a training step: the views, the step, and every block of the student have a time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "step_parts.py"


@pytest.mark.slow
def test_prints_the_time_of_every_part() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--size", "32", "--batch", "2", "--rounds", "1"],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    times = json.loads(done.stdout)["median_ms"]
    views, step, *blocks = times
    assert (views[:5], step[:4]) == ("views", "step")
    assert [name.split(",")[0] for name in blocks] == [f"block {number}" for number in range(8)]
    assert blocks[0].endswith("32 px")
    assert blocks[7].endswith("2 px")
    assert min(times.values()) > 0
