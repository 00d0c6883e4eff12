"""A name or a directory → labelled images: the entrance of the data stage.

named.py loads the named sets, food11.py the notebook's own one, directory.py folders of image files. splits.py draws
missing splits, dataset.py defines a data set.
"""

import difflib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from toolkit.data.dataset import SPLITS, Dataset, Images, Split
from toolkit.data.directory import load_directory
from toolkit.data.food11 import load_food11
from toolkit.data.named import load_cifar, load_fashion_mnist, load_food101
from toolkit.data.splits import take_share
from toolkit.errors import DataError
from toolkit.recipe import DataRecipe

__all__ = ["NAMED", "SPLITS", "Dataset", "Images", "Split", "load_dataset"]

NAMED: dict[str, Callable[[DataRecipe], Dataset]] = {
    "fashion-mnist": load_fashion_mnist,
    "cifar10": load_cifar,
    "cifar100": load_cifar,
    "food101": load_food101,
    "food-11": load_food11,
}
"""Name of a data set → its loader. For a folder with such a name, give ./name."""


def load_dataset(recipe: DataRecipe) -> Dataset:
    """The data set that `recipe.source` names, or the directory it is, with `recipe.share` of its training images.

    Raises DataError.
    """
    dataset = _load_whole(recipe)
    if recipe.share == 1:
        return dataset
    train = take_share(dataset.train, recipe.share, recipe.split_seed)
    note = f"train: {len(train):,} of {len(dataset.train):,} images, the same share of each class (data.share)"
    return replace(dataset, train=train, notes=(*dataset.notes, note))


def _load_whole(recipe: DataRecipe) -> Dataset:
    if load := NAMED.get(recipe.source):
        return load(recipe)
    folder = Path(recipe.source).expanduser()
    if folder.is_dir():
        return load_directory(folder, recipe)
    if folder.exists():
        raise DataError(f"{recipe.source} is a file, not a folder of images", "give the folder, or one of: " + _names())
    plain = {_letters(name): name for name in NAMED}
    near = difflib.get_close_matches(_letters(recipe.source), plain, n=1, cutoff=0.6)
    guess = f"did you mean {plain[near[0]]}? " if near else ""
    raise DataError(
        f"{recipe.source!r} is not an existing folder and not the name of a data set",
        f"{guess}give a folder, or one of: {_names()}",
    )


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))


def _names() -> str:
    return ", ".join(NAMED)
