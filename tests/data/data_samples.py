"""Small data sets without files, which the tests of decoding share."""

from typing import NoReturn

import numpy as np
from conftest import make_image
from PIL import Image

from toolkit.data.dataset import Dataset, Images
from toolkit.data.preprocess import Preprocess

SIZES = [(31, 20), (20, 31), (48, 48), (47, 200), (201, 30), (7, 9), (9, 160), (90, 11), (64, 33), (1, 50), (403, 100)]
"""(width, height) in px: odd, square, tiny, and panoramas either way."""


def make_preprocess(image_size: int, resize: int = 0) -> Preprocess:
    return Preprocess(image_size, resize, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def make_scene(seed: int, size: tuple[int, int] = (120, 90)) -> Image.Image:
    """Blobs of all sizes and colours with fine noise: as rich as a photograph, and like no other."""
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    fine = draw.integers(-12, 13, (size[1], size[0], 3))
    return Image.fromarray((np.asarray(coarse) + fine).clip(0, 255).astype(np.uint8))


def make_dataset(sizes: list[tuple[int, int]], sha256: str = "a") -> Dataset:
    pictures = [make_image(i, seed=i, size=size) for i, size in enumerate(sizes)]
    images = Images(
        tuple(f"{i}.png" for i in range(len(sizes))), np.arange(len(sizes), dtype=np.int64) % 2, lambda i: pictures[i]
    )
    return Dataset("made", ("a", "b"), images, images, images, sha256)


def forbid_reading(dataset: Dataset) -> Dataset:
    def read(_: int) -> NoReturn:
        raise AssertionError("decoded again")

    images = Images(dataset.train.names, dataset.train.labels, read)
    return Dataset(dataset.name, dataset.classes, images, images, images, dataset.sha256)
