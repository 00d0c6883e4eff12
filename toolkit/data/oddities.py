"""What reading a folder shows before any image is decoded: what was passed over, and what looks wrong."""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath

import numpy as np

from toolkit.console import name_some, printable
from toolkit.data.classes import Classes
from toolkit.data.dataset import SPLITS, Images, Split
from toolkit.data.findings import Finding, Group, find, verbatim
from toolkit.data.folders import Folder, PassedOver, Reason
from toolkit.data.formats import NO_ENDING, count_endings, ending_of, find_way_out, name_endings
from toolkit.data.layouts import Layout, Part, find_above, folders_with_pictures, holds_splits, label_of, spelling_key
from toolkit.data.split_names import called_like_splits, split_of

FEW_IMAGES = 5
"""Fewer training images than this hardly show what the pictures of a class have in common."""

LARGE_PART = 0.25
"""Share of a class's files; a class that loses so many to endings that are not read looks wrong."""

_PLAIN_NAMES = "call them train/, val/ and test/"

SPLIT_WORDS: dict[Split, str] = {"train": "training", "valid": "validation", "test": "test"}

_WORDS: dict[Reason, tuple[str, str]] = {
    "hidden": ("hidden {files}", ""),
    "system": ("system {files}", ""),
    "partial": ("unfinished download{s}", "finish the downloads"),
    "linked": ("linked {files}", "links to folders are followed for splits and classes only: copy the pictures there"),
    "special": ("{files} that are pipes, sockets or devices", ""),
    "other endings": ("{files} with endings that are not read", ""),
}
"""Reason → what is passed over, and what to do about it; in the order in which it is said."""


def describe_passed_over(items: Iterable[PassedOver]) -> list[Finding]:
    """One finding for each reason."""
    by_reason: dict[Reason, list[PassedOver]] = defaultdict(list)
    for item in items:
        by_reason[item.reason].append(item)
    return [finding for reason in _WORDS if reason in by_reason for finding in _describe(reason, by_reason[reason])]


def describe_layout(top: Folder, layout: Layout, classes: Classes) -> list[Finding]:
    """What was passed over, the links that were followed, and class folders that were matched by their names."""
    without = [*layout.empty, *classes.empty, *(folder for folder in layout.beside if not folder.has_pictures)]
    inside = tuple(f"{folder.path}/" for folder in without)
    beside = [f"{folder.path}/" for folder in layout.beside if folder.has_pictures]
    links = [link for folder in top.walk() for link in folder.links]
    respelled = [f"{path}, taken for {name!r}: {_difference(path, name)}" for path, name in classes.respelled[:1]]
    renamed = name_some([f"{folder.path}/ for {split_of(folder.name) or 'a split'}" for folder in layout.renamed])
    return [
        *describe_passed_over(item for item in top.all_passed_over() if not item.path.startswith(inside)),
        *_find("passed over", "no pictures", inside, "folder{s} without pictures"),
        *_find(
            "passed over",
            "beside the splits",
            beside,
            "folder{s} of pictures beside the split folders",
            "if these and the split folders are classes, set data.layout to classes",
        ),
        *(finding for folder in layout.unlabelled for finding in _describe_unlabelled(folder)),
        *_find(
            "passed over",
            "loose pictures",
            top.pictures if layout.has_split_folders else [],
            "picture{s} outside of the split folders",
        ),
        *_find(
            "looks wrong",
            "split names",
            [f"{folder.path}/" for folder in layout.renamed],
            "folder{s} taken for splits by their names",
            f"{_PLAIN_NAMES}, or, if they are classes, set data.layout to classes",
            shown=renamed,
        ),
        *_find("read in a special way", "followed link", links, "followed link{s} to files or folders"),
        *_find(
            "looks wrong",
            "spelling",
            [path for path, _ in classes.respelled],
            "class folder{s} spelled differently in training",
            "rename, so that every split has the same names",
            shown="".join(respelled),
        ),
    ]


