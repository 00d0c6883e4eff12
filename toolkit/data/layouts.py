"""How a folder of images is meant: its split folders, or class folders that may have the same names.

A folder called `train` is a split if it holds class folders, or files that begin with a label; among other folders of
pictures it may also be a class, of vehicles for example. The structure decides. If it fits both, the user has to say
which, by the setting data.layout.
"""

import contextlib
import os
import re
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NoReturn

from toolkit.console import name_some
from toolkit.data.dataset import SPLITS, Split
from toolkit.data.folders import Folder
from toolkit.data.formats import FORMAT_NAMES, find_way_out, is_picture, name_endings
from toolkit.data.split_names import SPLIT_FOLDERS, likely_splits, split_of
from toolkit.errors import DataError
from toolkit.settings import FolderLayout

LAYOUTS = f"use files like train/3_17.jpg, train/daisy/17.jpg or daisy/17.jpg ({FORMAT_NAMES})"

Shape = Literal["empty", "nested", "labelled", "loose", "mixed"]
"""No pictures; folders of pictures; pictures whose names begin with a label; other pictures; folders and pictures."""

_FLAT_NAME = re.compile(r"([0-9]+)_")
_COUNTED_NAME = re.compile(r"([^\W\d_][^\d]*?)[ ._-]*\d+[^/]*")
"""`cat.12.jpg`, as competitions have it."""
MOST_WORDS = 20
"""Words that files of classes may begin with; more are no classes."""


@dataclass(eq=False)
class Part:
    """The images of one split: `files`, paths relative to the root, each with its class folder or flat label in `keys`.

    `place` is its folder as messages name it.
    """

    split: Split
    folder: Folder
    place: Path
    flat: bool
    files: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)


@dataclass(eq=False)
class Layout:
    """The splits of a folder, with "train" among them, and the folders in its root that belong to none of them.

    `unlabelled` are split folders whose images have no labels, `empty` those without any; `renamed` are split folders
    that have no plain name. `is_settled`: the user said what the folders are.
    """

    parts: dict[Split, Part]
    beside: list[Folder] = field(default_factory=list)
    unlabelled: list[Folder] = field(default_factory=list)
    empty: list[Folder] = field(default_factory=list)
    renamed: list[Folder] = field(default_factory=list)
    is_settled: bool = False

    @property
    def flat(self) -> bool:
        return self.parts["train"].flat

    @property
    def has_split_folders(self) -> bool:
        return bool(self.parts["train"].folder.path)

    def __str__(self) -> str:
        if not self.has_split_folders:
            return "flat files" if self.flat else "class folders"
        names = ", ".join(part.folder.name for part in self.parts.values())
        return f"split folders {names}{' of flat files' if self.flat else ''}"


def read_layout(root: Path, top: Folder, setting: FolderLayout, class_list: list[str] | None) -> Layout:
    """The layout of `root`, whose contents are `top`; `class_list` are the lines of its classes.txt, if it has one.

    Raises DataError if there are no training images, or if the structure fits more than one reading.
    """
    settled = setting != "auto" or _lists_all(class_list, top.folders)
    splits = _find_splits(top, class_list, forced=setting == "splits")
    full = {folder: split for folder, split in splits.items() if folder.has_pictures}
    others = [folder for folder in top.folders if folder not in splits]
    if not top.has_pictures:
        place = root / next(iter(splits)).name if splits else root
        endings = top.unread_endings()
        instead = f", only files with endings that are not read ({name_endings(endings)})" if endings else ""
        raise DataError(f"there are no images in {place}{instead}", find_way_out(endings) or LAYOUTS)
    if setting == "classes" or not full or not _are_splits(root, full, others, setting, class_list):
        if setting == "splits":
            raise DataError(f"{root} has no split folders", "add a folder train/, or set data.layout to auto")
        return Layout({"train": _read_part(root, "train", top)}, is_settled=settled)
    layout = _read_splits(root, full)
    layout.renamed = [folder for folder in full if folder.name.lower() not in SPLIT_FOLDERS]
    layout.beside = others
    layout.empty += [folder for folder in splits if folder not in full]
    return layout


def folders_with_pictures(folder: Folder) -> list[Folder]:
    return [inner for inner in folder.folders if inner.has_pictures]


def find_below(folder: Folder) -> Folder | None:
    """The folder further down that looks like a data set, if only one way leads there."""
    while not folder.pictures and len(inner := folders_with_pictures(folder)) == 1:
        folder = inner[0]
        further = folders_with_pictures(folder)
        train = next((one for one in further if split_of(one.name) == "train"), None)
        is_a_set = len(further) > 1 if train is None else shape_of(_unwrap(train)) in ("nested", "labelled")
        if not folder.pictures and is_a_set:
            return folder
    return None


def find_above(root: Path) -> Path | None:
    """The folder above `root`, if `root` is called like a split and other splits stand beside it there."""
    place = root.resolve()
    own = split_of(place.name)
    if own is None:
        return None
    beside = {split_of(path.name) for path in _folders_beside(place)}
    return place.parent if beside - {None, own} else None


