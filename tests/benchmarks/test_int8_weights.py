"""The benchmark of int8 weights on a tiny network: its figures agree with each other."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_networks import settled_network

from toolkit.data.preprocess import Preprocess
from toolkit.networks.registry import NetworkSpec
from toolkit.networks.weights import ModelInfo, save_model
from toolkit.recipe import Recipe

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "int8_weights.py"


@pytest.mark.slow
def test_prints_one_json_object_for_both_kinds_of_products(class_folders: Path, tmp_path: Path) -> None:
    recipe = Recipe().with_overrides(
        [f'data.source="{class_folders}"', "data.image_size=40", "data.resize=40", "export.calibration_images=8"]
    )
    info = ModelInfo(
        role="student",
        network=NetworkSpec("depthwise", {"base": 4}),
        classes=("blue", "green", "red"),
        preprocess=Preprocess.from_recipe(recipe.data),
        recipe=recipe.model_dump(),
        recipe_sha256="",
        dataset_sha256="",
        teacher_sha256=None,
        toolkit_version="0",
    )
    save_model(tmp_path / "student.safetensors", settled_network("depthwise", num_classes=3), info)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path / "student.safetensors"), "--rounds", "1"],
        capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["images"] == 12
    assert set(result["ms_a_batch"]) == {"fp32", "7 bits", "8 bits"}
    assert result["7 bits, own products"] == result["7 bits, exact products"], "on any CPU"
    for name in ("7 bits, exact products", "8 bits, exact products"):
        assert 0 < result[name]["distance"] < 0.1
        lost = abs(result[name]["accuracy"] - result["fp32"]["accuracy"])
        assert lost <= 1 - result[name]["same_answer"] + 1e-9
