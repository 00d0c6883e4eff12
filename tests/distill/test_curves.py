"""The learning-curve picture, of any stages and any number of epochs."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from toolkit.distill.curves import draw_learning_curves
from toolkit.plotting import COLOURS


def write_metrics(folder: Path, **epochs: int) -> Path:
    path = folder / "metrics.jsonl"
    lines = []
    for stage, count in epochs.items():
        for epoch in range(count):
            figures = {
                f"{split}_{kind}": 0.5 + epoch / 100 for split in ("train", "valid") for kind in ("loss", "accuracy")
            }
            others = {"train_img_s": 100.0, "seconds": 1.0, "learning_rate": 0.1, "image_size": 32}
            lines.append(json.dumps({"stage": stage, "epoch": epoch} | figures | others))
    path.write_text("\n".join(lines) + "\n")
    return path


def colours_in(png: bytes) -> set[tuple[int, ...]]:
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.width > 1000
        assert picture.height > 400
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    return {tuple(map(int, colour)) for colour in np.unique(pixels, axis=0)}


def rgb(role: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(COLOURS[role].removeprefix("#")))


@pytest.mark.parametrize("epochs", [1, 40])
def test_every_stage_has_its_role_s_colour(tmp_path: Path, epochs: int) -> None:
    found = colours_in(draw_learning_curves(write_metrics(tmp_path, teacher=epochs, distill=epochs, control=epochs)))
    assert {rgb(role) for role in COLOURS} <= found


def test_a_stage_that_did_not_run_is_not_there(tmp_path: Path) -> None:
    found = colours_in(draw_learning_curves(write_metrics(tmp_path, distill=3)))
    assert rgb("student") in found
    assert rgb("teacher") not in found
