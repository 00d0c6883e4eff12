"""The contents of a data set and its faults: counts, sizes, unreadable files, images that are in two splits."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from toolkit.console import out, progress
from toolkit.data.dataset import Dataset, Images, Split
from toolkit.data.parallel import DECODING, run_in_blocks
from toolkit.data.picture_file import decoding_bytes
from toolkit.data.preprocess import UNREADABLE, hash_pixels, upright_size, why_unreadable

SHOWN_LEAKS = 20
"""Leaks that the table names; --json lists all."""


@dataclass(frozen=True)
class UnreadableImage:
    """A file that is not an image, or a damaged image."""

    split: Split
    name: str
    reason: str


@dataclass(frozen=True)
class Leak:
    """One picture, equal in every decoded pixel, that is in more than one split: (split, name) of each copy."""

    copies: tuple[tuple[Split, str], ...]


@dataclass(frozen=True)
class ImageSizes:
    """Smallest, median and largest width and height of a split's readable images, upright, in px."""

    width_px: tuple[int, int, int]
    height_px: tuple[int, int, int]


@dataclass(frozen=True)
class DataReport:
    """The findings. `counts[split][label]` includes unreadable images; `repeats[split]` counts surplus copies."""

    name: str
    sha256: str
    classes: tuple[str, ...]
    notes: tuple[str, ...]
    counts: dict[Split, list[int]]
    sizes: dict[Split, ImageSizes]
    repeats: dict[Split, int]
    unreadable: tuple[UnreadableImage, ...]
    leaks: tuple[Leak, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "sha256": self.sha256,
            "classes": list(self.classes),
            "splits": {split: self._split_json(split) for split in self.counts},
            "unreadable": [vars(item) for item in self.unreadable],
            "in_two_splits": [[{"split": s, "name": name} for s, name in leak.copies] for leak in self.leaks],
            "notes": list(self.notes),
        }

    def print_table(self) -> None:
        """Classes and sizes as tables, then the faults, one per line, on stdout."""
        title = f"{self.name}: {sum(map(sum, self.counts.values())):,} images, {len(self.classes)} classes"
        for table in (self._class_table(title), self._size_table()):
            out.print(table)
        for note in self.notes:
            out.print(f"note: {note}", markup=False)
        for item in self.unreadable:
            out.print(f"unreadable: {item.name} ({item.split}): {item.reason}", markup=False)
        for leak in self.leaks[:SHOWN_LEAKS]:
            copies = " = ".join(f"{name} ({split})" for split, name in leak.copies)
            out.print(f"in two splits: {copies}", markup=False)
        if len(self.leaks) > SHOWN_LEAKS:
            out.print(f"in two splits: {len(self.leaks) - SHOWN_LEAKS:,} more pictures; --json lists all", markup=False)
        out.print(self._verdict(), markup=False)

    def _split_json(self, split: Split) -> dict[str, Any]:
        sizes = self.sizes.get(split)
        names = ("min", "median", "max")
        return {
            "images": sum(self.counts[split]),
            "unreadable": sum(item.split == split for item in self.unreadable),
            "repeated": self.repeats[split],
            "per_class": dict(zip(self.classes, self.counts[split], strict=True)),
            "width_px": dict(zip(names, sizes.width_px, strict=True)) if sizes else None,
            "height_px": dict(zip(names, sizes.height_px, strict=True)) if sizes else None,
        }

    def _class_table(self, title: str) -> Table:
        table = Table("label", "class", title=escape(title), title_justify="left")
        for split in self.counts:
            table.add_column(split, justify="right")
        for label, name in enumerate(self.classes):
            table.add_row(str(label), escape(name), *(f"{self.counts[split][label]:,}" for split in self.counts))
        table.add_section()
        table.add_row("", "all", *(f"{sum(counts):,}" for counts in self.counts.values()))
        return table

    def _size_table(self) -> Table:
        table = Table("split", "smallest px", "median px", "largest px", "unreadable", "repeated")
        for split, repeated in self.repeats.items():
            sizes = self.sizes.get(split)
            pairs = zip(sizes.width_px, sizes.height_px, strict=True) if sizes else ()
            shown = [f"{width}×{height}" for width, height in pairs] or ["–"] * 3
            broken = sum(item.split == split for item in self.unreadable)
            table.add_row(split, *shown, f"{broken:,}", f"{repeated:,}")
        return table

    def _verdict(self) -> str:
        found = [(len(self.unreadable), "unreadable"), (len(self.leaks), "in two splits")]
        wrong = [f"{count:,} {what}" for count, what in found if count]
        return f"found: {', '.join(wrong)}" if wrong else "every image can be read, and none is in two splits"


def check_dataset(dataset: Dataset, workers: int = 0) -> DataReport:
    """Decode every image of every split; `workers` threads; 0: the cores that this process may use."""
    copies: dict[bytes, list[tuple[Split, str]]] = defaultdict(list)
    unreadable: list[UnreadableImage] = []
    sizes: dict[Split, ImageSizes] = {}
    repeats: dict[Split, int] = {}
    for split, images in dataset.splits.items():
        measured = []
        seen: set[bytes] = set()
        for name, found in zip(images.names, _look_at_all(images, split, workers), strict=True):
            if isinstance(found, str):
                unreadable.append(UnreadableImage(split, name, found))
                continue
            width, height, digest = found
            measured.append((width, height))
            seen.add(digest)
            copies[digest].append((split, name))
        repeats[split] = len(measured) - len(seen)
        if measured:
            sizes[split] = _summarize_sizes(np.array(measured))
    counts = {
        split: np.bincount(images.labels, minlength=len(dataset.classes)).tolist()
        for split, images in dataset.splits.items()
    }
    leaks = tuple(Leak(tuple(places)) for places in copies.values() if len({split for split, _ in places}) > 1)
    return DataReport(
        dataset.name,
        dataset.sha256,
        dataset.classes,
        dataset.notes,
        counts,
        sizes,
        repeats,
        tuple(unreadable),
        leaks,
    )


def _look_at_all(images: Images, split: Split, workers: int) -> list[tuple[int, int, bytes] | str]:
    """(width, height, hash of the decoded pixels) of each image, or the reason why it cannot be read."""

    def look_at(i: int) -> tuple[int, int, bytes] | str:
        try:
            image = images.read(i)
            with DECODING.take(decoding_bytes(image)):
                digest = hash_pixels(image)
                return *upright_size(image), digest
        except UNREADABLE as error:
            return why_unreadable(error)

    found: list[tuple[int, int, bytes] | str] = []
    with progress(f"check {split}", len(images)) as advance:
        for block in run_in_blocks(look_at, len(images), workers):
            found += block
            advance(len(block))
    return found


def _summarize_sizes(measured: np.ndarray) -> ImageSizes:
    """int (N, 2), (width, height) → smallest, median, largest of each."""
    low, middle, high = measured.min(axis=0), np.median(measured, axis=0).astype(int), measured.max(axis=0)
    widths, heights = (tuple(int(part[axis]) for part in (low, middle, high)) for axis in (0, 1))
    return ImageSizes((widths[0], widths[1], widths[2]), (heights[0], heights[1], heights[2]))
