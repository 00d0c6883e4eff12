"""The idx format of MNIST-like sets: a big-endian header (magic number, then the length of each axis) and raw bytes."""

import gzip
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from toolkit.errors import DataError, one_line

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
"""The four files of a set, each with or without `.gz`."""

_UNSIGNED_BYTES = 0x08


def find_idx_files(folder: Path) -> list[Path] | None:
    """The four files in `folder` in the order of FILES, gzipped or raw; None if one is missing."""
    paths = []
    for name in FILES:
        there = [path for path in (folder / f"{name}.gz", folder / name) if path.is_file()]
        if not there:
            return None
        paths.append(there[0])
    return paths


def read_idx_files(paths: list[Path], num_classes: int) -> list[np.ndarray]:
    """[train images (N, H, W), train labels (N,), test images, test labels], uint8. Raises DataError."""
    with ThreadPoolExecutor(len(paths)) as pool:
        arrays = list(pool.map(read_idx, paths, (3, 1, 3, 1)))
    for images, labels, path in ((arrays[0], arrays[1], paths[1]), (arrays[2], arrays[3], paths[3])):
        if len(images) != len(labels):
            raise _damaged(path, f"{len(labels)} labels for {len(images)} images")
        if labels.max() >= num_classes:
            raise _damaged(path, f"label {labels.max()}, but there are {num_classes} classes")
    return arrays


def read_idx(path: Path, axes: int) -> np.ndarray:
    """One idx file of unsigned bytes with `axes` axes, gzipped or raw. Raises DataError if it is damaged."""
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(path, one_line(error)) from None
    except OSError as error:
        raise _damaged(path, str(error.strerror)) from None
    header_bytes = 4 + 4 * axes
    if len(content) < header_bytes:
        raise _damaged(path, f"{len(content)} bytes are too few for a header")
    magic, *shape = struct.unpack_from(f">{1 + axes}I", content)
    if magic != (_UNSIGNED_BYTES << 8) + axes:
        raise _damaged(path, f"magic number {magic:#010x} instead of {(_UNSIGNED_BYTES << 8) + axes:#010x}")
    expected = int(np.prod(shape, dtype=object))
    if len(content) - header_bytes != expected or expected == 0:
        raise _damaged(path, f"{len(content) - header_bytes} bytes of data, but its header announces {expected}")
    return np.frombuffer(content, dtype=np.uint8, offset=header_bytes).reshape(shape)


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(f"{path} cannot be used: {reason}", "put a whole copy there, or delete it to fetch it again")
