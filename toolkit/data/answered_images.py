"""Which row of a file of answers belongs to which image: by name, by file name, or by the content of the files.

N images of a split.
"""

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from toolkit.data.answer_file import AnswerFile
from toolkit.data.dataset import Dataset, Images
from toolkit.data.hashes import UNREADABLE_FILE, hash_files
from toolkit.errors import WeightsError

NONE = -1
"""the row of an image without an answer"""

MOST_MISSING = 0.1
"""share of the training images that may be without an answer"""


@dataclass(frozen=True)
class AnsweredImages:
    """The rows, int64 (N,), of the answers of the training and the validation images; NONE if one has none.

    `foreign` counts the answers that are of none of these images.
    """

    train: np.ndarray
    valid: np.ndarray
    foreign: int

    def describe(self) -> str:
        """`answers for 90 of 90 training and 9 of 10 validation images; 3 are of no such image`"""
        train, valid = (f"{int((rows >= 0).sum()):,} of {len(rows):,}" for rows in (self.train, self.valid))
        text = f"answers for {train} training and {valid} validation images"
        return text + (f"; {self.foreign:,} more are of no such image" if self.foreign else "")


def match_answers(answers: AnswerFile, dataset: Dataset) -> AnsweredImages:
    """The images that the file knows by name, by file name without folders, or by SHA-256.

    Folders in front of the data's own, as in /home/me/data/train/1.png, do not count if no name fits as it is. The way
    that finds most of them counts. Raises WeightsError if the file has no names and the data no files, and if more than
    MOST_MISSING of the training images have no answer.
    """
    parts = (dataset.train, dataset.valid)
    names = [name for part in parts for name in part.names]
    found = np.full(len(names), NONE)
    if answers.names is not None:
        found = _find_names(answers.names, names)
    if answers.sha256 is not None and (found < 0).any():
        found = max(found, _find_contents(answers, dataset, parts), key=lambda rows: int((rows >= 0).sum()))
    train, valid = np.split(found, [len(dataset.train)])
    require_most(train >= 0, dataset.train.names, str(answers.path), f"its own are like {answers.keys[0]}")
    return AnsweredImages(train, valid, len(answers.logits) - len(set(found[found >= 0].tolist())))


def require_most(is_there: np.ndarray, names: Sequence[str], who: str, such_as: str = "") -> None:
    """WeightsError if `who` has no answer for more than MOST_MISSING of the training images; `is_there` is (N,)."""
    if (missing := np.flatnonzero(~is_there)).size > MOST_MISSING * len(names):
        its_own = f" ({such_as})" if such_as else ""
        raise WeightsError(
            f"{who} has no answer for {missing.size:,} of {len(names):,} training images, such as"
            f" {names[missing[0]]}{its_own}; at most a tenth may be missing",
            "compute these too, or name the images as toolkit teacher --save-answers does",
        )


def hash_images(images: Images) -> list[str] | None:
    """SHA-256 of each image's file, hex; None if they are no files."""
    if images.root is None:
        return None
    digests = hash_files(images.root, images.files)
    return ["" if digest == UNREADABLE_FILE else digest.hex() for digest in digests]


def _find(keys: Sequence[str], wanted: Sequence[str]) -> np.ndarray:
    rows: Mapping[str, int] = {key: row for row, key in reversed(list(enumerate(keys)))}  # of copies, the first
    return np.array([rows.get(name, NONE) for name in wanted], dtype=np.int64)


def _find_names(keys: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """By names, whose accents may be encoded in two ways; if none fits, without the folders that stand before them."""
    keys, names = ([unicodedata.normalize("NFC", name) for name in some] for some in (keys, names))
    found = _find(keys, names)
    for above in range(1, max(key.count("/") for key in keys) + 1):
        if (found >= 0).any():
            return found
        shorter = [key.split("/", above)[-1] for key in keys]
        counts = Counter(shorter)
        found = _find([key if counts[key] == 1 else "/" for key in shorter], names)
    return found if (found >= 0).any() else _find_file_names(keys, names)


def _find_file_names(keys: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """By names without folders; one that several images or answers have stands for none of them."""
    here, there = ([name.rpartition("/")[2] for name in some] for some in (names, keys))
    counts = Counter(here), Counter(there)
    return _find(there, [name if all(one[name] == 1 for one in counts) else "/" for name in here])


def _find_contents(answers: AnswerFile, dataset: Dataset, parts: Sequence[Images]) -> np.ndarray:
    hashes = [hash_images(part) for part in parts]
    if None in hashes:
        if answers.names is None:
            raise WeightsError(
                f"{answers.path} knows images by the SHA-256 of their files, and those of {dataset.name} are no files",
                f"give a file with a column name, such as {dataset.train.names[0]}",
            )
        return np.full(sum(map(len, parts)), NONE)
    assert answers.sha256 is not None
    return _find(answers.sha256, [word for part in hashes for word in part or ()])
