"""A look at every picture of a data set, once: its size, its pixels' hash, its thumbnail, and what is special about it.

N images of all splits together, one split after another.
"""

import hashlib
import time
from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial
from typing import Self

import numpy as np
from PIL import Image

from toolkit.console import duration, progress, say
from toolkit.data.dataset import SPLITS, Dataset, Images, Split, spread
from toolkit.data.near_copies import SIDE, THUMBNAIL_BYTES, make_thumbnail
from toolkit.data.parallel import run_in_blocks
from toolkit.data.preprocess import UNREADABLE, why_unreadable
from toolkit.data.reading import decode_with_kinds
from toolkit.machine.limits import available_cores

DIGEST_BYTES = 16
TIMED_IMAGES = 16
LONG_S = 20.0
"""s; if looking at all images will take longer than this, it is said before."""
BLANK = "blank"
"""A kind beside those of reading.KINDS: every pixel has the same colour."""

HASHED_PIXELS = 2**20
"""Pixels that are hashed in one go."""


@dataclass(frozen=True)
class Survey:
    """What was seen. Arrays have one row for each of N images, with zeros for those that cannot be read."""

    names: tuple[str, ...]
    splits: np.ndarray
    """int64 (N,), indices of SPLITS"""
    labels: np.ndarray
    """int64 (N,)"""
    readable: np.ndarray
    """bool (N,)"""
    sizes: np.ndarray
    """int64 (N, 2): width and height in px, upright"""
    digests: np.ndarray
    """uint8 (N, DIGEST_BYTES): equal for images that are equal in every decoded pixel"""
    thumbnails: np.ndarray
    """uint8 (N, THUMBNAIL_BYTES)"""
    reasons: dict[int, str] = field(default_factory=dict)
    """image that cannot be read → why"""
    kinds: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    """one of reading.KINDS, or BLANK → its images"""

    @classmethod
    def begin(cls, dataset: Dataset) -> Self:
        parts = [dataset.splits[split] for split in SPLITS]
        count = sum(map(len, parts))
        return cls(
            names=tuple(name for images in parts for name in images.names),
            splits=np.repeat(np.arange(len(SPLITS)), [len(images) for images in parts]),
            labels=np.concatenate([images.labels for images in parts]),
            readable=np.zeros(count, dtype=bool),
            sizes=np.zeros((count, 2), dtype=np.int64),
            digests=np.zeros((count, DIGEST_BYTES), dtype=np.uint8),
            thumbnails=np.zeros((count, THUMBNAIL_BYTES), dtype=np.uint8),
        )

    def split_of(self, i: int) -> Split:
        return SPLITS[int(self.splits[i])]

    def note(self, i: int, found: set[str] | str) -> None:
        """Keep what look_at returned for image i."""
        if isinstance(found, str):
            self.reasons[i] = found
            return
        for kind in found:
            self.kinds[kind].append(i)

    def look_at(self, first: int, images: Images, index: int) -> set[str] | str:
        """Fill row `first` + `index` from image `index` of `images`; returns its kinds, or why it cannot be read."""
        try:
            picture, kinds = decode_with_kinds(images.read(index), images.names[index])
        except UNREADABLE as error:
            return why_unreadable(error)
        i = first + index
        self.readable[i] = True
        self.sizes[i] = picture.size
        self.digests[i] = _hash_pixels(picture)
        self.thumbnails[i] = make_thumbnail(picture)
        return kinds | {BLANK} if self._is_blank(i, picture) else kinds

    def _is_blank(self, i: int, picture: Image.Image) -> bool:
        brightness = self.thumbnails[i, : SIDE**2]
        return bool(brightness.min() == brightness.max()) and picture.getcolors(1) is not None


def survey(dataset: Dataset, workers: int = 0) -> Survey:
    """Decode every image of every split; `workers` threads; 0: the cores that this process may use."""
    seen = Survey.begin(dataset)
    workers = workers or available_cores()
    _say_duration(seen, dataset, workers)
    i = 0
    for split, images in dataset.splits.items():
        with progress(f"check {split}", len(images)) as advance:
            for block in run_in_blocks(partial(seen.look_at, i, images), len(images), workers):
                for found in block:
                    seen.note(i, found)
                    i += 1
                advance(len(block))
    return seen


def _say_duration(seen: Survey, dataset: Dataset, workers: int) -> None:
    """Say how long it will take, if it is long: from a few training images."""
    durations_s = []
    for index in spread(len(dataset.train), TIMED_IMAGES):
        start = time.perf_counter()
        seen.look_at(0, dataset.train, int(index))
        durations_s.append(time.perf_counter() - start)
    total = len(seen.names)
    expected_s = float(np.median(durations_s)) * total / workers
    if expected_s >= LONG_S:
        say(f"looking at {total:,} images takes about {duration(expected_s)}")


def _hash_pixels(picture: Image.Image) -> np.ndarray:
    """uint8 (DIGEST_BYTES,): of its size and its pixels, a part after another, so that it is not copied as a whole."""
    width, height = picture.size
    total = hashlib.blake2b(f"{width}×{height}".encode(), digest_size=DIGEST_BYTES)
    rows = max(HASHED_PIXELS // width, 1)
    for top in range(0, height, rows):
        total.update(picture.crop((0, top, width, min(top + rows, height))).tobytes())
    return np.frombuffer(total.digest(), dtype=np.uint8)