def find_doubts(root: Path, layout: Layout, classes: Classes, splits: Mapping[Split, Images]) -> list[Finding]:
    """What looks wrong, though it can be trained on; `splits` are the final ones, with those that were held out."""
    names = classes.names
    counts = {split: np.bincount(splits[split].labels, minlength=len(names)) for split in SPLITS}
    held_out = [SPLIT_WORDS[split] for split in SPLITS if split not in layout.parts]
    after = f", after {' and '.join(held_out)} images were held out" if held_out else ""
    few = {name: f" {images}" for name, images in zip(names, counts["train"], strict=True) if images < FEW_IMAGES}
    what = f"with fewer than {FEW_IMAGES} training images{after}"
    found = [
        *_find_wrong_level(root, layout),
        *_find_alike(names),
        *_find_classes("few images", few, what, "add images, or leave out such classes"),
    ]
    for split in SPLITS[1:]:
        kind = f"no {SPLIT_WORDS[split]} images"
        without = {name: "" for name, images in zip(names, counts[split], strict=True) if not images}
        remedy = "add some: accuracy there says nothing of such a class"
        found += _find_classes(kind, without, f"without {SPLIT_WORDS[split]} images", remedy)
    return [*found, *_find_loss(layout, classes)]


def _find(
    group: Group, kind: str, items: Sequence[str], what: str, remedy: str = "", *, shown: str = ""
) -> list[Finding]:
    """`find`, with an example that any terminal takes: names of files may hold anything."""
    return find(group, kind, [*map(printable, items[:1]), *items[1:]], what, remedy, shown=shown)


def _find_classes(kind: str, said: Mapping[str, str], what: str, remedy: str) -> list[Finding]:
    """A finding about classes: name → what is said behind it."""
    shown = name_some([f"{name!r}{behind}" for name, behind in said.items()])
    return find("looks wrong", kind, [*said], f"class{{es}} {what}", remedy, shown=shown)


def _difference(path: str, name: str) -> str:
    folder = path.rpartition("/")[2]
    if folder.casefold() == name.casefold():
        return "capitals differ"
    alike = unicodedata.normalize("NFC", folder) == unicodedata.normalize("NFC", name)
    return "accents are encoded differently" if alike else "capitals, accents or spaces differ"


def _describe(reason: Reason, items: Sequence[PassedOver]) -> list[Finding]:
    words, remedy = _WORDS[reason]
    folders = sum(item.is_folder for item in items)
    noun = "files and folders" if 0 < folders < len(items) else "folder{s}" if folders else "file{s}"
    shown, paths = "", [item.path for item in items]
    if reason == "other endings":
        endings = count_endings(paths)
        remedy = _remedy_for(endings)
        shown = f"{printable(paths[0])} ({name_endings(endings)})"
    return _find("passed over", reason, paths, words.replace("{files}", noun), remedy, shown=shown)


def _remedy_for(endings: Iterable[str]) -> str:
    way_out = find_way_out(endings)
    return way_out and f"if they are pictures, {way_out}"


def _describe_unlabelled(folder: Folder) -> list[Finding]:
    return _find(
        "passed over",
        "unlabelled",
        folder.all_pictures(),
        f"picture{{s}} without labels in {verbatim(folder.name)}/",
        "images for that split are held out of the training images; to use these, sort them into class folders",
    )


def _find_wrong_level(root: Path, layout: Layout) -> list[Finding]:
    """A root that is a split of a data set, or whose class folders are data sets or hold splits."""
    if layout.has_split_folders:
        return []
    if above := find_above(root):
        sentence = f"{root.resolve().name}/ is one of several split folders, and the others are not read"
        return [Finding("looks wrong", "too deep", 1, root.resolve().name, sentence, f"did you mean {above}?")]
    divided = [folder for folder in folders_with_pictures(layout.parts["train"].folder) if holds_splits(folder)]
    if layout.flat or layout.is_settled:
        return []
    if not divided:
        return _find_same_folders(layout) or [*_find_split_names(layout), *_find_inner_folders(layout)]
    first = divided[0]
    is_a_set = any(folders_with_pictures(split) for split in first.folders)
    remedy = (
        f"did you mean {root / first.path}?" if is_a_set else "to use it, put class folders into train/, val/ and test/"
    )
    what = "class folder{s} with split folders inside, whose division is not used"
    return _find("looks wrong", "too high", [f"{folder.path}/" for folder in divided], what, remedy)


