"""The classes of a folder of images: their names, their order, and the label of each class folder."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from toolkit.console import count, name_some, printable
from toolkit.data.folders import CLASS_LIST, Folder
from toolkit.data.formats import FORMAT_NAMES, NO_ENDING, UNREAD_PICTURE_ENDINGS, find_way_out, name_endings
from toolkit.data.layouts import Layout, Part, find_below, spelling_key
from toolkit.errors import DataError, did_you_mean

_NOTES_OF_DETECTION = ("labels", "annotations")
"""Folders beside images/ in sets for the detection of objects."""


@dataclass
class Classes:
    """Names in the order of labels, the label of each class folder or flat label as written, and what was decided.

    `respelled` are class folders (paths) that are spelled differently in training, each with that spelling; `empty` are
    folders beside the class folders without any picture.
    """

    names: list[str]
    labels_of: dict[str, int]
    respelled: list[tuple[str, str]] = field(default_factory=list)
    empty: list[Folder] = field(default_factory=list)


def name_classes(root: Path, layout: Layout, class_list: list[str] | None) -> Classes:
    """The classes of the training images; other splits may lack some of them, and may not have more.

    `class_list` are the lines of classes.txt, if there is one. Raises DataError.
    """
    for folder in layout.empty:
        _require_no_pictures(root, folder)
    classes = _name_flat(root, layout, class_list) if layout.flat else _name_folders(root, layout, class_list)
    if len(classes.names) < 2:
        raise DataError(
            f"{root} has one class only ({classes.names[0]!r})",
            f"{_guess_classes(root, layout)}a classifier needs images of at least two classes",
        )
    _require_training_images(root, layout.parts["train"], classes)
    return classes


def read_class_list(root: Path) -> list[str] | None:
    """The lines of classes.txt in `root`; None if there is no such file. Raises DataError."""
    path = root / CLASS_LIST
    if not path.is_file():
        return None
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise DataError(f"cannot read {path}: {reason}", "write one class name per line") from None
    names = [name for name in names if name]
    twice = [name for name, times in Counter(names).items() if times > 1]
    if hidden := next((name for name in names if printable(name) != name), None):
        raise DataError(
            f"{path} names {printable(hidden)!r}, which is not visible text", "take out what cannot be seen in it"
        )
    if twice or not names:
        problem = f"{path} names {twice[0]!r} twice" if twice else f"{path} is empty"
        raise DataError(problem, "write one class name per line, each once, in the order of the labels")
    return names


def match_names(names: Iterable[str], known: Iterable[str]) -> dict[str, str | None]:
    """Each of `names` → itself if it is known, else the one known name that is spelled almost so; None if none is."""
    exact = set(known)
    near: dict[str, list[str]] = defaultdict(list)
    for other in exact:
        near[spelling_key(other)].append(other)

    def match(name: str) -> str | None:
        alike = near[spelling_key(name)]
        return name if name in exact else alike[0] if len(alike) == 1 else None

    return {name: match(name) for name in names}


def _guess_classes(root: Path, layout: Layout) -> str:
    """Where the classes of a data set with one class may lie; "" if that does not show."""
    train = layout.parts["train"]
    below = find_below(train.folder)
    if below is None:
        return _explain_detection(layout)
    if layout.has_split_folders:
        return f"if the folders in {root / below.path} are the classes, move them to {train.place}: "
    return f"did you mean {root / below.path}? "


def _explain_detection(layout: Layout) -> str:
    """What it means that pictures lie in images/ beside a folder without any; "" if they do not."""
    folders = layout.parts["train"].folder.folders
    beside = next((folder.name for folder in folders if folder.name.lower() in _NOTES_OF_DETECTION), None)
    pictures = next((folder.name for folder in folders if folder.has_pictures), "")
    if beside is None:
        return ""
    return f"{pictures}/ and {beside}/ are of a data set for detection, where folders are no classes: "


def _name_flat(root: Path, layout: Layout, names: list[str] | None) -> Classes:
    """Flat labels count from 0; if there is a classes.txt, every label needs a line in it."""
    parts = layout.parts.values()
    labels_of = {key: int(key) for part in parts for key in part.keys}
    highest = max(labels_of.values())
    if names is not None and highest >= len(names):
        split, file = next(
            (part.split, file)
            for part in parts
            for key, file in zip(part.keys, part.files, strict=True)
            if int(key) == highest
        )
        raise DataError(
            f"{root / file} has label {highest}, but classes.txt names {len(names)} classes (0 to {len(names) - 1})",
            f"add the missing lines to {root / CLASS_LIST}, or correct the file names in the {split} split",
        )
    if names is None:
        seen = set(labels_of.values())
        missing = next((label for label in range(len(seen)) if label not in seen), None)
        if missing is not None:  # before a stray label of 20 million becomes a list of names
            raise DataError(
                f"label {missing} has no images in {root}, though labels go up to {highest}",
                "labels count from 0 without gaps; rename the files, or list all class names in classes.txt",
            )
        names = [str(label) for label in range(highest + 1)]
    return Classes(names, labels_of)


def _name_folders(root: Path, layout: Layout, class_list: list[str] | None) -> Classes:
    train = layout.parts["train"]
    folders = list(dict.fromkeys(train.keys))
    empty = [inner for inner in train.folder.folders if inner.name not in folders]
    for inner in empty:
        _require_no_pictures(root, inner)
    for name in folders:
        _require_text(train.place / name)
    classes = Classes(folders, {name: label for label, name in enumerate(folders)}, empty=empty)
    if class_list is not None:
        _order_by_list(root, classes, class_list)
    for part in layout.parts.values():
        if part is not train:
            _match_folders(part, train, classes)
    return classes


def _order_by_list(root: Path, classes: Classes, class_list: list[str]) -> None:
    """Give classes the names and the order of classes.txt: it names the folders, or what the folders 0, 1, 2... are."""
    folders = classes.names
    matches = match_names(folders, class_list)
    numbers = {str(label): label for label in range(len(class_list))}
    if None not in matches.values() and len({*matches.values()}) == len(folders):
        labels_of = {folder: class_list.index(str(name)) for folder, name in matches.items()}
    elif set(folders) <= numbers.keys():
        labels_of = {folder: numbers[folder] for folder in folders}
    else:
        strange = sorted(set(folders) ^ set(class_list))[0]
        raise DataError(
            f"{root / CLASS_LIST} names {len(class_list)} classes, but they are not the {len(folders)} class folders "
            f"({strange!r} is in only one of the two)",
            "give it one line for each class folder, with the folder's name, or delete it",
        )
    classes.names, classes.labels_of = class_list, labels_of


def _match_folders(part: Part, train: Part, classes: Classes) -> None:
    """Find the class of every class folder of a split other than train."""
    known = list(dict.fromkeys(train.keys))
    matches = match_names(dict.fromkeys(part.keys), known)
    strange = [folder for folder, name in matches.items() if name is None]
    for folder, name in matches.items():
        if name is not None and name != folder:
            classes.respelled.append((f"{part.folder.name}/{folder}", name))
            classes.labels_of[folder] = classes.labels_of[name]
    if strange:
        there = {inner.name for inner in train.folder.folders}
        shown, verb = name_some([repr(name) for name in strange]), "is" if len(strange) == 1 else "are"
        problem = f"{shown} {verb} in {part.place} but not in {train.place}"
        if strange[0] in there:
            problem = f"{strange[0]!r} has images in {part.place} but none in {train.place}"
        raise DataError(
            f"class folders differ between splits: {problem}",
            f"{did_you_mean(strange[0], known)}add images of it to {train.place}, or take it out of {part.place}",
        )


def _require_training_images(root: Path, train: Part, classes: Classes) -> None:
    with_images = {classes.labels_of[key] for key in train.keys}
    for label, name in enumerate(classes.names):
        if label not in with_images:
            number = f" (label {label})" if train.flat and name != str(label) else ""
            raise DataError(
                f"class {name!r}{number} has no images in {train.place}",
                "add images of it, or take the class out of every split"
                + (" and of classes.txt" if (root / CLASS_LIST).exists() else ""),
            )


def _require_no_pictures(root: Path, folder: Folder) -> None:
    """A folder that holds nothing but pictures of formats that are not read was meant to be a class or a split."""
    endings = folder.unread_endings()
    if UNREAD_PICTURE_ENDINGS.isdisjoint(endings) and endings[NO_ENDING] * 2 <= endings.total():
        return
    raise DataError(
        f"the folder {root / folder.path} has {count(endings.total(), 'file')}, but none that is read"
        f" ({name_endings(endings)})",
        f"{find_way_out(endings)}, or take the folder away ({FORMAT_NAMES} files are read)",
    )


def _require_text(folder: Path) -> None:
    """A class's name goes into weights, ONNX files and reports: it has to be a line of text."""
    if printable(folder.name) != folder.name:
        raise DataError(
            f"the class folder {printable(str(folder))} has a name that is not one line of visible UTF-8 text",
            "rename it",
        )
