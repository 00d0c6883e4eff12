"""A model directory with real files, small enough to be opened many times."""

from pathlib import Path

import numpy as np
from tiny_onnx import COLOURS, save_colour_model

from toolkit.data.dataset import Dataset, Images
from toolkit.data.preprocess import Preprocess
from toolkit.modeldir import FilePrecision, ModelDir, Role
from toolkit.networks.registry import build, spec_of
from toolkit.networks.weights import ModelInfo, save_model
from toolkit.recipe import Recipe

SIDE = 32
RECIPE = Recipe.from_dict(
    {"data": {"image_size": SIDE, "resize": 0}, "bench": {"samples": 10, "seconds": 0.02, "batch_sizes": [1, 4]}},
    "test",
)
PREPROCESS = Preprocess.from_recipe(RECIPE.data)


def save_role(model_dir: ModelDir, role: Role, precisions: tuple[FilePrecision, ...] = ("fp32",)) -> None:
    """Weights of a depthwise network, and an ONNX file for each precision: the colour model, whatever its name says."""
    sha = RECIPE.control_fingerprint() if role == "control" else "0" * 64
    recipe = RECIPE.model_dump(mode="json")
    network = build("depthwise", len(COLOURS), base=2)
    info = ModelInfo(role, spec_of(network), COLOURS, PREPROCESS, recipe, sha, "1" * 64, None, "0.1.0")
    save_model(model_dir.weights(role), network, info)
    for precision in precisions:
        save_colour_model(model_dir.onnx(role, precision), image_size=SIDE, resize=0)


def save_model_dir(folder: Path) -> ModelDir:
    """A teacher and a student."""
    model_dir = ModelDir(folder)
    for role in ("teacher", "student"):
        save_role(model_dir, role)  # type: ignore[arg-type]
    return model_dir


def make_dataset(count: int = 12) -> Dataset:
    """Plain pictures as arrays: class c has the channel c at 200."""
    labels = np.arange(count) % 3
    arrays = np.full((count, SIDE, SIDE, 3), 20, np.uint8)
    arrays[np.arange(count), :, :, labels] = 200
    images = Images.from_array("test", arrays, labels)
    return Dataset("colours", COLOURS, images, images, images, sha256="cd" * 32)
