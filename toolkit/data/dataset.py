"""A data set: three splits of labelled images, class names, and a fingerprint of the content. N images, C classes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal, Self

import numpy as np
from PIL import Image

from toolkit.console import printable
from toolkit.data.findings import Finding, say_briefly
from toolkit.data.hashes import hash_files
from toolkit.data.picture_file import open_image, opening_bytes

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")


@dataclass(frozen=True)
class Images:
    """Labelled images that are read one at a time.

    `names` are unique in a data set (paths relative to its root, with `/`, as `printable` shows them); `labels` is
    int64 (N,), 0..C−1; `read(i)` opens image i in the mode of its file, and raises one of preprocess.UNREADABLE for a
    damaged one. Several threads may call it. `opening_bytes(i)` is the memory that the opened image i takes already.
    Images of files are `root/files[i]`; `root` is None for others.
    """

    names: tuple[str, ...]
    labels: np.ndarray
    read: Callable[[int], Image.Image]
    opening_bytes: Callable[[int], int] = lambda _: 0
    root: Path | None = None
    files: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, indices: Sequence[int] | np.ndarray) -> Self:
        """The images at `indices`, in that order."""
        chosen = np.asarray(indices, dtype=np.int64)
        read, opening_bytes = self.read, self.opening_bytes
        return type(self)(
            names=tuple(self.names[i] for i in chosen),
            labels=self.labels[chosen],
            read=lambda i: read(int(chosen[i])),
            opening_bytes=lambda i: opening_bytes(int(chosen[i])),
            root=self.root,
            files=tuple(self.files[i] for i in chosen) if self.files else (),
        )

    @classmethod
    def from_files(cls, root: Path, names: Sequence[str], labels: Sequence[int]) -> Self:
        """Images from the files `root/name`."""
        chosen = tuple(names)
        shown = tuple(map(printable, chosen))
        return cls(
            shown,
            np.asarray(labels, dtype=np.int64),
            lambda i: open_image(root / chosen[i]),
            lambda i: opening_bytes(root / chosen[i]),
            root,
            chosen,
        )

    @classmethod
    def from_array(cls, prefix: str, pixels: np.ndarray, labels: np.ndarray) -> Self:
        """uint8 arrays, grey (N, H, W) or RGB (N, H, W, 3), named `prefix/00000` and so on."""
        names = tuple(f"{prefix}/{i:05d}" for i in range(len(pixels)))
        return cls(names, labels.astype(np.int64), lambda i: Image.fromarray(pixels[i]))


@dataclass(frozen=True)
class Dataset:
    """Named splits of labelled images.

    `sha256` covers names, labels and content, but not the folder or how the splits were drawn. `notes` say, one per
    line, how the toolkit divided the data (splits drawn). `layout` says in a few words how a folder
    was understood ("split folders train, val", "class folders", ...), and is empty for named sets. `findings` come from
    reading the folder; no image is decoded for them.
    """

    name: str
    classes: tuple[str, ...]
    train: Images
    valid: Images
    test: Images
    sha256: str
    notes: tuple[str, ...] = ()
    layout: str = ""
    findings: tuple[Finding, ...] = ()

    @property
    def remarks(self) -> list[str]:
        """What a training says of its data, one per line: the notes, and the findings in short."""
        return [*self.notes, *say_briefly(self.findings)]

    @property
    def splits(self) -> dict[Split, Images]:
        return {"train": self.train, "valid": self.valid, "test": self.test}


def spread(available: int, wanted: int) -> np.ndarray:
    """int64 indices of `wanted` images (all, if there are fewer), evenly over a split: its classes may be sorted."""
    return np.unique(np.linspace(0, available - 1, min(wanted, available)).round().astype(np.int64))


def fingerprint_files(root: Path, names: Sequence[str], labels: Sequence[int], classes: Sequence[str]) -> str:
    """SHA-256 over class names and every file's name, label and bytes, in the order of names.

    Hashes of files are remembered between calls (hashes.py); the result does not depend on that.
    """
    digests = hash_files(root, names)
    total = sha256("\n".join(classes).encode())
    for name, label, content in sorted(zip(names, labels, digests, strict=True)):
        total.update(f"\n{name}\t{label}\t".encode(errors="surrogateescape") + content)
    return total.hexdigest()


def fingerprint_arrays(*arrays: np.ndarray) -> str:
    """SHA-256 over the shapes, types and bytes of arrays."""
    total = sha256()
    for array in arrays:
        total.update(f"{array.dtype.str}{array.shape}".encode())
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()
