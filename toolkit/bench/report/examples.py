"""Test images that the demo shows: one of each class, and those on which teacher and student differ.

They lie in one file of the model directory, examples.zip: an index.json and PNG files. Each picture is resized as the
networks' preprocessing does and not cropped, so that preprocessing it again gives the pixels that were measured.

N images, C classes.
"""

import io
import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from toolkit.bench.measure.images import BenchImages
from toolkit.data.dataset import spread
from toolkit.data.picture_file import open_bytes
from toolkit.data.pixels import Pixels
from toolkit.data.preprocess import UNREADABLE, why_unreadable
from toolkit.errors import ArtifactError
from toolkit.files import write_atomically
from toolkit.runtimes.base import softmax

SCHEMA = 1
INDEX = "index.json"
MOST_EXAMPLES = 12
"""Classes of which one image is kept; if there are more classes, these are spread evenly."""
MAX_MEMBER_BYTES = 2**28
"""A file in the archive is cut off here: a small archive can unpack to fill the memory."""


@dataclass(frozen=True)
class Example:
    """A test image and both predictions for it; `file` is its name in the archive, `name` that in the data set.

    What the teacher said is None if no teacher was measured.
    """

    file: str
    name: str
    label: str
    teacher: str | None
    teacher_confidence: float | None
    student: str
    student_confidence: float


@dataclass(frozen=True)
class Examples:
    """The content of examples.zip. `differing` counts all images, of `images`, on which the two differ, kept or not."""

    dataset: str
    images: int
    differing: int
    examples: tuple[Example, ...]
    disagreements: tuple[Example, ...]
    """Most confident first: by the mean of the two networks' confidences."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises ArtifactError unless `write_examples` wrote the file."""
        try:
            with zipfile.ZipFile(path) as archive:
                index = json.loads(_read_member(archive, INDEX))
            if index.pop("schema") != SCHEMA:
                raise ValueError("another schema")
            for key in ("examples", "disagreements"):
                index[key] = tuple(Example(**entry) for entry in index[key])
            return cls(**index)
        except (OSError, zipfile.BadZipFile, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(f"{path} cannot be read ({error})", "make it again with: toolkit bench") from None


def read_picture(path: Path, example: Example) -> Image.Image:
    """The picture of an example in the archive `path`. Raises ArtifactError if it is damaged or missing."""
    try:
        with zipfile.ZipFile(path) as archive:
            image = open_bytes(_read_member(archive, example.file))
            image.load()
    except (zipfile.BadZipFile, *UNREADABLE) as error:
        raise ArtifactError(
            f"{path}, {example.file}, cannot be read ({why_unreadable(error)})", "make it again with: toolkit bench"
        ) from None
    return image


def _read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    with archive.open(name) as file:
        return file.read(MAX_MEMBER_BYTES)


def write_examples(
    path: Path,
    images: BenchImages,
    teacher_logits: NDArray[np.floating] | None,
    student_logits: NDArray[np.floating],
    most_disagreements: int,
) -> None:
    """Keep examples and at most `most_disagreements` images on which the two differ.

    Logits are (N, C), of the N images, None if no teacher was measured. Raises ArtifactError if `path` cannot be
    written.
    """
    teacher, student = None if teacher_logits is None else softmax(teacher_logits), softmax(student_logits)
    classes, pixels, chosen, labels = images.dataset.classes, images.pixels, images.chosen, images.labels
    differing = np.empty(0, np.int64) if teacher is None else find_disagreements(teacher, student)

    def say(probabilities: NDArray[np.floating], i: int) -> tuple[str, float]:
        return classes[probabilities[i].argmax()], float(probabilities[i].max())

    def describe(i: int) -> Example:
        name = pixels.names[chosen[i]]
        theirs, theirs_confidence = (None, None) if teacher is None else say(teacher, i)
        ours, confidence = say(student, i)
        return Example(f"{chosen[i]:06d}.png", name, classes[labels[i]], theirs, theirs_confidence, ours, confidence)

    examples = [describe(i) for i in first_of_classes(labels, len(classes))]
    disagreements = [describe(i) for i in differing[:most_disagreements]]
    index = Examples(images.dataset.name, len(images), len(differing), tuple(examples), tuple(disagreements))
    with write_atomically(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        archive.writestr(INDEX, json.dumps({"schema": SCHEMA, **asdict(index)}, indent=1, ensure_ascii=False))
        for file in dict.fromkeys(example.file for example in (*examples, *disagreements)):
            archive.writestr(file, _png(pixels, int(Path(file).stem)))


def find_disagreements(teacher: NDArray[np.floating], student: NDArray[np.floating]) -> NDArray[np.int64]:
    """Indices of the images that get different classes, from probabilities (N, C); the most confident first."""
    differ = np.flatnonzero(teacher.argmax(1) != student.argmax(1))
    confidence = teacher[differ].max(1) + student[differ].max(1)
    return differ[np.argsort(-confidence, kind="stable")]


def first_of_classes(labels: NDArray[np.integer], num_classes: int) -> list[int]:
    """The first image of each class, in the order of classes, whether its predicted class is right or wrong.

    A class without images has none. If there are more than MOST_EXAMPLES classes, some are chosen, spread evenly.
    """
    firsts = (np.flatnonzero(labels == label)[:1] for label in spread(num_classes, MOST_EXAMPLES))
    return [int(first[0]) for first in firsts if len(first)]


def _png(pixels: Pixels, index: int) -> bytes:
    # Unresized images may be large; their centre is all that a network sees of them.
    picture = pixels.whole(index) if pixels.preprocess.resize else pixels.centre(np.array([index]))[0]
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    return stream.getvalue()
