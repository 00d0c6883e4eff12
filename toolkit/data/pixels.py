"""One split decoded once: every image's RGB pixels in a single uint8 memory map, kept in the cache.

N images of the split, B of a batch, H W pixels, S side of the network's square. Images are kept resized but uncropped,
so that training can crop them anew. One bound: where the longer side exceeds twice the shorter one (and the network's
square), only the middle part of the longer side is kept, so that a panorama cannot widen a whole batch's canvas; the
centre crop lies inside that part and is the same to the pixel.
"""

import hashlib
import mmap
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from toolkit.console import progress, say
from toolkit.data.cache import REMEDY, cache_folder
from toolkit.data.dataset import Dataset, Images, Split
from toolkit.data.parallel import run_in_blocks
from toolkit.data.preprocess import UNREADABLE, Preprocess, crop_start, decode_rgb, why_unreadable
from toolkit.errors import ArtifactError, DataError
from toolkit.modeldir import write_atomically

LAYOUT_VERSION = 1
"""Goes into the cache's key; raised whenever the meaning of the cached pixels changes."""

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

    def canvas(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Whole images for training: uint8 (B, Hmax, Wmax, 3) and int64 (B, 2), each image's (height, width).

        Images lie top left on black.
        """
        indices = np.asarray(indices, dtype=np.int64)
        sizes = np.stack((self.heights[indices], self.widths[indices]), axis=1)
        if (same := self._same_size) is not None:
            return same[indices], sizes
        height, width = sizes.max(axis=0, initial=0)
        canvas = np.zeros((len(indices), height, width, 3), dtype=np.uint8)
        for place, (index, (h, w)) in enumerate(zip(indices, sizes, strict=True)):
            canvas[place, :h, :w] = self._image(index)
        return canvas, sizes

    def centre(self, indices: np.ndarray) -> np.ndarray:
        """Evaluation's images: uint8 (B, S, S, 3), exactly what `preprocess` makes of the same files."""
        indices = np.asarray(indices, dtype=np.int64)
        side = self.preprocess.image_size
        if (same := self._same_size) is None:
            crops = np.empty((len(indices), side, side, 3), dtype=np.uint8)
            for place, index in enumerate(indices):
                crops[place] = self.preprocess.centre_crop(self._image(index))
            return crops
        top, left = (int(crop_start(length, side)) for length in same.shape[1:3])
        part = same[indices, max(top, 0) : top + side, max(left, 0) : left + side]
        if part.shape[1:3] == (side, side):
            return part
        crops = np.zeros((len(indices), side, side, 3), dtype=np.uint8)
        crops[:, max(-top, 0) :, max(-left, 0) :][:, : part.shape[1], : part.shape[2]] = part
        return crops

    def _image(self, index: int) -> np.ndarray:
        height, width, start = self.heights[index], self.widths[index], self.starts[index]
        return self.data[start : start + height * width * 3].reshape(height, width, 3)

    @cached_property
    def _same_size(self) -> np.ndarray | None:
        """All images as (N, H, W, 3), where they share a size."""
        height, width = int(self.heights[0]), int(self.widths[0])
        if (self.heights == height).all() and (self.widths == width).all():
            return self.data.reshape(-1, height, width, 3)
        return None


@dataclass(frozen=True)
class _Index:
    """Beside the pixels: which images of the split they are (`kept`), their sizes, and what could not be read."""

    kept: np.ndarray
    heights: np.ndarray
    widths: np.ndarray
    unreadable: np.ndarray
    reasons: np.ndarray

    @property
    def size_bytes(self) -> int:
        return int((self.heights * self.widths).sum()) * 3


def load_pixels(
    dataset: Dataset, split: Split, preprocess: Preprocess, *, workers: int = 0, strict: bool = False
) -> Pixels:
    """Decode a split, or map what an earlier call decoded from the same content.

    `workers` threads, 0 takes the cores this process may use. Images that cannot be read are named on stderr and left
    out; with `strict` they are a DataError, and so is a class of which none can be read.
    """
    images = dataset.splits[split]
    least_long_side = preprocess.image_size if preprocess.resize * 2 < preprocess.image_size else 0
    if preprocess.resize == 0:
        least_long_side = preprocess.image_size
    path = cache_folder("pixels", f"{_key(dataset, split, preprocess.resize, least_long_side)}.rgb")
    index = _read_index(path)
    if index is None:
        index = _decode_split(images, split, path, preprocess, least_long_side, workers)
    _report_unreadable(dataset, split, index, strict)
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


def keep_middle(pixels: np.ndarray, least_long_side: int) -> np.ndarray:
    """(H, W, 3) with the longer side bounded by twice the shorter one, or `least_long_side` px where that is more.

    A multiple of 4 px goes, half on either side: then a centred crop begins at the same pixel, rounding included.
    """
    height, width = pixels.shape[:2]
    limit = max(2 * min(height, width), least_long_side)
    margin = max(max(height, width) - limit, 0) // 4 * 2
    if height > width:
        return pixels[margin : height - margin]
    return pixels[:, margin : width - margin]


def _key(dataset: Dataset, split: Split, resize: int, least_long_side: int) -> str:
    """What the pixels depend on: the content, which images of it make up the split, and the size."""
    images = dataset.splits[split]
    key = hashlib.sha256(f"{LAYOUT_VERSION} {dataset.sha256} {resize} {least_long_side}\n".encode())
    key.update("\n".join(images.names).encode(errors="surrogateescape"))
    return f"{split}-{key.hexdigest()[:32]}"


def _decode_split(
    images: Images, split: Split, path: Path, preprocess: Preprocess, least_long_side: int, workers: int
) -> _Index:
    """Write the pixels, then their index; both appear whole or not at all, so two processes may do it at once."""

    def decode(i: int) -> np.ndarray | str:
        try:
            return keep_middle(preprocess.resize_shorter(decode_rgb(images.read(i))), least_long_side)
        except UNREADABLE as error:
            return why_unreadable(error)

    sizes, failed = [], []
    try:
        with (
            write_atomically(path) as temporary,
            temporary.open("wb") as file,
            progress(f"decode {split}", len(images)) as advance,
        ):
            i = 0
            for block in run_in_blocks(decode, len(images), workers):
                for result in block:
                    if isinstance(result, str):
                        failed.append((i, result))
                    else:
                        sizes.append((i, *result.shape[:2]))
                        file.write(np.ascontiguousarray(result).data)
                    i += 1
                advance(len(block))
        kept, heights, widths = np.array(sizes, dtype=np.int64).reshape(-1, 3).T
        names, reasons = (
            np.array([images.names[i] for i, _ in failed], dtype=str),
            np.array([why for _, why in failed], dtype=str),
        )
        index = _Index(kept, heights, widths, names, reasons)
        with write_atomically(_index_path(path)) as temporary, temporary.open("wb") as file:
            np.savez(file, **vars(index))
    except ArtifactError as error:
        raise DataError(
            error.problem.replace("cannot write", "cannot keep decoded images in the cache,", 1), REMEDY
        ) from None
    return index


def _read_index(path: Path) -> _Index | None:
    """What an earlier call wrote; None where there is none, or where it does not fit the pixels beside it."""
    beside = _index_path(path)
    if not beside.is_file() or not path.is_file():
        return None
    try:
        with beside.open("rb") as file, np.load(file) as stored:
            index = _Index(**{key: stored[key] for key in stored.files})
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile) as error:
        say(f"the cached {beside.name} is damaged ({error}); decoding again")
        return None
    if index.size_bytes == path.stat().st_size:
        return index
    say(f"the cached {path.name} is not whole; decoding again")
    return None


def _index_path(path: Path) -> Path:
    return path.with_suffix(".npz")


def _map_file(path: Path) -> np.ndarray:
    with path.open("rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype=np.uint8)


def _report_unreadable(dataset: Dataset, split: Split, index: _Index, strict: bool) -> None:
    count, total = len(index.unreadable), len(dataset.splits[split])
    if count == 0:
        return
    first = f"{index.unreadable[0]} ({index.reasons[0]})"
    look = "toolkit data lists them all"
    if strict:
        raise DataError(
            f"{count} of {total} {split} images cannot be read, the first is {first}", f"mend or remove them; {look}"
        )
    labels = dataset.splits[split].labels
    lost = sorted(set(labels.tolist()) - set(labels[index.kept].tolist()))
    if lost:
        raise DataError(
            f"none of the {split} images of class {dataset.classes[lost[0]]!r} can be read, one is {first}",
            f"mend them; {look}",
        )
    for name, reason in list(zip(index.unreadable, index.reasons, strict=True))[:SHOWN_UNREADABLE]:
        say(f"left out of {split}: {name} ({reason})")
    if count > SHOWN_UNREADABLE:
        say(f"left out of {split}: {count - SHOWN_UNREADABLE} more; {look}")
