"""The speed benchmark on tiny images: it ends in one JSON line whose ratios are those of its own figures."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torchvision.models import resnet18

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import distill_speed
from distill_speed import default_images

SCRIPT = Path(distill_speed.__file__)


@pytest.mark.parametrize(
    ("device", "available", "expected"), [("cpu", 50_000, 1024), ("cuda:0", 50_000, 16_384), ("cuda:0", 900, 900)]
)
def test_a_gpu_is_given_more_images_as_far_as_there_are(device: str, available: int, expected: int) -> None:
    assert default_images(device, available) == expected


@pytest.mark.slow
def test_ends_in_one_json_line_of_both_measurements(class_folders: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(resnet18(num_classes=3).state_dict(), tmp_path / "teacher.pt")
    recipe = tmp_path / "small.toml"
    recipe.write_text('[data]\nimage_size = 32\nresize = 36\n[distill]\nprecision = "fp32"\nteacher_views = 1\n')
    command = [sys.executable, str(SCRIPT), "--data", str(class_folders), "--teacher", str(tmp_path / "teacher.pt")]
    small = ["--size", "32", "--images", "36", "--rounds", "2", "--epochs", "2", "--recipe", str(recipe)]
    done = subprocess.run(
        [*command, *small, "--device", "cpu"], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    result = json.loads(line)
    speeds = result["train_img_s"]
    assert set(speeds) == {"notebook", "live", "stored"}
    for name in ("live", "stored"):
        ratio = result["times_notebook"][name]
        assert ratio["min"] <= ratio["median"] <= ratio["max"]
        assert ratio["min"] >= speeds[name]["min"] / speeds["notebook"]["max"]
        assert result["share_of_limit"][name] > 0
    peak = result["measured_peak"]
    limits = (
        peak["tflop_s"] * 1e3 / result["gflop_an_image"]["stored"],
        peak["gb_s"] * 1e3 / result["mb_an_image_at_least"],
    )
    assert result["share_of_limit"]["stored"] == pytest.approx(speeds["stored"]["median"] / min(limits))
    assert result["gflop_an_image"]["live"] > result["gflop_an_image"]["stored"] > 0
    assert result["epochs"] == 2
    assert set(result["best_valid_accuracy"]) == {"notebook", "toolkit"}
    assert result["seconds_to_notebook_best"]["notebook"] <= result["all_epochs_s"]["notebook"]