def holds_splits(folder: Folder) -> bool:
    """Whether it holds a training split and another one: a data set of its own, or a class divided into splits."""
    splits = {split_of(inner.name) for inner in folders_with_pictures(folder)} - {None}
    return "train" in splits and len(splits) > 1


def spelling_key(name: str) -> str:
    """The same for names that differ only in capitals, the encoding of accents, joiners, or spaces at an end."""
    joined = name.replace("\u200c", "").replace("\u200d", "")
    return unicodedata.normalize("NFC", joined).strip().casefold()


def shape_of(folder: Folder) -> Shape:
    nested = bool(folders_with_pictures(folder))
    if not folder.pictures:
        return "nested" if nested else "empty"
    if nested:
        return "mixed"
    return "labelled" if all(map(label_of, folder.pictures)) else "loose"


def label_of(path: str) -> str | None:
    """`3` of `train/3_17.jpg`; None if the name does not begin with a label."""
    match = _FLAT_NAME.match(path.rpartition("/")[2])
    return match and match[1]


def _find_splits(top: Folder, class_list: list[str] | None, *, forced: bool) -> dict[Folder, Split]:
    """The folders that are called like splits, each with its split: by plain names, or by others if all fits.

    Other names count if every folder of pictures has one, or if training and each of them hold the same class folders.
    With `forced` they count as they are.
    """
    plain = {folder: SPLIT_FOLDERS[name] for folder in top.folders if (name := folder.name.lower()) in SPLIT_FOLDERS}
    full = folders_with_pictures(top)
    names = likely_splits(folder.name for folder in full)
    taken = {plain[folder] for folder in full if folder in plain}
    likely = {
        folder: names[folder.name]
        for folder in full
        if folder not in plain and folder.name in names and names[folder.name] not in taken
    }
    both = plain | likely
    train = next((folder for folder in full if both.get(folder) == "train"), None)
    if train is None or top.pictures or _lists_all(class_list, top.folders):
        return plain
    if forced or all(folder in both for folder in full):
        return both
    alike = {folder: split for folder, split in likely.items() if folder is train or _alike(train, folder)}
    return plain | alike if len({*taken, *alike.values()}) > 1 else plain


def _lists_all(class_list: list[str] | None, folders: list[Folder]) -> bool:
    """Whether classes.txt names every folder of pictures: then they are classes."""
    return class_list is not None and {folder.name for folder in folders if folder.has_pictures} == {*class_list}


def _unwrap(folder: Folder) -> Folder:
    """The folder of the same split in a split folder that holds nothing else: `train/train/`, as archives unpack."""
    inner = folders_with_pictures(folder)
    if folder.pictures or len(inner) != 1:
        return folder
    split, same_name = split_of(inner[0].name), spelling_key(inner[0].name) == spelling_key(folder.name)
    return inner[0] if same_name or (split is not None and split == split_of(folder.name)) else folder


def _are_splits(
    root: Path, splits: dict[Folder, Split], others: list[Folder], setting: FolderLayout, class_list: list[str] | None
) -> bool:
    """Whether the folders `splits`, which are called so, are splits; else they are classes, as `others` are."""
    full = [*splits]
    others = [folder for folder in others if folder.has_pictures]
    if setting == "splits" or not others:
        return True
    if _lists_all(class_list, [*full, *others]):
        return False
    train = next((_unwrap(folder) for folder, split in splits.items() if split == "train"), None)
    shapes = {shape_of(_unwrap(folder)) for folder in full}
    if train is None:
        if shapes <= {"loose", "labelled", "mixed"} and len(others) == 1:
            return False  # one other class is no data set, two classes are
        raise _training_beside_splits(root, full, others)
    if len({*splits.values()}) > 1 and shape_of(train) in ("nested", "labelled"):
        return True
    if shapes <= {"loose", "mixed"}:
        return False
    if shape_of(train) == "nested" and len(others) == 1 and not _alike(train, others[0]):
        return True  # two classes of which only one has folders are rarer than one folder that does not belong there
    if shape_of(train) == "labelled":
        labels = {label_of(picture) for picture in train.pictures}
        if class_list is not None and len(labels) <= len(class_list):
            return True
        if len(labels) < 2 or labels != {str(label) for label in range(len(labels))}:
            return False  # as flat files it would be refused
    raise _two_readings(root, full, others)


def _alike(train: Folder, other: Folder) -> bool:
    """Whether a folder has the same folders as train/: attributes of a class, or classes of another split."""
    names = {inner.name for inner in folders_with_pictures(_unwrap(train))}
    return bool(names & {inner.name for inner in folders_with_pictures(_unwrap(other))})


