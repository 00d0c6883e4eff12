"""A name or a directory → labelled images: the entrance of the data stage.

named.py loads the named sets, food11.py the notebook's own one, directory.py folders of image files. splits.py draws
missing splits, dataset.py defines a data set.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from toolkit.data.dataset import SPLITS, Dataset, Images, Split
from toolkit.data.directory import load_directory
from toolkit.data.food11 import load_food11
from toolkit.data.named import load_cifar, load_fashion_mnist, load_food101
from toolkit.data.splits import take_share
from toolkit.errors import DataError, did_you_mean
from toolkit.recipe import DEFAULT_RECIPE, NOTEBOOK_RECIPE
from toolkit.settings import DataRecipe

__all__ = ["NAMED", "SPLITS", "Dataset", "Images", "Split", "builtin_recipe_of", "find_folder", "load_dataset"]


@dataclass(frozen=True)
class NamedSet:
    """A data set with a name."""

    load: Callable[[DataRecipe], Dataset]
    """raises DataError with a remedy if it is not on this machine and cannot be downloaded"""
    recipe: str = ""
    """the built-in recipe for it; without one its settings follow the pictures"""
    hub_id: str = ""
    """on Hugging Face"""


NAMED = {
    "fashion-mnist": NamedSet(load_fashion_mnist, DEFAULT_RECIPE, "zalando-datasets/fashion_mnist"),
    "cifar10": NamedSet(load_cifar, hub_id="uoft-cs/cifar10"),
    "cifar100": NamedSet(load_cifar, hub_id="uoft-cs/cifar100"),
    "food101": NamedSet(load_food101, hub_id="ethz/food101"),
    "food-11": NamedSet(load_food11, NOTEBOOK_RECIPE),
}
"""Name → data set. For a folder with such a name, give ./name."""


def builtin_recipe_of(source: str | None) -> str:
    """Name of the recipe that ships for the data set; "" for others, and for folders."""
    return NAMED[source].recipe if source in NAMED else ""


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


def find_folder(source: str) -> Path | None:
    """The folder that `source` is, None for a named data set; no image is looked at. DataError if it is neither."""
    if source in NAMED:
        return None
    folder = Path(source).expanduser()
    if folder.is_dir() and source:
        return folder
    if folder.exists() and source:
        raise DataError(f"{source} is a file, not a folder of images", "give the folder, or one of: " + _names())
    raise DataError(
        f"{source!r} is not an existing folder and not the name of a data set",
        f"{did_you_mean(source, NAMED)}give a folder, or one of: {_names()}",
    )


def _load_whole(recipe: DataRecipe) -> Dataset:
    folder = find_folder(recipe.source)
    return NAMED[recipe.source].load(recipe) if folder is None else load_directory(folder, recipe)


def _names() -> str:
    return ", ".join(NAMED)
