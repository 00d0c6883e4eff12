"""A split's decoded pixels, mapped from the cache: whole images for training, centre crops for evaluation.

N images of the split, B of a batch, H W pixels, S side of the network's square. Only the
requested batch is copied into memory. The system pages the map in and out, so a split may be larger than memory.
decode.py writes the map.
"""

import hashlib
import mmap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from toolkit.console import say
from toolkit.data.cache import cache_folder
from toolkit.data.dataset import Dataset, Images, Split
from toolkit.data.decode import LAYOUT_VERSION, Index, decode_split, estimate_bytes, read_index
from toolkit.data.preprocess import Preprocess, crop_start
from toolkit.errors import DataError

if TYPE_CHECKING:
    from toolkit.data.resident import ResidentPixels

UNLABELLED = "unlabelled"
"""The name of unlabelled images where splits have theirs."""

SHOWN_UNREADABLE = 20
"""Unreadable images that are named one by one; `toolkit data` lists all."""


@dataclass(frozen=True)
class Pixels:
    """A split's decoded images.

    `names`, `labels` int64 (N,), `heights` and `widths` int64 (N,) in px; image i lies in `data`, uint8, from
    `starts[i]` on, as (H, W, 3).
    """

    names: tuple[str, ...]
    labels: np.ndarray
    heights: np.ndarray
    widths: np.ndarray
    data: np.ndarray
    starts: np.ndarray
    preprocess: Preprocess

    def __len__(self) -> int:
        return len(self.names)

    def centre(self, indices: np.ndarray) -> np.ndarray:
        """Images for evaluation: uint8 (B, S, S, 3), exactly as `preprocess` makes them from the files."""
        indices = np.asarray(indices, dtype=np.int64)
        side = self.preprocess.image_size
        if (same := self._same_size) is None:
            crops = np.empty((len(indices), side, side, 3), dtype=np.uint8)
            for place, index in enumerate(indices):
                crops[place] = self.preprocess.centre_crop(self.whole(index))
            return crops
        top, left = (int(crop_start(length, side)) for length in same.shape[1:3])
        part = same[indices, max(top, 0) : top + side, max(left, 0) : left + side]
        if part.shape[1:3] == (side, side):
            return part
        crops = np.zeros((len(indices), side, side, 3), dtype=np.uint8)
        crops[:, max(-top, 0) :, max(-left, 0) :][:, : part.shape[1], : part.shape[2]] = part
        return crops

    def whole(self, index: int) -> np.ndarray:
        """One image, resized and not cropped: uint8 (H, W, 3). It stays in the map: only what is read takes memory."""
        height, width, start = self.heights[index], self.widths[index], self.starts[index]
        return self.data[start : start + height * width * 3].reshape(height, width, 3)

    def subset(self, indices: np.ndarray) -> "Pixels":
        """The images at `indices`, in that order; the map is shared."""
        return replace(
            self,
            names=tuple(self.names[index] for index in indices),
            labels=self.labels[indices],
            heights=self.heights[indices],
            widths=self.widths[indices],
            starts=self.starts[indices],
        )

    @cached_property
    def sizes(self) -> np.ndarray:
        """int64 (N, 2), each image's (height, width) in px."""
        return np.stack((self.heights, self.widths), axis=1)

    @cached_property
    def residents(self) -> "dict[str, ResidentPixels | None]":
        """The copies on GPUs, by device, None if there is no room. resident.py makes them; they are freed with this."""
        return {}

    @cached_property
    def _same_size(self) -> np.ndarray | None:
        """All images as (N, H, W, 3) if they have the same size, else None."""
        height, width = int(self.heights[0]), int(self.widths[0])
        is_whole = self.data.size == len(self) * height * width * 3
        if is_whole and (self.heights == height).all() and (self.widths == width).all():
            return self.data.reshape(-1, height, width, 3)
        return None


