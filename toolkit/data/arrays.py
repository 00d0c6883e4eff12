"""Images in memory → a folder of image files in the cache, which every stage reads as any other folder.

N images, H W pixels.
"""

import io
import operator
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image

from toolkit import console
from toolkit.console import name_some, printable
from toolkit.data.cache import REMEDY, cache_folder
from toolkit.data.dataset import Split
from toolkit.data.parallel import run_in_blocks
from toolkit.data.preprocess import UNREADABLE, decode_rgb, why_unreadable
from toolkit.errors import DataError, one_line

SomeImages = np.ndarray | Sequence[np.ndarray | Image.Image]
"""uint8 (N, H, W, 3) or grey (N, H, W); or N arrays and PIL images of any sizes."""
Labels = np.ndarray | Sequence[int] | Sequence[str]
"""N class numbers from 0, or N class names."""


def from_arrays(
    train: tuple[SomeImages, Labels],
    valid: tuple[SomeImages, Labels] | None = None,
    test: tuple[SomeImages, Labels] | None = None,
    *,
    classes: Sequence[str] | None = None,
    name: str = "arrays",
) -> Path:
    """Write images with their labels as PNG files, once, and return the folder; `data=` takes it.

    `classes` are the class names in the order of the labels' numbers; absent, names that are labels are sorted, and
    numbers are names. Splits that are absent are drawn from `train`, as for any folder. `name` is what the report calls
    the data set. The folder lies in the cache under the SHA-256 of all this. Raises DataError.
    """
    given = {"train": train, "valid": valid, "test": test}
    splits = {split: _to_pair(pair, split) for split, pair in given.items() if pair is not None}
    if isinstance(classes, str):
        raise DataError(f"classes = {classes!r} is one text", 'give a list of names: ["cat", "dog"]')
    names = _name_classes({split: labels for split, (_, labels) in splits.items()}) if classes is None else [*classes]
    _check_names(names, name)
    number_of = {line: number for number, line in enumerate(names)}
    parts = [_Part.of(split, images, labels, number_of) for split, (images, labels) in splits.items()]
    folder = cache_folder("arrays", _fingerprint(parts, names, name))
    if not folder.is_dir():
        _write(folder, parts, names, name)
    return folder / name


def to_image(value: object, where: str) -> Image.Image:
    """uint8 (H, W, 3), (H, W, 1) or (H, W), or a PIL image of any mode, as an image; DataError names `where`."""
    if isinstance(value, Image.Image):
        if value.mode == "F":
            raise DataError(f"{where} has mode F, whose values have no known range", "scale it to 0 to 255, mode L")
        if 0 in value.size:
            raise DataError(f"{where} has no pixels: {value.size}", "leave it out")
        return value
    pixels = _to_array(value, where)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)):
        what = f"{pixels.dtype} {pixels.shape}" if hasattr(value, "__array__") else f"a {type(value).__name__}"
        raise DataError(f"{where} is {what}, not uint8 (H, W, 3) or (H, W)", _remedy(value, pixels))
    if pixels.size == 0:
        raise DataError(f"{where} has no pixels: {pixels.shape}", "leave it out")
    return Image.fromarray(np.ascontiguousarray(pixels))


def _to_array(value: object, where: str) -> np.ndarray:
    """Whatever numpy takes for an array; DataError if it refuses, as for a tensor on a GPU."""
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{where} is no array: {one_line(error)}", "give an array of numpy's, or a PIL image") from None


def _remedy(value: object, pixels: np.ndarray) -> str:
    if isinstance(value, bytes | bytearray | io.IOBase):
        return "open it first: PIL.Image.open takes files, and io.BytesIO(...) of bytes"
    if pixels.ndim == 4 and pixels.dtype == np.uint8:
        return "for several images give a list: list(images)"
    return "give PIL images, or arrays with values of 0 to 255 and the channels last"


@dataclass(frozen=True)
class _Part:
    """One split: its images as they were given, and a number for each label."""

    split: Split
    images: SomeImages
    labels: list[int]

    @classmethod
    def of(cls, split: Any, images: SomeImages, labels: Labels, number_of: dict[str, int]) -> Self:
        if len(images) != len(labels):
            raise DataError(f"{split} has {len(images)} images and {len(labels)} labels", "give one label per image")
        numbers = [_number_of(label, number_of, f"{split} label {i}") for i, label in enumerate(labels)]
        if split == "train":
            names, seen = [*number_of], set(numbers)
            missing = next((number for number in range(len(names)) if number not in seen), None)
            if missing is not None:
                raise _no_images(names[missing], missing)
        return cls(split, images, numbers)

    def read(self, index: int) -> Image.Image:
        """RGB, or grey if the array is grey."""
        where = f"{self.split} image {index}"
        image = to_image(self.images[index], where)
        try:
            return image if image.mode == "L" else decode_rgb(image)
        except UNREADABLE as error:
            raise DataError(f"{where} cannot be read: {why_unreadable(error)}", "leave it out, or mend it") from None


