"""Images in memory that cannot become a data set."""

import numpy as np
import pytest

import toolkit
from toolkit.errors import DataError

PICTURE = np.zeros((8, 8, 3), np.uint8)


def test_a_picture_without_pixels_is_refused() -> None:
    with pytest.raises(DataError, match=r"image 1 has no pixels: \(0, 8, 3\); leave it out"):
        toolkit.from_arrays(([PICTURE, PICTURE[:0]], [0, 1]))


def test_a_label_that_names_no_class_is_refused() -> None:
    with pytest.raises(DataError, match=r"label 1 .*is 'bird', which is no class; known are: cat, dog"):
        toolkit.from_arrays(([PICTURE, PICTURE], ["cat", "bird"]), classes=["cat", "dog"])
