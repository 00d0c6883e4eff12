"""Decode a split once: every image's RGB pixels into a single uint8 memory map in the cache, and an index beside it.

Images are kept resized but uncropped, so that training can crop each view. There is one bound: if the longer side
exceeds twice the shorter one (and the network's square), only the middle part of the longer side is kept, and more is
never made (Preprocess.keep_middle). The centre crop lies inside that part and is the same to the pixel. Memory has a
bound too: large pictures are decoded a few at a time, and few results wait to be written. H W pixels.
"""

import contextlib
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from toolkit.console import progress, say
from toolkit.data.attempts import attempt
from toolkit.data.cache import REMEDY
from toolkit.data.dataset import Images, spread
from toolkit.data.disk import Room, remove_leftovers
from toolkit.data.parallel import run_in_blocks
from toolkit.data.preprocess import NO_MEMORY, UNREADABLE, Preprocess, middle_box
from toolkit.errors import ArtifactError, DataError, one_line
from toolkit.files import write_atomically
from toolkit.machine.devices import large_blocks_go_back

LAYOUT_VERSION = 3
"""Part of the cache's key; it rises whenever the meaning of the cached pixels changes, or which files can be read."""

SAMPLED_IMAGES = 64
"""Images whose headers are read to estimate a map's size."""


@dataclass(frozen=True)
class Index:
    """The file beside the pixels: which images of the split they are (`kept`), their sizes, and the unreadable images.

    `kept`, `heights` and `widths` (px) are int64; `unreadable` names and `reasons` are text.
    """

    kept: np.ndarray
    heights: np.ndarray
    widths: np.ndarray
    unreadable: np.ndarray
    reasons: np.ndarray

    @property
    def size_bytes(self) -> int:
        return int((self.heights * self.widths).sum()) * 3


def decode_split(images: Images, split: str, path: Path, preprocess: Preprocess, workers: int) -> Index:
    """Write the pixels to `path` and their index beside it; both appear whole, so two processes may do it at once.

    Raises DataError if the pixels would not fit on the disk or into the user's limit, or cannot be written.
    """
    remove_leftovers(path.parent, (path.suffix, _index_path(path).suffix))
    needed_bytes = estimate_bytes(images, preprocess)
    room = Room(path.parent, f"{len(images):,} {split} images", needed_bytes, preprocess.resize)
    room.require()
    try:
        with write_atomically(path) as temporary:
            with large_blocks_go_back(), progress(f"decode {split}", len(images)) as advance:
                work = partial(_decode, images, preprocess)
                blocks = run_in_blocks(work, len(images), workers, needed_bytes // max(1, len(images)))
                index = _write_pixels(temporary, images.names, blocks, room, advance)
            # The small file gets its name first: an index without pixels costs nothing, pixels without an index GBs.
            with write_atomically(_index_path(path)) as beside, beside.open("wb") as file:
                np.savez(file, **vars(index))
    except ArtifactError as error:
        raise DataError(
            error.problem.replace("cannot write", "cannot keep decoded images in the cache,", 1), REMEDY
        ) from None
    return index


def read_index(path: Path) -> Index | None:
    """The index of an earlier call; None if there is none, or if it does not fit the pixels beside it."""
    beside = _index_path(path)
    if not beside.is_file() or not path.is_file():
        return None
    try:
        with beside.open("rb") as file, np.load(file) as stored:
            index = Index(**{key: stored[key] for key in stored.files})
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile) as error:
        say(f"the cached {beside.name} is damaged ({one_line(error)}); decoding again")
        return None
    if index.size_bytes != path.stat().st_size:
        say(f"the cached {path.name} is incomplete; decoding again")
        return None
    if NO_MEMORY in index.reasons:
        say(f"the cached {path.name} lacks images that did not fit into memory; decoding again")
        return None
    return index


def estimate_bytes(images: Images, preprocess: Preprocess) -> int:
    """Bytes that the map of `images` will take: exact for one size, else two standard errors above the expectation.

    Only headers are read, of SAMPLED_IMAGES images spread evenly; unreadable ones are skipped.
    """
    sizes = []
    with large_blocks_go_back():
        for i in spread(len(images), SAMPLED_IMAGES):
            with contextlib.suppress(*UNREADABLE):
                sizes.append(_stored_bytes(*images.read(int(i)).size, preprocess))
    if len(sizes) < 2:
        return sum(sizes) * len(images)
    unseen = 1 - len(sizes) / len(images)  # nothing is uncertain if all images were sampled
    standard_error = np.std(sizes, ddof=1) * np.sqrt(unseen / len(sizes))
    return int(len(images) * (np.mean(sizes) + 2 * standard_error))


def _decode(images: Images, preprocess: Preprocess, i: int) -> np.ndarray | str:
    """Image i as it is kept, uint8 (H, W, 3), or why it cannot be read."""
    return attempt(images, i, preprocess.keep_middle)


def _write_pixels(
    path: Path,
    names: Sequence[str],
    blocks: Iterable[list[np.ndarray | str]],
    room: Room,
    advance: Callable[[int], None],
) -> Index:
    """Write the images of `blocks`, named `names`, one after another; `advance` gets the number in each block."""
    sizes: list[tuple[int, int, int]] = []
    failed: list[tuple[str, str]] = []
    i = written_bytes = 0
    with path.open("wb") as file:
        for block in blocks:
            advance(len(block))
            while block:  # they may be large: each goes as soon as it is written
                result = block.pop(0)
                if isinstance(result, str):
                    failed.append((names[i], result))
                else:
                    sizes.append((i, *result.shape[:2]))
                    file.write(np.ascontiguousarray(result).data)
                    written_bytes += result.nbytes
                    room.watch(written_bytes)
                del result
                i += 1
    kept, heights, widths = np.array(sizes, dtype=np.int64).reshape(-1, 3).T
    unreadable, reasons = np.array(failed, dtype=str).reshape(-1, 2).T
    return Index(kept, heights, widths, unreadable, reasons)


def _stored_bytes(width: int, height: int, preprocess: Preprocess) -> int:
    """Bytes of an image of this size (px, upright or not) that are kept."""
    short, long = sorted((width, height))
    if preprocess.resize:
        short, long = preprocess.resize, long * preprocess.resize // short
    left, top, right, bottom = middle_box(long, short, preprocess.least_long_side)
    return (right - left) * (bottom - top) * 3


def _index_path(path: Path) -> Path:
    return path.with_suffix(".npz")
