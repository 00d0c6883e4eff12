"""The contents of a data set, for people and for programs: counts, sizes, findings."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from toolkit.console import count, name_some, out
from toolkit.data.dataset import Split
from toolkit.data.findings import GROUPS, Finding

SHOWN_ITEMS = 20
"""Unreadable files and copies that the text names, of each kind; --json lists all."""


@dataclass(frozen=True)
class UnreadableImage:
    """A file that is not an image, or a damaged image."""

    split: Split
    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} ({self.split}): {self.reason}"


@dataclass(frozen=True)
class Place:
    """Where a picture lies: its split, its name, and the name of its class."""

    split: Split
    name: str
    class_name: str

    def to_json(self) -> dict[str, str]:
        return {"split": self.split, "name": self.name}


@dataclass(frozen=True)
class Copies:
    """Places of one picture. `exact`: equal in every decoded pixel, else near copies, which look alike."""

    places: tuple[Place, ...]
    exact: bool = True

    def __str__(self) -> str:
        return (" = " if self.exact else " ~ ").join(f"{place.name} ({place.split})" for place in self.places)

    def with_classes(self) -> str:
        return " = ".join(f"{place.name} ({place.class_name})" for place in self.places)

    def to_json(self) -> list[dict[str, str]]:
        return [place.to_json() for place in self.places]


@dataclass(frozen=True)
class ImageSizes:
    """Smallest, median and largest width and height of a split's readable images, upright, in px."""

    width_px: tuple[int, int, int]
    height_px: tuple[int, int, int]


@dataclass(frozen=True)
class UnlabelledCopy:
    """An unlabelled image and the labelled one that it shows; `exact` as in Copies."""

    name: str
    original: Place
    exact: bool

    def __str__(self) -> str:
        return f"{self.name} {'=' if self.exact else '~'} {self.original.name} ({self.original.split})"

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "of": self.original.to_json(), "exact": self.exact}


@dataclass(frozen=True)
class UnlabelledReport:
    """What was found among unlabelled images. `repeated` counts surplus copies among themselves."""

    folders: tuple[str, ...]
    sha256: str
    images: int
    repeated: int
    sizes: ImageSizes | None
    unreadable: tuple[tuple[str, str], ...]
    copies: tuple[UnlabelledCopy, ...]
    findings: tuple[Finding, ...]

    @property
    def left_out(self) -> list[UnlabelledCopy]:
        """Copies of validation and test images."""
        return [copy for copy in self.copies if copy.original.split != "train"]

    def to_json(self) -> dict[str, Any]:
        return {
            "folders": list(self.folders),
            "sha256": self.sha256,
            "images": self.images,
            "unreadable": [{"name": name, "reason": reason} for name, reason in self.unreadable],
            "repeated": self.repeated,
            **_sizes_json(self.sizes),
            "copies": [copy.to_json() for copy in self.copies],
        }

    def summary(self) -> str:
        """One line for people."""
        left_out = self.left_out
        near, stay = sum(not copy.exact for copy in left_out), len(self.copies) - len(left_out)
        return (
            f"unlabelled: {count(self.images, 'image')} in {name_some(self.folders)}, {len(self.unreadable):,}"
            f" unreadable, {self.repeated:,} repeated; copies of validation and test images: {len(left_out) - near:,}"
            f" exact, {near:,} near; equal to training images, which may stay: {stay:,}"
        )