def _to_pair(pair: Any, split: str) -> tuple[SomeImages, Labels]:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise DataError(f"{split} is not a pair of images and labels", f"give {split}=(images, labels)")
    for values, what in zip(pair, ("images", "labels"), strict=True):
        if not hasattr(values, "__len__") or not hasattr(values, "__getitem__"):
            raise DataError(f"{split} {what} are a {type(values).__name__}", "give a list or an array")
    return pair[0], pair[1]


def _name_classes(labels: dict[str, Labels]) -> list[str]:
    """Names that are labels, sorted; of numbers all up to the highest. `labels` of each split, train first."""
    texts = {str(label) for _, label in _walk(labels) if isinstance(label, str)}
    numbers = {_to_number(label, where) for where, label in _walk(labels) if not isinstance(label, str)}
    if texts and numbers:
        raise DataError(
            f"some labels are names ({min(texts)!r}), and others are numbers ({min(numbers)})",
            "give names only, or whole numbers from 0 only",
        )
    highest = max(numbers, default=-1)
    missing = next((number for number in range(highest + 1) if number not in numbers), None)
    if missing is not None:  # before a stray label of a million becomes a list of names
        raise _no_images(str(missing), missing)
    return sorted(texts) or [str(number) for number in range(highest + 1)]


def _walk(labels: dict[str, Labels]) -> Iterator[tuple[str, object]]:
    """Each label, after where it stands."""
    return ((f"{split} label {i}", label) for split, part in labels.items() for i, label in enumerate(part))


def _no_images(name: str, number: int) -> DataError:
    return DataError(
        f"class {name!r} ({number}) has no images in train", "a network learns from these: give images of every class"
    )


def _number_of(label: object, number_of: dict[str, int], where: str) -> int:
    if isinstance(label, str):
        if label not in number_of:
            raise DataError(
                f"{where} is {str(label)!r}, which is no class", f"known are: {name_some([*number_of], 20)}"
            )
        return number_of[label]
    number = _to_number(label, where)
    if not 0 <= number < len(number_of):
        raise DataError(
            f"{where} is {number}, and there are {len(number_of)} classes", f"give 0 to {len(number_of) - 1}"
        )
    return number


def _to_number(label: Any, where: str) -> int:
    try:
        return operator.index(label)
    except TypeError:
        what = f"an array {np.shape(label)}" if np.ndim(label) else repr(label)
        raise DataError(
            f"{where} is {what}, not a class number or a class name", "give whole numbers from 0, or names"
        ) from None


def _check_names(classes: list[str], name: str) -> None:
    if len(classes) < 2:
        raise DataError(f"there is one class only ({', '.join(classes)})", "a classifier needs at least two")
    for line in classes:
        if not isinstance(line, str) or not line or line != printable(line).strip():
            raise DataError(
                f"class name {line!r} is not allowed", "give one line of visible text, without spaces at either end"
            )
    if twice := next((line for line, times in Counter(classes).items() if times > 1), None):
        raise DataError(f"two classes are called {twice!r}", "give each class a name of its own")
    if not name or Path(name).name != name or name.startswith("."):
        raise DataError(f"name = {name!r} cannot be a folder's", "give a name without slashes")


def _fingerprint(parts: list[_Part], classes: list[str], name: str) -> str:
    """SHA-256 of names, labels, shapes and pixels; its first 32 hexadecimal digits."""
    total = sha256("\n".join((name, *classes)).encode())
    for part in parts:
        for index, label in enumerate(part.labels):
            pixels = np.asarray(part.read(index))
            total.update(f"\n{part.split}\t{label}\t{pixels.shape}\t".encode())
            total.update(pixels.tobytes())
    return total.hexdigest()[:32]


def _write(folder: Path, parts: list[_Part], classes: list[str], name: str) -> None:
    """All files or none; two processes may do it at once."""
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".", dir=folder.parent))
        root = temporary / name
        for part in parts:
            _write_split(root / part.split, part, _folders_of(classes))
        (root / "classes.txt").write_text("".join(f"{line}\n" for line in classes), encoding="utf-8")
        temporary.rename(folder)
    except OSError as error:
        if not folder.is_dir():  # else another process was faster
            raise DataError(f"cannot keep images in the cache, {folder.parent}: {error.strerror}", REMEDY) from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _folders_of(classes: list[str]) -> list[str]:
    """The numbers of the classes, because names may hold a slash; the names if they are these numbers in any order."""
    numbers = [str(number) for number in range(len(classes))]
    return classes if set(classes) == set(numbers) else numbers


def _write_split(root: Path, part: _Part, folders: list[str]) -> None:
    """`root`/<folder of the class>/<index>.png; classes.txt beside the splits has the folders' names."""
    for folder in folders:
        (root / folder).mkdir(parents=True)

    def write(index: int) -> None:
        part.read(index).save(root / folders[part.labels[index]] / f"{index:06d}.png", compress_level=1)

    with console.progress(f"write {part.split}", len(part.labels)) as advance:
        for block in run_in_blocks(write, len(part.labels), 0):
            advance(len(block))
