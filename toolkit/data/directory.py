"""A folder of image files → a data set, in one of three layouts.

    training/3_17.jpg ...       flat: `<label>_<anything>.<ext>` files (labels count from 0)
    train/daisy/17.jpg ...      one folder per class, in each split
    daisy/17.jpg ...            no splits: test and validation images are held out, seeded, the same share of each class

Class names are the folders' names, or the lines of `classes.txt` in the root. For flat files its line k (from 0) is
label k; for class folders it gives their order, or names for the folders 0, 1, 2... Without it folders sort as text, as
in torchvision's ImageFolder. A class folder may contain further folders.

folders.py lists the files, layouts.py finds the splits, classes.py names the classes, and oddities.py says what was
passed over and what looks wrong.
"""

from collections.abc import Sequence
from pathlib import Path

from toolkit.console import printable
from toolkit.data.classes import name_classes, read_class_list
from toolkit.data.dataset import Dataset, Images, Split, fingerprint_files
from toolkit.data.folders import read_folder
from toolkit.data.layouts import read_layout
from toolkit.data.oddities import describe_layout, find_doubts
from toolkit.data.split_names import split_of
from toolkit.data.splits import describe_hold_out, hold_out, require_enough
from toolkit.settings import DataRecipe


def load_directory(root: Path, recipe: DataRecipe) -> Dataset:
    """Read the layout of `root`; no image is decoded. Raises DataError."""
    class_list = read_class_list(root)
    top = read_folder(root, lambda name: split_of(name) is not None)
    layout = read_layout(root, top, recipe.layout, class_list)
    classes = name_classes(root, layout, class_list)
    parts = layout.parts.values()
    labels = {part.split: [classes.labels_of[key] for key in part.keys] for part in parts}
    found = {part.split: Images.from_files(root, part.files, labels[part.split]) for part in parts}
    sha256 = fingerprint_files(
        root,
        [file for part in parts for file in part.files],
        [label for part in parts for label in labels[part.split]],
        classes.names,
    )
    splits, notes = _complete_splits(found, recipe, classes.names, str(root))
    findings = (*describe_layout(top, layout, classes), *find_doubts(root, layout, classes, splits))
    name = printable(root.resolve().name)
    return Dataset(
        name, tuple(classes.names), **splits, sha256=sha256, notes=notes, layout=str(layout), findings=findings
    )


def _complete_splits(
    splits: dict[Split, Images], recipe: DataRecipe, classes: Sequence[str], where: str
) -> tuple[dict[Split, Images], tuple[str, ...]]:
    """All three splits, and notes; missing ones are held out of the training images, never of each other."""
    train, seed = splits["train"], recipe.split_seed
    missing = [word for split, word in (("valid", "validation"), ("test", "test")) if split not in splits]
    require_enough(train, missing, classes, where)
    notes = []
    test = splits.get("test")
    if test is None:
        total, what = len(train), "training images" if "valid" in splits else "images"
        train, test = hold_out(train, recipe.test_fraction, seed)
        notes.append(describe_hold_out("test", len(test), total, what, seed))
    valid = splits.get("valid")
    if valid is None:
        total = len(train)
        train, valid = hold_out(train, recipe.validation_fraction, seed)
        notes.append(describe_hold_out("validation", len(valid), total, "training images", seed))
    return {"train": train, "valid": valid, "test": test}, tuple(notes)
