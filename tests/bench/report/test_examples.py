"""examples.zip: which test images are kept, and that a kept picture is the one that was measured."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from bench_samples import make_dataset
from conftest import make_png
from numpy.typing import NDArray
from PIL import Image

from toolkit.bench.measure.images import BenchImages
from toolkit.bench.report.examples import (
    MOST_EXAMPLES,
    Examples,
    find_disagreements,
    first_of_classes,
    read_picture,
    write_examples,
)
from toolkit.data.pixels import Pixels
from toolkit.data.preprocess import Preprocess
from toolkit.errors import ArtifactError

CLASSES = ("red", "green", "blue")
SIZES = ((20, 31), (40, 25), (22, 22), (33, 20), (21, 29), (20, 20))
"""(H, W) of the test images; all are at least as large as the crop."""


def make_pixels(resize: int = 20, image_size: int = 16) -> Pixels:
    """Six images of three classes, as load_pixels keeps them: resized, not cropped."""
    preprocess = Preprocess(image_size, resize, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in SIZES]
    arrays = [preprocess.keep_middle(picture) for picture in pictures]
    sizes = np.array([array.size for array in arrays])
    return Pixels(
        names=tuple(f"{i}.png" for i in range(len(arrays))),
        labels=np.array([0, 0, 1, 1, 2, 2]),
        heights=np.array([len(array) for array in arrays]),
        widths=np.array([array.shape[1] for array in arrays]),
        data=np.concatenate([array.ravel() for array in arrays]),
        starts=np.concatenate(([0], np.cumsum(sizes)[:-1])),
        preprocess=preprocess,
    )


def choose(pixels: Pixels, chosen: NDArray[np.int64]) -> BenchImages:
    return BenchImages(make_dataset(), pixels, chosen)


def one_hot(answers: list[int], sureness: list[float]) -> np.ndarray:
    """Logits (N, 3) whose largest is at `answers`."""
    logits = np.zeros((len(answers), 3), np.float32)
    logits[np.arange(len(answers)), answers] = sureness
    return logits


TEACHER = one_hot([0, 0, 1, 1, 2, 0], [5, 1, 5, 5, 5, 9])
STUDENT = one_hot([0, 1, 1, 2, 2, 2], [5, 1, 5, 2, 5, 9])


def write(path: Path, pixels: Pixels, most: int = 24) -> Examples:
    write_examples(path, choose(pixels, np.arange(6)), TEACHER, STUDENT, most)
    return Examples.read(path)


def test_the_surest_disagreements_come_first(tmp_path: Path) -> None:
    kept = write(tmp_path / "examples.zip", make_pixels())
    assert (kept.dataset, kept.images, kept.differing) == ("colours", 6, 3)
    assert [one.name for one in kept.disagreements] == ["5.png", "3.png", "1.png"]
    surest = kept.disagreements[0]
    assert (surest.label, surest.teacher, surest.student) == ("blue", "red", "blue")
    assert surest.teacher_confidence == pytest.approx(np.exp(9) / (np.exp(9) + 2))
    means = [one.teacher_confidence + one.student_confidence for one in kept.disagreements]
    assert means == sorted(means, reverse=True)


def test_as_many_are_kept_as_asked_and_all_are_counted(tmp_path: Path) -> None:
    kept = write(tmp_path / "examples.zip", make_pixels(), most=1)
    assert ([one.name for one in kept.disagreements], kept.differing) == (["5.png"], 3)
    assert write(tmp_path / "examples.zip", make_pixels(), most=0).disagreements == ()


@pytest.mark.parametrize(("resize", "image_size"), [(20, 16), (0, 16), (20, 24)], ids=["resize", "as is", "padded"])
def test_preprocessing_a_kept_picture_again_gives_the_pixels_that_were_measured(
    tmp_path: Path, resize: int, image_size: int
) -> None:
    pixels = make_pixels(resize, image_size)
    path = tmp_path / "examples.zip"
    kept = write(path, pixels)
    for one in (*kept.examples, *kept.disagreements):
        index = pixels.names.index(one.name)
        again = pixels.preprocess(read_picture(path, one))
        np.testing.assert_array_equal(again, pixels.centre(np.array([index]))[0])


def test_a_subset_keeps_names_and_labels(tmp_path: Path) -> None:
    chosen = np.array([1, 3, 5])
    path = tmp_path / "examples.zip"
    write_examples(path, choose(make_pixels(), chosen), TEACHER[chosen], STUDENT[chosen], 9)
    kept = Examples.read(path)
    assert [(one.name, one.label) for one in kept.examples] == [("1.png", "red"), ("3.png", "green"), ("5.png", "blue")]


def test_examples_are_the_first_of_each_class() -> None:
    assert first_of_classes(np.array([1, 1, 0, 2, 0]), 3) == [2, 0, 3]
    assert first_of_classes(np.array([1, 1]), 3) == [0]  # no image, no example
    many = first_of_classes(np.arange(100), 100)
    assert len(many) == MOST_EXAMPLES
    assert (many[0], many[-1]) == (0, 99)


def test_agreement_is_no_disagreement() -> None:
    same = np.array([[0.2, 0.8], [0.9, 0.1]])
    assert find_disagreements(same, same).tolist() == []


@pytest.mark.parametrize("content", [b"", b"no zip", None, {"schema": 2}, {"schema": 1}], ids=repr)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes | dict[str, int] | None) -> None:
    path = tmp_path / "examples.zip"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            if content is not None:
                archive.writestr("index.json", json.dumps(content))
    with pytest.raises(ArtifactError, match=r"examples\.zip cannot be read .*; make it again with: toolkit bench"):
        Examples.read(path)


def test_an_archive_cannot_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another's model directory may hold anything: what a file unpacks to has a bound, and so has a picture."""
    path = tmp_path / "examples.zip"
    kept = write(path, make_pixels())
    monkeypatch.setattr("toolkit.bench.report.examples.MAX_MEMBER_BYTES", 100)
    with pytest.raises(ArtifactError, match=r"cannot be read \(image file is truncated"):
        read_picture(path, kept.examples[0])
    with pytest.raises(ArtifactError, match=r"cannot be read .*; make it again with: toolkit bench"):
        Examples.read(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (make_png(60_000, 60_000), r"too large: 60000×60000 px; give a picture of at most 120 million pixels"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a JPEG, PNG, .*"),
    ],
    ids=["bomb", "program"],
)
def test_an_example_is_opened_as_any_picture(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "examples.zip"
    kept = write(path, make_pixels()).examples[0]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(kept.file, content)
    with pytest.raises(ArtifactError, match=rf"examples\.zip, {kept.file}, cannot be read \({reason}"):
        read_picture(path, kept)


def test_without_a_teacher_there_are_examples_and_no_disagreements(tmp_path: Path) -> None:
    path = tmp_path / "examples.zip"
    write_examples(path, choose(make_pixels(), np.arange(6)), None, STUDENT, 9)
    kept = Examples.read(path)
    assert (kept.differing, kept.disagreements) == (0, ())
    assert {(one.teacher, one.teacher_confidence) for one in kept.examples} == {(None, None)}
    assert [one.student for one in kept.examples] == [one.student for one in write(path, make_pixels()).examples]
