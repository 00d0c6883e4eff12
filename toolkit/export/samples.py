"""The images of a proof: validation images, or synthetic ones if there are none.

N images, B of a batch, S px their side.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toolkit.data.dataset import spread
from toolkit.data.pixels import Pixels
from toolkit.errors import ArtifactError, DataError

BATCH_PIXELS = 32 * 256 * 256
LARGEST_BATCH = 64
SYNTHETIC_IMAGES = 32


@dataclass(frozen=True)
class Samples:
    """Images to compare on: `read` turns indices (B,) into uint8 (B, S, S, 3); real images have labels (N,)."""

    names: tuple[str, ...]
    labels: NDArray[np.int64] | None
    read: Callable[[NDArray[np.int64]], NDArray[np.uint8]]

    def __len__(self) -> int:
        return len(self.names)


def choose_samples(pixels: Pixels | None, image_size: int, num_classes: int, limit: int) -> Samples:
    """At most `limit` validation images, spread evenly over the split; without pixels, seeded synthetic ones.

    Raises ArtifactError if the pixels were prepared for another size, DataError if they hold more classes.
    """
    if pixels is None:
        images = draw_images(min(limit, SYNTHETIC_IMAGES), image_size)
        return Samples(tuple(f"synthetic image {i}" for i in range(len(images))), None, lambda chosen: images[chosen])
    prepared = pixels.preprocess.image_size
    if prepared != image_size:
        raise ArtifactError(
            f"the validation images are prepared at {prepared} px, but the weights need {image_size} px",
            f"use the recipe of those weights, or data.image_size={image_size}",
        )
    if int(pixels.labels.max()) >= num_classes:
        raise DataError(
            f"the validation images have {int(pixels.labels.max()) + 1} classes, the weights {num_classes}",
            "give the data those weights were trained on",
        )
    places = spread(len(pixels), limit)
    return Samples(
        tuple(pixels.names[i] for i in places), pixels.labels[places], lambda chosen: pixels.centre(places[chosen])
    )


def draw_images(count: int, side: int, seed: int = 0) -> NDArray[np.uint8]:
    """uint8 (count, side, side, 3): patches of random colours under noise, so they differ coarsely and finely."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (count, 4, 4, 3))
    places = np.arange(side) * 4 // side
    noise = generator.integers(-40, 41, (count, side, side, 3))
    images: NDArray[np.uint8] = np.clip(coarse[:, places[:, None], places] + noise, 0, 255).astype(np.uint8)
    return images


def read_batches(
    samples: Samples, chosen: NDArray[np.int64] | None = None, batch: int = 0
) -> Iterator[NDArray[np.uint8]]:
    """The images at `chosen` (default: all) in batches of `batch`, by default as large as suits their size."""
    chosen = np.arange(len(samples)) if chosen is None else chosen
    batch = batch or large_batch(samples)
    for start in range(0, len(chosen), batch):
        yield samples.read(chosen[start : start + batch])


def large_batch(samples: Samples) -> int:
    side = int(samples.read(np.zeros(1, dtype=np.int64)).shape[1])
    return max(1, min(LARGEST_BATCH, BATCH_PIXELS // side**2))