def load_pixels(
    dataset: Dataset, split: Split, preprocess: Preprocess, *, workers: int = 0, strict: bool = False
) -> Pixels:
    """Decode a split, or map the pixels that an earlier call decoded from the same content.

    `workers` threads; 0: the cores that this process may use. Unreadable images are named on stderr and left out. With
    `strict` they raise DataError. So do a class without any readable image, and a split that is too large for the
    cache's disk or the user's limit (disk.py).
    """
    images, path = dataset.splits[split], _map_of(dataset, split, preprocess)
    index = read_index(path)
    if index is None:
        index = decode_split(images, split, path, preprocess, workers)
    _report_unreadable(images, split, dataset.classes, index, strict=strict)
    return _map_pixels(images, index, path, preprocess)


def load_unlabelled_pixels(
    images: Images, sha256: str, preprocess: Preprocess, *, workers: int = 0, strict: bool = False
) -> Pixels:
    """`load_pixels` for unlabelled images, which `sha256` identifies together with their names."""
    path = _unlabelled_map_of(images, sha256, preprocess)
    index = read_index(path)
    if index is None:
        index = decode_split(images, UNLABELLED, path, preprocess, workers)
    _report_unreadable(images, UNLABELLED, (), index, strict=strict)
    return _map_pixels(images, index, path, preprocess)


def _map_pixels(images: Images, index: Index, path: Path, preprocess: Preprocess) -> Pixels:
    sizes = index.heights * index.widths * 3
    return Pixels(
        names=tuple(images.names[i] for i in index.kept),
        labels=images.labels[index.kept],
        heights=index.heights,
        widths=index.widths,
        data=_map_file(path),
        starts=np.concatenate(([0], np.cumsum(sizes)[:-1])).astype(np.int64),
        preprocess=preprocess,
    )


def bytes_to_decode(dataset: Dataset, split: Split, preprocess: Preprocess) -> int:
    """Estimated bytes that `load_pixels` will write; 0 if it finds them in the cache."""
    if read_index(_map_of(dataset, split, preprocess)) is not None:
        return 0
    return estimate_bytes(dataset.splits[split], preprocess)


def unlabelled_bytes_to_decode(images: Images, sha256: str, preprocess: Preprocess) -> int:
    """The same for `load_unlabelled_pixels`."""
    found = read_index(_unlabelled_map_of(images, sha256, preprocess)) is not None
    return 0 if found else estimate_bytes(images, preprocess)


def _map_of(dataset: Dataset, split: Split, preprocess: Preprocess) -> Path:
    """The path of the split's pixels, existing or not."""
    return cache_folder("pixels", f"{split}-{_key(dataset.splits[split], dataset.sha256, preprocess)}.rgb")


def _unlabelled_map_of(images: Images, sha256: str, preprocess: Preprocess) -> Path:
    return cache_folder("pixels", f"{UNLABELLED}-{_key(images, sha256, preprocess)}.rgb")


def _key(images: Images, sha256: str, preprocess: Preprocess) -> str:
    """The key of the pixels: the content, the images that are decoded of it, and the size."""
    sizes = f"{preprocess.resize} {preprocess.least_long_side}"
    key = hashlib.sha256(f"{LAYOUT_VERSION} {sha256} {sizes}\n".encode())
    key.update("\n".join(images.names).encode(errors="surrogateescape"))
    return key.hexdigest()[:32]


def _map_file(path: Path) -> np.ndarray:
    with path.open("rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype=np.uint8)


def _report_unreadable(images: Images, split: str, classes: Sequence[str], index: Index, *, strict: bool) -> None:
    count, total = len(index.unreadable), len(images)
    if count == 0:
        return
    first = f"{index.unreadable[0]} ({index.reasons[0]})"
    look = "toolkit data lists them all"
    if strict:
        raise DataError(
            f"{count} of {total} {split} images cannot be read, the first is {first}", f"repair or remove them; {look}"
        )
    labels = images.labels
    lost = sorted(set(labels.tolist()) - set(labels[index.kept].tolist()))
    if lost:
        of_class = f" of class {classes[lost[0]]!r}" if classes else ""
        raise DataError(
            f"none of the {split} images{of_class} can be read, one is {first}",
            f"repair them; {look}",
        )
    for name, reason in list(zip(index.unreadable, index.reasons, strict=True))[:SHOWN_UNREADABLE]:
        say(f"left out of {split}: {name} ({reason})")
    if count > SHOWN_UNREADABLE:
        say(f"left out of {split}: {count - SHOWN_UNREADABLE} more; {look}")
