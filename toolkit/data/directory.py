"""A folder of image files → a data set, in one of three layouts.

    training/3_17.jpg ...       flat: `<label>_<anything>.<ext>` files (labels count from 0)
    train/daisy/17.jpg ...      one folder per class, in each split
    daisy/17.jpg ...            no splits: test and validation images are held out, seeded, the same share of each class

Class names are the folders' names, or the lines of `classes.txt` in the root. For flat files its line k (from 0) is
label k; for class folders it gives their order, or names for the folders 0, 1, 2... Without it folders sort as text, as
in torchvision's ImageFolder. A class folder may contain further folders.
"""

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from toolkit.data.dataset import SPLITS, Dataset, Images, Split, fingerprint_files
from toolkit.data.formats import DATA_SET_ENDINGS, DATA_SET_NAMES, join_names
from toolkit.data.splits import describe_hold_out, hold_out
from toolkit.errors import DataError
from toolkit.settings import DataRecipe

SPLIT_FOLDERS: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "valid"),
    **dict.fromkeys(("test", "testing", "evaluation", "eval"), "test"),
}
"""Folder names of splits, in upper or lower case."""

LAYOUTS = f"use files like train/3_17.jpg, train/daisy/17.jpg or daisy/17.jpg ({', '.join(DATA_SET_NAMES)})"

_FLAT_NAME = re.compile(r"([0-9]+)_")


@dataclass
class _SplitFiles:
    """The contents of one split: files (paths relative to the root), each with its class folder or flat label."""

    folder: str
    flat: bool
    keys: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    class_folders: list[str] = field(default_factory=list)
    ignored: int = 0


def load_directory(root: Path, recipe: DataRecipe) -> Dataset:
    """Read the layout of `root`; no image is decoded. Raises DataError."""
    found, notes = _find_splits(root)
    if len({part.flat for part in found.values()}) > 1:
        raise DataError(f"{root} has class folders in one split and flat files in another", LAYOUTS)
    first = next(iter(found.values()))
    classes, labels_of = _name_classes_flat(root, found) if first.flat else _name_classes_of_folders(root, found)
    splits = {
        split: Images.from_files(root, part.files, [labels_of[key] for key in part.keys])
        for split, part in found.items()
    }
    _require_every_class(root, classes, found, splits)
    sha256 = fingerprint_files(
        root,
        [name for images in splits.values() for name in images.names],
        [int(label) for images in splits.values() for label in images.labels],
        classes,
    )
    notes += _ignored_note(found)
    train, valid, test = _complete_splits(splits, recipe, classes, notes)
    return Dataset(root.resolve().name, classes, train, valid, test, sha256, tuple(notes))


def _find_splits(root: Path) -> tuple[dict[Split, _SplitFiles], list[str]]:
    """Split → its contents, and notes; a root without split folders is all "train"."""
    folders, files, _ = _list_folder(root)
    named: dict[Split, str] = {}
    for name in folders:
        split = SPLIT_FOLDERS.get(name.lower())
        if split in named:
            raise DataError(f"{root} has both {named[split]}/ and {name}/ for the same split", "keep one of them")
        if split is not None:
            named[split] = name
    if not folders and not any(_is_image(name) for name in files):
        raise DataError(f"there are no images in {root}", LAYOUTS)
    if not named:
        return {"train": _find_images(root, "")}, []
    if "train" not in named:
        there = ", ".join(f"{name}/" for name in named.values())
        raise DataError(f"{root} has {there} but no training images", "add a folder train/ (or training/) beside it")
    other = [name for name in folders if name.lower() not in SPLIT_FOLDERS]
    notes = [f"ignored beside the splits: {', '.join(f'{name}/' for name in other)}"] if other else []
    return {split: _find_images(root, named[split]) for split in SPLITS if split in named}, notes


def _find_images(root: Path, folder: str) -> _SplitFiles:
    folders, files, ignored = _list_folder(root / folder)
    images = [name for name in files if _is_image(name)]
    inside = {name: _list_tree(root / folder / name) for name in folders}
    if not images and not any(_is_image(name) for names in inside.values() for name in names):
        raise DataError(f"there are no images in {root / folder}", LAYOUTS)
    nested = any(_is_image(name) for names in inside.values() for name in names)
    if images and nested:
        raise DataError(
            f"{root / folder} has class folders and images beside them ({images[0]})",
            "move those images into a class folder",
        )
    found = _SplitFiles(folder=str(root / folder), flat=not nested, ignored=ignored + len(files) - len(images))
    prefix = f"{folder}/" if folder else ""
    if found.flat:
        found.files = [prefix + name for name in images]
        found.keys = [_flat_label(root / folder, name) for name in images]
        found.ignored += sum(map(len, inside.values()))
        return found
    found.class_folders = folders
    for name, members in inside.items():
        taken = [member for member in members if _is_image(member)]
        found.files += [f"{prefix}{name}/{member}" for member in taken]
        found.keys += [name] * len(taken)
        found.ignored += len(members) - len(taken)
    return found


