"""Weights files, validation images and exports that the tests of this folder share."""

from pathlib import Path

import numpy as np
from small_networks import CLASSES, MEAN, SIDE, STD, settled_network

from toolkit.data.pixels import Pixels
from toolkit.data.preprocess import Preprocess
from toolkit.modeldir import Role
from toolkit.networks.registry import spec_of
from toolkit.networks.weights import ModelInfo, save_model
from toolkit.recipe import Recipe

PREPROCESS = Preprocess(image_size=SIDE, resize=48, mean=MEAN, std=STD)


def save_weights(path: Path, architecture: str, role: Role = "student", seed: int = 0) -> Path:
    network = settled_network(architecture, seed)
    info = ModelInfo(
        role=role,
        network=spec_of(network),
        classes=CLASSES,
        preprocess=PREPROCESS,
        recipe=Recipe().model_dump(mode="json"),
        recipe_sha256="a" * 64,
        dataset_sha256="b" * 64,
        teacher_sha256=None if role == "teacher" else "c" * 64,
        toolkit_version="0.0",
    )
    save_model(path, network, info)
    return path


def make_pixels(labels: np.ndarray, preprocess: Preprocess = PREPROCESS, height: int = 48, width: int = 56) -> Pixels:
    """A validation split of seeded pictures, all of one size, in colours and patterns of their own."""
    count = len(labels)
    random = np.random.default_rng(7)
    data = (
        random.integers(0, 256, (count, height // 8, width // 8, 3), dtype=np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    )
    return Pixels(
        names=tuple(f"valid/{i}.jpg" for i in range(count)),
        labels=labels.astype(np.int64),
        heights=np.full(count, height, dtype=np.int64),
        widths=np.full(count, width, dtype=np.int64),
        data=data.reshape(-1),
        starts=np.arange(count, dtype=np.int64) * height * width * 3,
        preprocess=preprocess,
    )
