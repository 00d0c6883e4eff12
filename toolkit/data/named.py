"""Data sets with a name: from this machine, else downloaded by torchvision, with its checksums."""

import json
import urllib.error
import warnings
from pathlib import Path

import numpy as np

from toolkit.console import say
from toolkit.data.cache import cache_folder
from toolkit.data.dataset import Dataset, Images, fingerprint_arrays, fingerprint_files
from toolkit.data.idx import find_idx_files, read_idx_files
from toolkit.data.splits import describe_hold_out, hold_out, require_enough
from toolkit.errors import DataError, one_line
from toolkit.settings import DataRecipe

FASHION_MNIST_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
FASHION_MNIST_SYSTEM_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""The folder of Debian's package dataset-fashion-mnist."""

DOWNLOAD_ERRORS = (OSError, RuntimeError, urllib.error.URLError)
"""Exceptions of torchvision if a download fails or has another checksum."""


def load_fashion_mnist(recipe: DataRecipe) -> Dataset:
    """70,000 grey 28×28 px pictures of clothes: from the cache, the system's copy or a download, in that order."""
    train_pixels, train_labels, test_pixels, test_labels = read_idx_files(
        _find_fashion_mnist(), len(FASHION_MNIST_CLASSES)
    )
    return _with_validation(
        recipe,
        FASHION_MNIST_CLASSES,
        Images.from_array("train", train_pixels, train_labels),
        Images.from_array("test", test_pixels, test_labels),
        fingerprint_arrays(train_pixels, train_labels, test_pixels, test_labels),
    )


def load_cifar(recipe: DataRecipe) -> Dataset:
    """CIFAR-10 or CIFAR-100, as `recipe.source` says: 60,000 pictures of 32×32 px."""
    from torchvision import datasets

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[recipe.source]
    folder = cache_folder(recipe.source)
    _announce_download(recipe.source, folder / kind.base_folder)
    try:
        with warnings.catch_warnings():  # an old numpy pickled the published files; a new one warns of it
            warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
            parts = [kind(str(folder), train=train, download=True) for train in (True, False)]
    except DOWNLOAD_ERRORS as error:
        raise _no_download(recipe.source, folder / kind.filename, error) from None
    arrays = [array for part in parts for array in (part.data, np.asarray(part.targets, dtype=np.int64))]
    train, test = (Images.from_array(name, *arrays[i : i + 2]) for name, i in (("train", 0), ("test", 2)))
    return _with_validation(recipe, tuple(parts[0].classes), train, test, fingerprint_arrays(*arrays))


def load_food101(recipe: DataRecipe) -> Dataset:
    """Food-101: 101,000 photographs of up to 512 px, a download of 5 GB."""
    from torchvision import datasets

    folder = cache_folder(recipe.source)
    _announce_download(recipe.source, folder / "food-101")
    try:
        datasets.Food101(str(folder), split="train", download=True)
        lists = {
            split: json.loads((folder / "food-101" / "meta" / f"{split}.json").read_text(encoding="utf-8"))
            for split in ("train", "test")
        }
    except DOWNLOAD_ERRORS as error:
        raise _no_download(recipe.source, folder / "food-101.tar.gz", error) from None
    classes = tuple(sorted(lists["train"]))
    root = folder / "food-101" / "images"
    pairs = {
        split: [(f"{name}.jpg", label) for label, key in enumerate(classes) for name in members[key]]
        for split, members in lists.items()
    }
    train, test = (Images.from_files(root, *zip(*pairs[split], strict=True)) for split in ("train", "test"))
    names, labels = (*train.names, *test.names), [*train.labels.tolist(), *test.labels.tolist()]
    return _with_validation(recipe, classes, train, test, fingerprint_files(root, names, labels, classes))


def _find_fashion_mnist() -> list[Path]:
    own = cache_folder("fashion-mnist")
    downloaded = own / "FashionMNIST" / "raw"
    for folder in (own, downloaded, FASHION_MNIST_SYSTEM_FOLDER):
        if paths := find_idx_files(folder):
            return paths
    from torchvision import datasets

    _announce_download("fashion-mnist", downloaded)
    try:
        datasets.FashionMNIST(str(own), download=True)
    except DOWNLOAD_ERRORS as error:
        raise DataError(
            f"Fashion-MNIST is not in {own} or {FASHION_MNIST_SYSTEM_FOLDER}, and its download failed "
            f"({one_line(error, last=True)})",
            "install the Debian package dataset-fashion-mnist (apt install), run make data, or give --data DIR",
        ) from None
    paths = find_idx_files(downloaded)
    assert paths is not None, "torchvision checked them"
    return paths


def _with_validation(recipe: DataRecipe, classes: tuple[str, ...], train: Images, test: Images, sha256: str) -> Dataset:
    """A set with train and test images: validation is held out of train, test stays whole."""
    total = len(train)
    require_enough(train, ("validation",), classes, recipe.source)
    train, valid = hold_out(train, recipe.validation_fraction, recipe.split_seed)
    note = describe_hold_out("validation", len(valid), total, "training images", recipe.split_seed)
    return Dataset(recipe.source, classes, train, valid, test, sha256, (note,))


def _announce_download(name: str, folder: Path) -> None:
    if not folder.exists():
        say(f"downloading {name} into {folder.parent}")


def _no_download(name: str, archive: Path, error: BaseException) -> DataError:
    return DataError(
        f"{name} could not be downloaded ({one_line(error, last=True)})",
        f"put its archive at {archive} by hand, or give --data DIR",
    )