def _two_readings(root: Path, full: list[Folder], others: list[Folder]) -> DataError:
    names = sorted(folder.name for folder in (*full, *others))
    return DataError(
        f"{root} can be read in two ways: as split folders ({_name_folders(full)}, without {_name_folders(others)}),"
        f" or as {len(names)} class folders ({name_some(names)})",
        "set data.layout to splits or to classes (--set data.layout=classes)",
    )


def _training_beside_splits(root: Path, full: list[Folder], others: list[Folder]) -> DataError:
    names = sorted(folder.name for folder in (*full, *others))
    return DataError(
        f"{root} can be read in two ways: as {len(names)} class folders ({name_some(names)}), or as training images"
        f" ({_name_folders(others)}) beside split folders ({_name_folders(full)})",
        "set data.layout to classes (--set data.layout=classes), or move the training images' folders into train/",
    )


def _name_folders(folders: list[Folder]) -> str:
    return name_some([f"{folder.name}/" for folder in folders])


def _read_splits(root: Path, splits: dict[Folder, Split]) -> Layout:
    named: dict[Split, Folder] = {}
    for folder, split in splits.items():
        if split in named:
            raise DataError(
                f"{root} has both {named[split].name}/ and {folder.name}/ for the same split",
                "keep one of them, or set data.layout to classes if these are classes",
            )
        named[split] = folder
    if "train" not in named:
        there = ", ".join(f"{folder.name}/" for folder in splits)
        raise DataError(
            f"{root} has {there} but no training images",
            "add a folder train/ (or training/) beside it, or set data.layout to classes if these are classes",
        )
    named = {split: _unwrap(folder) for split, folder in named.items()}
    unlabelled = [folder for split, folder in named.items() if split != "train" and _lacks_labels(folder, named)]
    parts = {
        split: _read_part(root, split, named[split])
        for split in SPLITS
        if split in named and named[split] not in unlabelled
    }
    if len({part.flat for part in parts.values()}) > 1:
        raise DataError(f"{root} has class folders in one split and flat files in another", LAYOUTS)
    return Layout(parts, unlabelled=unlabelled)


def _lacks_labels(folder: Folder, named: dict[Split, Folder]) -> bool:
    """Whether the images of a split have no labels, as in a competition: loose, or in one folder that is no class."""
    train = named["train"]
    inner = folders_with_pictures(folder)
    if shape_of(folder) == "nested":
        return len(inner) == 1 and spelling_key(inner[0].name) not in {spelling_key(one.name) for one in train.folders}
    return shape_of(folder) == "loose" and not any(map(label_of, folder.pictures))


def _read_part(root: Path, split: Split, folder: Folder) -> Part:
    shape, place = shape_of(folder), root / folder.path
    if shape == "mixed":
        raise DataError(
            f"{place} has class folders and images beside them ({folder.pictures[0].rpartition('/')[2]})",
            "move those images into a class folder",
        )
    part = Part(split, folder, place, flat=shape != "nested")
    if part.flat:
        part.files = folder.pictures
        part.keys = [label_of(picture) or _refuse_name(root, picture, folder) for picture in folder.pictures]
        return part
    for inner in folder.folders:
        pictures = inner.all_pictures()
        part.files += pictures
        part.keys += [inner.name] * len(pictures)
    return part


def _refuse_name(root: Path, picture: str, folder: Folder) -> NoReturn:
    above = None if "/" in picture else _class_folders_above(root)
    words = _find_words(folder)
    guess = f"{' and '.join(map(repr, words[:2]))} may be classes: " if len(words) > 1 else ""
    instead = f", or set data.layout to classes if {folder.path}/ is one" if folder.path else ""
    raise DataError(
        f"{root / picture} does not begin with a label: a flat file's name is <label>_<anything>, label 0, 1, 2...",
        f"{_did_you_mean(above) or guess}rename it, or put the images of each class into a folder of its own{instead}",
    )


def _find_words(folder: Folder) -> list[str]:
    """The words that files begin with before a number, `cat` of `cat.12.jpg`, if all do and the words are few."""
    matches = [_COUNTED_NAME.fullmatch(path.rpartition("/")[2]) for path in folder.pictures]
    words = dict.fromkeys(match[1] if match else "" for match in matches)
    return [*words] if "" not in words and len(words) <= min(MOST_WORDS, len(matches) // 2) else []


def _class_folders_above(root: Path) -> Path | None:
    """The folder above `root`, if another folder of pictures stands beside it there."""
    place = root.resolve()
    beside = _folders_beside(place)
    return place.parent if any(_holds_a_picture(folder) for folder in beside) else None


def _folders_beside(place: Path) -> list[Path]:
    with contextlib.suppress(OSError), os.scandir(place.parent) as entries:
        return [Path(entry.path) for entry in entries if entry.name != place.name and entry.is_dir()]
    return []


def _holds_a_picture(folder: Path) -> bool:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        return any(is_picture(entry.name) for entry in entries)
    return False


def _did_you_mean(folder: Path | None) -> str:
    return f"did you mean {folder}? " if folder else ""
