"""Images without labels: the folders of data.unlabelled, and which of their images are copies of labelled ones.

Copies of validation and test images are left out, near copies too: what judges the student must not teach it. Copies of
training images stay, as nothing is judged by these. M unlabelled images, P copies.
"""

import contextlib
import hashlib
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from toolkit.console import count, name_some, printable
from toolkit.data.cache import REMEDY, cache_folder
from toolkit.data.dataset import SPLITS, Dataset, Images
from toolkit.data.findings import Finding, say_briefly
from toolkit.data.folders import read_folder
from toolkit.data.formats import FORMAT_NAMES, find_way_out, name_endings
from toolkit.data.hashes import hash_files
from toolkit.data.layouts import SPLIT_FOLDERS
from toolkit.data.near_copies import find_near_copies
from toolkit.data.oddities import SPLIT_WORDS, describe_passed_over
from toolkit.data.picture_file import open_image
from toolkit.data.sources import find_folder
from toolkit.data.survey import Survey, survey
from toolkit.errors import ArtifactError, DataError
from toolkit.files import write_atomically
from toolkit.settings import DataRecipe

COPIES_VERSION = 1
"""A part of the key of a kept CopyTable; raised whenever copies are found in another way."""

NO_LABEL = -1


@dataclass(frozen=True)
class Unlabelled:
    """The images below some folders. Their labels are NO_LABEL, their names begin with the folder as it was given.

    `sha256` covers content and names, but not where the folders lie. `findings` say what was passed over.
    """

    folders: tuple[str, ...]
    images: Images
    sha256: str
    findings: tuple[Finding, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def remarks(self) -> list[str]:
        """What a training says of it, one per line."""
        return say_briefly(self.findings)

    def as_dataset(self) -> Dataset:
        """The same as a data set that has training images alone."""
        nothing = self.images.subset([])
        return Dataset("unlabelled", (), self.images, nothing, nothing, self.sha256)


@dataclass(frozen=True)
class CopyTable:
    """Unlabelled images that are copies of labelled ones, at most one copy per image. int64 (P,), and bool (P,).

    `originals` count through all splits, one after another, in the order of SPLITS; `splits` are indices of SPLITS. An
    `exact` copy is equal in every decoded pixel; near copies are of validation and test images alone.
    """

    copies: np.ndarray
    originals: np.ndarray
    splits: np.ndarray
    exact: np.ndarray

    @property
    def held_out(self) -> np.ndarray:
        """bool (P,): the original is a validation or test image."""
        held_out: np.ndarray = self.splits != SPLITS.index("train")
        return held_out

    @property
    def left_out(self) -> np.ndarray:
        """int64: the unlabelled images that nobody is to learn from."""
        chosen: np.ndarray = self.copies[self.held_out]
        return chosen

    def kept(self, images: Images) -> Images:
        """`images` without those that are left out."""
        return images.subset(np.setdiff1d(np.arange(len(images)), self.left_out))

    @classmethod
    def of(cls, seen: Survey, unlabelled: Survey) -> Self:
        """From a look at all labelled images, and one at the unlabelled ones."""
        held_out = seen.splits != SPLITS.index("train")
        parts = [np.flatnonzero(seen.readable & of)[::-1].tolist() for of in (~held_out, held_out)]
        # of equal ones the last is found: a held-out one before a training image, and of these the first
        firsts = {seen.digests[i].tobytes(): i for part in parts for i in part}
        readable = np.flatnonzero(unlabelled.readable).tolist()
        exact = {j: i for j in readable if (i := firsts.get(unlabelled.digests[j].tobytes())) is not None}
        near = _find_near(seen, unlabelled, [j for j in readable if j not in exact or not held_out[exact[j]]])
        pairs = sorted({**exact, **near}.items())
        copies, originals = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        return cls(copies, originals, seen.splits[originals], np.array([j not in near for j, _ in pairs], dtype=bool))


def find_unlabelled(recipe: DataRecipe, dataset: Dataset) -> Unlabelled | None:
    """The images of `recipe.unlabelled`, None without such folders; no image is decoded.

    Raises DataError for a folder that is not there, has no images, is named twice, or holds or belongs to the
    validation or test images of `dataset`, which `recipe` describes.
    """
    if not recipe.unlabelled:
        return None
    places = {text: find_unlabelled_folder(text) for text in recipe.unlabelled}
    _refuse_nested(recipe.unlabelled, places)
    for text, place in places.items():
        _refuse_held_out(text, place, _held_out_folders(recipe, dataset))
    names: list[str] = []
    paths: list[Path] = []
    findings: list[Finding] = []
    total = hashlib.sha256()
    for text, place in places.items():
        top = read_folder(place)
        pictures = top.all_pictures()
        if not pictures:
            endings = top.unread_endings()
            instead = f", only files with endings that are not read ({name_endings(endings)})" if endings else ""
            remedy = find_way_out(endings) or f"give folders of pictures ({FORMAT_NAMES})"
            raise DataError(f"data.unlabelled: there are no images in {text}{instead}", remedy)
        for picture, content in zip(pictures, hash_files(place, pictures), strict=True):
            total.update(f"\n{picture}\t".encode(errors="surrogateescape") + content)
        names += [printable(f"{text}/{picture}") for picture in pictures]
        paths += [place / picture for picture in pictures]
        findings += describe_passed_over(top.all_passed_over())
    labels = np.full(len(paths), NO_LABEL, dtype=np.int64)
    images = Images(tuple(names), labels, lambda i: open_image(paths[i]))
    return Unlabelled(recipe.unlabelled, images, total.hexdigest(), tuple(findings))


def find_unlabelled_folder(text: str) -> Path:
    """The folder that a text of data.unlabelled names. Raises DataError if there is none."""
    place = Path(text).expanduser()
    if not place.is_dir():
        what = "is a file, not a folder" if place.exists() else "is not an existing folder"
        raise DataError(f"data.unlabelled: {text!r} {what}", "give folders of images, of any depth")
    return place.absolute()


def find_copies(dataset: Dataset, unlabelled: Unlabelled, workers: int = 0) -> CopyTable:
    """The copies among unlabelled images: from the cache, or from a look at every image now.

    `workers` threads; 0: the cores that this process may use. Raises DataError if the cache cannot be written.
    """
    if (known := known_copies(dataset, unlabelled)) is not None:
        return known
    return keep_copies(
        dataset, unlabelled, CopyTable.of(survey(dataset, workers), survey(unlabelled.as_dataset(), workers))
    )


def known_copies(dataset: Dataset, unlabelled: Unlabelled) -> CopyTable | None:
    """The table of an earlier call; None if there is none."""
    path = _table_path(dataset, unlabelled)
    with contextlib.suppress(OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile), np.load(path) as stored:
        return CopyTable(*(stored[name] for name in ("copies", "originals", "splits", "exact")))
    return None


def keep_copies(dataset: Dataset, unlabelled: Unlabelled, table: CopyTable) -> CopyTable:
    """Write `table` for the next call, and return it."""
    try:
        with write_atomically(_table_path(dataset, unlabelled)) as temporary, temporary.open("wb") as file:
            np.savez(file, **vars(table))
    except ArtifactError as error:
        raise DataError(error.problem, REMEDY) from None
    return table


def describe_use(unlabelled: Unlabelled, table: CopyTable, ratio: float) -> str:
    """The line with which a training says what it learns from."""
    near = int((table.held_out & ~table.exact).sum())
    exact, stay = len(table.left_out) - near, int((~table.held_out).sum())
    kinds = " and ".join(f"{number:,} {kind}" for number, kind in ((exact, "exact"), (near, "near")) if number)
    parts = [
        f"unlabelled: {count(len(unlabelled), 'image')} in {name_some(unlabelled.folders)}",
        *([f"{kinds} copies of validation and test images are left out"] if kinds else []),
        *([f"{stay:,} equal to training images stay"] if stay else []),
        f"each step has {ratio:g} of them per labelled image (distill.unlabelled_ratio)",
    ]
    return "; ".join(parts)


def _find_near(seen: Survey, unlabelled: Survey, candidates: list[int]) -> dict[int, int]:
    """Of the unlabelled `candidates`, near copies of validation and test images → their originals."""
    held_out = np.flatnonzero(seen.readable & (seen.splits != SPLITS.index("train")))
    own = np.array(candidates, dtype=np.int64)
    pairs = find_near_copies(
        np.concatenate((seen.thumbnails[held_out], unlabelled.thumbnails[own])),
        np.concatenate((seen.labels[held_out], np.full(len(own), NO_LABEL))),
        np.repeat((0, 1), (len(held_out), len(own))),
    )
    return {int(own[j - len(held_out)]): int(held_out[i]) for i, j in pairs}


def _table_path(dataset: Dataset, unlabelled: Unlabelled) -> Path:
    names = [[*images.names] for images in (*dataset.splits.values(), unlabelled.images)]
    key = json.dumps((COPIES_VERSION, dataset.sha256, unlabelled.sha256, names))
    return cache_folder("copies", f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz")


def _held_out_folders(recipe: DataRecipe, dataset: Dataset) -> Iterator[tuple[str, Path]]:
    """The words for a split and its folder, of validation and test images that have one of their own."""
    if (root := find_folder(recipe.source)) is None:
        return
    for split in SPLITS[1:]:
        folders = {name.partition("/")[0] for name in dataset.splits[split].names}
        if len(folders) == 1 and SPLIT_FOLDERS.get((folder := folders.pop()).lower()) == split:
            yield SPLIT_WORDS[split], root / folder


def _refuse_held_out(text: str, place: Path, held_out: Iterator[tuple[str, Path]]) -> None:
    own = place.resolve()
    for words, folder in held_out:
        other = folder.resolve()
        if own == other:
            relation = "is"
        elif own in other.parents:
            relation = "contains"
        elif other in own.parents:
            relation = "lies in"
        else:
            continue
        raise DataError(
            f"data.unlabelled: {text} {relation} {folder}, the {words} images of the data",
            "give folders without images that judge the student",
        )


def _refuse_nested(given: tuple[str, ...], places: dict[str, Path]) -> None:
    """DataError if an image would be read twice."""
    resolved = [(text, places[text].resolve()) for text in given]
    for number, (text, place) in enumerate(resolved):
        for other, above in [*resolved[:number], *resolved[number + 1 :]]:
            if place.is_relative_to(above):
                relation = "is named twice" if place == above else f"lies in {other}"
                raise DataError(f"data.unlabelled: {text} {relation}", "name each folder once; all below it is read")