def _find_split_names(layout: Layout) -> list[Finding]:
    """Class folders that are called like splits, though not plainly, and stand where splits would."""
    names = called_like_splits(folder.name for folder in folders_with_pictures(layout.parts["train"].folder))
    remedy = f"if they are splits, {_PLAIN_NAMES}, with class folders in each; else set data.layout to classes"
    return _find("looks wrong", "split names", names, "class folder{s} called like splits", remedy)


def _find_same_folders(layout: Layout) -> list[Finding]:
    """Class folders that all hold the same folders: these may be the classes, and the others splits or the like."""
    folders = folders_with_pictures(layout.parts["train"].folder)
    inner = [{spelling_key(one.name) for one in folders_with_pictures(folder)} for folder in folders]
    common = set.intersection(*inner)
    if len(common) > 1:
        first = [one.name for one in folders_with_pictures(folders[0]) if spelling_key(one.name) in common]
        return _find(
            "looks wrong",
            "same folders",
            [f"{folder.path}/" for folder in folders],
            "class folder{s} with the same folders inside",
            f"if these are splits of the classes {name_some([*map(repr, first)])}, {_PLAIN_NAMES}; if they are other "
            "parts, put the pictures of each class together; else set data.layout to classes",
        )
    return []


def _find_inner_folders(layout: Layout) -> list[Finding]:
    """Class folders that hold folders, whose names count for nothing."""
    folders = folders_with_pictures(layout.parts["train"].folder)
    divided = [f"{folder.path}/" for folder in folders if sum(bool(one.pictures) for one in folder.walk()) > 1]
    what, remedy = (
        "class folder{s} with folders inside, all of one class",
        "if the folders inside are classes, move them up",
    )
    return _find("read in a special way", "folders inside", divided, what, remedy)


def _find_alike(names: Sequence[str]) -> list[Finding]:
    """Classes whose names differ only in capitals or accents."""
    by_key: dict[str, list[str]] = defaultdict(list)
    for name in names:
        by_key[spelling_key(name)].append(name)
    groups = [alike for alike in by_key.values() if len(alike) > 1]
    shown = " and ".join(map(repr, groups[0])) if groups else ""
    what, remedy = "group{s} of classes with almost the same name", "if they are one, put their images into one folder"
    return find("looks wrong", "alike names", [alike[0] for alike in groups], what, remedy, shown=shown)


def _find_loss(layout: Layout, classes: Classes) -> list[Finding]:
    """Classes that lose a large part of their files to endings that are not read."""
    kept = Counter(classes.labels_of[key] for part in layout.parts.values() for key in part.keys)
    lost: dict[int, Counter[str]] = defaultdict(Counter)
    for part in layout.parts.values():
        for path in _lost_files(part):
            label = classes.labels_of.get(_key_of(path, part))
            if label is not None:
                lost[label][ending_of(path) or NO_ENDING] += 1
    heavy = {}
    endings: set[str] = set()
    for label, lost_here in sorted(lost.items()):
        of_all = lost_here.total() + kept[label]
        if lost_here.total() >= LARGE_PART * of_all:
            heavy[classes.names[label]] = f" {lost_here.total():,} of {of_all:,} ({printable(name_some([*lost_here]))})"
            endings |= lost_here.keys()
    what = "of which a large part has endings that are not read"
    return _find_classes("lost to endings", heavy, what, _remedy_for(endings))


def _lost_files(part: Part) -> Iterable[str]:
    """Files with other endings, without those that accompany a picture: `0.txt` or `0.jpg.json` of `0.jpg`."""
    for folder in part.folder.walk():
        others = [item.path for item in folder.passed_over if item.reason == "other endings"]
        names = [PurePath(picture) for picture in folder.pictures] if others else []
        accompanied = {picture.stem for picture in names} | {picture.name for picture in names}
        yield from (path for path in others if PurePath(path).stem not in accompanied)


def _key_of(path: str, part: Part) -> str:
    """The class folder or flat label of a file in a split's folder."""
    if part.flat:
        return label_of(path) or ""
    inside = path.removeprefix(f"{part.folder.path}/") if part.folder.path else path
    return inside.partition("/")[0]