@dataclass(frozen=True)
class DataReport:
    """What check_dataset found.

    `counts[split][label]` includes unreadable images; `repeats[split]` counts surplus copies. `leaks` are pictures in
    more than one split, and `two_labels` those under more than one label, equal to the pixel; `near_copies` are pairs,
    the earlier split first.
    """

    name: str
    sha256: str
    classes: tuple[str, ...]
    layout: str
    notes: tuple[str, ...]
    counts: dict[Split, list[int]]
    sizes: dict[Split, ImageSizes]
    repeats: dict[Split, int]
    unreadable: tuple[UnreadableImage, ...]
    leaks: tuple[Copies, ...]
    near_copies: tuple[Copies, ...]
    two_labels: tuple[Copies, ...]
    findings: tuple[Finding, ...]
    unlabelled: UnlabelledReport | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "sha256": self.sha256,
            "classes": list(self.classes),
            "splits": {split: self._split_json(split) for split in self.counts},
            "unreadable": [vars(item) for item in self.unreadable],
            "in_two_splits": [copies.to_json() for copies in self.leaks],
            "notes": list(self.notes),
            "layout": self.layout,
            "near_copies": [copies.to_json() for copies in self.near_copies],
            "two_labels": [
                [{**place.to_json(), "class": place.class_name} for place in copies.places]
                for copies in self.two_labels
            ],
            "findings": [vars(finding) for finding in self.findings],
            **({"unlabelled": self.unlabelled.to_json()} if self.unlabelled else {}),
        }

    def print_table(self) -> None:
        """Classes and sizes as tables, then the layout, notes and findings, one per line, on stdout."""
        title = f"{self.name}: {sum(map(sum, self.counts.values())):,} images, {len(self.classes)} classes"
        for table in (self._class_table(title), self._size_table()):
            out.print(table)
        if self.layout:
            out.print(f"layout: {self.layout}", markup=False)
        for note in self.notes:
            out.print(f"note: {note}", markup=False)
        if self.unlabelled:
            out.print(self.unlabelled.summary(), markup=False)
        for group in GROUPS:
            findings = [finding for finding in self.findings if finding.group == group]
            if findings:
                out.print(f"{group}:")
            for finding in findings:
                self._print_finding(finding)
        if all(finding.group != "looks wrong" for finding in self.findings):
            out.print("nothing looks wrong: every image can be read, and none is in two splits")

    def _print_finding(self, finding: Finding) -> None:
        remedy = f"; {finding.remedy}" if finding.remedy else ""
        out.print(f"  {finding.sentence}{remedy}", markup=False)
        others = self._items_of(finding.kind)[1:]  # the sentence names the first
        for item in others[: SHOWN_ITEMS - 1]:
            out.print(f"    {item}", markup=False)
        if len(others) >= SHOWN_ITEMS:
            out.print(f"    {len(others) - SHOWN_ITEMS + 1:,} more; --json lists all")

    def _items_of(self, kind: str) -> Sequence[object]:
        """What people must see one by one, as they have to decide about each."""
        items: dict[str, Sequence[object]] = {
            "unreadable": self.unreadable,
            "in two splits": self.leaks,
            "near copies": self.near_copies,
            "two labels": [copies.with_classes() for copies in self.two_labels],
        }
        if self.unlabelled:
            items["unlabelled copies"] = self.unlabelled.left_out
            items["unlabelled unreadable"] = [f"{name}: {why}" for name, why in self.unlabelled.unreadable]
        return items.get(kind, ())

    def _split_json(self, split: Split) -> dict[str, Any]:
        return {
            "images": sum(self.counts[split]),
            "unreadable": sum(item.split == split for item in self.unreadable),
            "repeated": self.repeats[split],
            "per_class": dict(zip(self.classes, self.counts[split], strict=True)),
            **_sizes_json(self.sizes.get(split)),
        }

    def _class_table(self, title: str) -> Table:
        table = Table("label", "class", title=Text(title, style="table.title"), title_justify="left")
        for split in self.counts:
            table.add_column(split, justify="right")
        for label, name in enumerate(self.classes):
            table.add_row(str(label), Text(name), *(f"{self.counts[split][label]:,}" for split in self.counts))
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


def _sizes_json(sizes: ImageSizes | None) -> dict[str, dict[str, int] | None]:
    names = ("min", "median", "max")
    return {
        "width_px": dict(zip(names, sizes.width_px, strict=True)) if sizes else None,
        "height_px": dict(zip(names, sizes.height_px, strict=True)) if sizes else None,
    }
