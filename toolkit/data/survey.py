"""A look at every picture of a data set, once: its size, its pixels' hash, its thumbnail, and what is special about it.

N images of all splits together, one split after another.
"""

import time
from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial
from typing import Self

import numpy as np
from PIL import Image

from toolkit.console import duration, progress, say
from toolkit.data.attempts import attempt
from toolkit.data.dataset import SPLITS, Dataset, Images, Split, spread
from toolkit.data.near_copies import SIDE, THUMBNAIL_BYTES, make_thumbnail
from toolkit.data.parallel import run_in_blocks
from toolkit.data.preprocess import DIGEST_BYTES, hash_pixels, preview, upright_bands, upright_size
from toolkit.data.reading import find_kinds
from toolkit.machine.limits import available_cores

TIMED_IMAGES = 16
LONG_S = 20.0
"""s; if looking at all images will take longer than this, it is said before."""
BLANK = "blank"
"""A kind beside those of reading.KINDS: every pixel has the same colour."""
NEARLY_BLACK = "nearly black"
"""Another one: more than 8 bits per channel, and none of the upper 8 rises to DARKEST_WHITE."""
DARKEST_WHITE = 32


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
    """one of reading.KINDS, BLANK or NEARLY_BLACK → its images"""

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
        return attempt(images, index, partial(self._fill, first + index, images.names[index]))

    def _fill(self, i: int, name: str, image: Image.Image) -> set[str]:
        kinds = find_kinds(image, name)
        digest, thumbnail = hash_pixels(image), make_thumbnail(preview(image))
        if _is_blank(image, thumbnail):
            kinds.add(BLANK)
        elif "16 bits" in kinds and _brightest(image) < DARKEST_WHITE:
            kinds.add(NEARLY_BLACK)
        self.readable[i] = True
        self.sizes[i] = upright_size(image)
        self.digests[i] = np.frombuffer(digest, dtype=np.uint8)
        self.thumbnails[i] = thumbnail
        return kinds


def _is_blank(image: Image.Image, thumbnail: np.ndarray) -> bool:
    brightness = thumbnail[: SIDE**2]
    if brightness.min() != brightness.max():
        return False
    colours = [band.getcolors(1) for band in upright_bands(image)]
    return None not in colours and len({colour[0][1] for colour in colours if colour}) == 1


def _brightest(image: Image.Image) -> int:
    """The highest value of any channel, 0 to 255."""
    return max(int(np.asarray(band).max()) for band in upright_bands(image))


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
