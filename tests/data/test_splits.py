"""Images held out of others: what a class needs for that."""

import numpy as np
import pytest
from PIL import Image

from toolkit.data.dataset import Images
from toolkit.data.splits import hold_out, require_enough
from toolkit.errors import DataError


def make_images(counts: list[int]) -> Images:
    labels = np.repeat(np.arange(len(counts)), counts)
    return Images(tuple(f"{i}.png" for i in range(len(labels))), labels, lambda _: Image.new("L", (1, 1)))


@pytest.mark.parametrize(
    ("counts", "held_out", "message"),
    [
        ([5, 1], ["test"], "set: class 'b' has 1 image; 2 are needed, one each for training and test"),
        ([2, 5], ["validation", "test"], "class 'a' has 2 images; 3 are needed, one each for training, validation and"),
        ([2, 1], ["validation", "test"], "2 classes have too few images: 'a' (2), 'b' (1); 3 are needed, one each for"),
        ([3, 0], ["test"], "class 'b' has 0 images; 2 are needed"),
    ],
)
def test_every_class_with_too_few_images_is_named(counts: list[int], held_out: list[str], message: str) -> None:
    with pytest.raises(DataError) as caught:
        require_enough(make_images(counts), held_out, ("a", "b"), "set")
    assert message in str(caught.value)


@pytest.mark.parametrize(("counts", "held_out"), [([1, 1], []), ([2, 3], ["test"]), ([3, 3], ["validation", "test"])])
def test_what_is_enough(counts: list[int], held_out: list[str]) -> None:
    images = make_images(counts)
    require_enough(images, held_out, ("a", "b"), "set")
    for _ in held_out:
        images, held = hold_out(images, 0.2, 0)
        assert {*held.labels.tolist()} == {*images.labels.tolist()} == {0, 1}