def _name_classes_flat(root: Path, found: dict[Split, _SplitFiles]) -> tuple[tuple[str, ...], dict[str, int]]:
    """(class names, label as written → label); if there is a classes.txt, every label needs a line in it."""
    labels_of = {key: int(key) for part in found.values() for key in part.keys}
    highest = max(labels_of.values())
    names = _read_classes(root)
    if names is not None and highest >= len(names):
        split, file = next(
            (s, f) for s, p in found.items() for k, f in zip(p.keys, p.files, strict=True) if int(k) == highest
        )
        raise DataError(
            f"{root / file} has label {highest}, but classes.txt names {len(names)} classes (0 to {len(names) - 1})",
            f"add the missing lines to {root / 'classes.txt'}, or correct the file names in the {split} split",
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
    _require_two_classes(root, names)
    return tuple(names), labels_of


def _name_classes_of_folders(root: Path, found: dict[Split, _SplitFiles]) -> tuple[tuple[str, ...], dict[str, int]]:
    """(class names, class folder → label)."""
    train = found["train"]
    for part in found.values():
        missing = sorted(set(train.class_folders) - set(part.class_folders))
        extra = sorted(set(part.class_folders) - set(train.class_folders))
        if missing or extra:
            where, name, other = (part, missing[0], train) if missing else (train, extra[0], part)
            raise DataError(
                f"class folders differ between splits: {name!r} is in {other.folder} but not in {where.folder}",
                "every split needs the same class folders",
            )
    folders = train.class_folders
    names = _read_classes(root)
    if names is None or set(names) == set(folders):
        classes = names or folders
        labels_of = {name: label for label, name in enumerate(classes)}
    elif set(folders) == {str(label) for label in range(len(names))}:
        classes, labels_of = names, {folder: int(folder) for folder in folders}
    else:
        strange = sorted(set(folders) ^ set(names))[0]
        raise DataError(
            f"{root / 'classes.txt'} names {len(names)} classes, but they are not the {len(folders)} class folders "
            f"({strange!r} is in only one of the two)",
            "give it one line for each class folder, with the folder's name, or delete it",
        )
    _require_two_classes(root, classes)
    return tuple(classes), labels_of


def _complete_splits(
    splits: dict[Split, Images], recipe: DataRecipe, classes: Sequence[str], notes: list[str]
) -> tuple[Images, Images, Images]:
    """(train, valid, test); missing splits are held out of the training images, never of each other."""
    train, seed = splits["train"], recipe.split_seed
    test = splits.get("test")
    if test is None:
        total, what = len(train), "training images" if "valid" in splits else "images"
        train, test = hold_out(train, recipe.test_fraction, seed, classes)
        notes.append(describe_hold_out("test", len(test), total, what, seed))
    valid = splits.get("valid")
    if valid is None:
        total = len(train)
        train, valid = hold_out(train, recipe.validation_fraction, seed, classes)
        notes.append(describe_hold_out("validation", len(valid), total, "training images", seed))
    return train, valid, test


def _require_every_class(
    root: Path, classes: Sequence[str], found: dict[Split, _SplitFiles], splits: dict[Split, Images]
) -> None:
    for split, images in splits.items():
        counts = Counter(images.labels.tolist())
        for label, name in enumerate(classes):
            if not counts[label]:
                number = f" (label {label})" if found[split].flat and name != str(label) else ""
                raise DataError(
                    f"class {name!r}{number} has no images in {found[split].folder}",
                    "add images of it, or take the class out of every split"
                    + (" and of classes.txt" if (root / "classes.txt").exists() else ""),
                )


def _require_two_classes(root: Path, names: Sequence[str]) -> None:
    if len(names) < 2:
        raise DataError(
            f"{root} has one class only ({names[0]!r})", "a classifier needs images of at least two classes"
        )


def _read_classes(root: Path) -> list[str] | None:
    path = root / "classes.txt"
    if not path.is_file():
        return None
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise DataError(f"cannot read {path}: {reason}", "write one class name per line") from None
    names = [name for name in names if name]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice or not names:
        problem = f"{path} names {twice[0]!r} twice" if twice else f"{path} is empty"
        raise DataError(problem, "write one class name per line, each once, in the order of the labels")
    return names


def _flat_label(folder: Path, name: str) -> str:
    match = _FLAT_NAME.match(name)
    if match is None:
        raise DataError(
            f"{folder / name} does not begin with a label: a flat file's name is <label>_<anything>, label 0, 1, 2...",
            "rename it, or put the images of each class into a folder of its own",
        )
    return match[1]


def _list_folder(folder: Path) -> tuple[list[str], list[str], int]:
    """(folders, files, hidden entries) directly in `folder`; sorted. Raises DataError if it may not be read."""
    try:
        with os.scandir(folder) as entries:
            listed = sorted((entry.name, entry.is_dir()) for entry in entries)
    except OSError as error:
        raise _unlistable(folder, error) from None
    shown = [(name, is_dir) for name, is_dir in listed if not name.startswith(".")]
    return (
        [name for name, is_dir in shown if is_dir],
        [name for name, is_dir in shown if not is_dir and name != "classes.txt"],
        sum(1 for name, is_dir in listed if name.startswith(".") and not is_dir),
    )


def _list_tree(folder: Path) -> list[str]:
    """Every file under `folder`, relative to it with `/`, sorted; hidden ones too, except inside hidden folders."""
    files = []

    def refuse(error: OSError) -> None:
        raise _unlistable(Path(error.filename), error) from None

    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [(Path(place) / name).relative_to(folder).as_posix() for name in names]
    return sorted(files)


def _unlistable(folder: Path, error: OSError) -> DataError:
    return DataError(
        f"cannot read the folder {folder}: {error.strerror}", "change its permissions so that you may read it"
    )


def _is_image(name: str) -> bool:
    path = Path(name)
    return path.suffix.lower() in DATA_SET_ENDINGS and not path.name.startswith(".")


def _ignored_note(found: dict[Split, _SplitFiles]) -> list[str]:
    ignored = sum(part.ignored for part in found.values())
    if not ignored:
        return []
    return [f"{ignored:,} file{'s' if ignored > 1 else ''} ignored: hidden, or not {join_names(DATA_SET_NAMES)}"]
