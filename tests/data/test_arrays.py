"""Images in memory that cannot become a data set."""

import numpy as np
import pytest
from PIL import Image

import toolkit
from toolkit.errors import DataError

PICTURE = np.zeros((8, 8, 3), np.uint8)


def test_a_picture_without_pixels_is_refused() -> None:
    with pytest.raises(DataError, match=r"image 1 has no pixels: \(0, 8, 3\); leave it out"):
        toolkit.from_arrays(([PICTURE, PICTURE[:0]], [0, 1]))


def test_a_label_that_names_no_class_is_refused() -> None:
    with pytest.raises(DataError, match=r"label 1 .*is 'bird', which is no class; known are: cat, dog"):
        toolkit.from_arrays(([PICTURE, PICTURE], ["cat", "bird"]), classes=["cat", "dog"])


def test_a_pil_image_without_pixels_is_refused() -> None:
    with pytest.raises(DataError, match=r"image 1 has no pixels: \(0, 9\); leave it out"):
        toolkit.from_arrays(([PICTURE, Image.new("RGB", (0, 9))], [0, 1]))


@pytest.mark.parametrize("highest", [2, 10**6, 2**62])
def test_a_stray_high_label_is_named_before_a_list_of_names_is_made(highest: int) -> None:
    with pytest.raises(DataError, match=r"class '1' \(1\) has no images in train; a network learns from these"):
        toolkit.from_arrays((np.stack([PICTURE] * 4), [0, highest] * 2))
    with pytest.raises(DataError, match=r"class '2' \(2\) has no images in train"):
        toolkit.from_arrays((np.stack([PICTURE] * 4), [0, 1] * 2), test=(PICTURE[np.newaxis], [highest]))


def test_a_thousand_classes_without_images_are_one_line() -> None:
    with pytest.raises(DataError, match=r"class '1' \(1\) has no images in train"):
        toolkit.from_arrays((PICTURE[np.newaxis], [0]), classes=[str(i) for i in range(200_000)])
    with pytest.raises(DataError, match=r"label 0 is 'x', which is no class; known are: 0, 1, .*19 and 980 more"):
        toolkit.from_arrays((PICTURE[np.newaxis], ["x"]), classes=[str(i) for i in range(1000)])


def test_a_label_below_zero_is_named() -> None:
    with pytest.raises(DataError, match="train label 1 is -1, and there are 2 classes; give 0 to 1"):
        toolkit.from_arrays((np.stack([PICTURE] * 3), [0, -1, 1]))


@pytest.mark.parametrize("wrong", [None, 0.5, ("b",), b"b"])
def test_the_label_at_fault_is_named_among_names_and_among_numbers(wrong: object) -> None:
    for right in ("a", 0):
        with pytest.raises(DataError, match=r"train label 1 is .*, not a class number or a class name") as caught:
            toolkit.from_arrays(([PICTURE] * 3, [right, wrong, right]))
        assert "None" in str(caught.value) or wrong is not None


def test_names_and_numbers_are_not_mixed() -> None:
    with pytest.raises(
        DataError, match=r"some labels are names \('a'\), and others are numbers \(1\); give names only"
    ):
        toolkit.from_arrays(([PICTURE] * 2, ["a", 1]))


@pytest.mark.parametrize("name", ["a\u202eb", "a\u200bb", "a\nb", " a", ""])
def test_a_class_name_that_nobody_can_read_is_refused(name: str) -> None:
    with pytest.raises(DataError, match="is not allowed; give one line of visible text, without spaces at either end"):
        toolkit.from_arrays(([PICTURE] * 2, [0, 1]), classes=["cat", name])
