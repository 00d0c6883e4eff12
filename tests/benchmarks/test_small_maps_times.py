"""The benchmark of convolutions on small maps: every layer that it names is one that the products take over."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "small_maps.py"


@pytest.mark.slow
def test_prints_both_times_of_every_layer() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--rounds", "1", "--batch", "2"],
        capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["batch"], result["precision"]) == (2, "fp32")
    layers = result["layers"]
    assert len({(layer["layer"], layer["places"]) for layer in layers}) == len(layers) > 5
    for layer in layers:
        assert layer["onednn_ms"] > 0
        assert layer["products_ms"] > 0
