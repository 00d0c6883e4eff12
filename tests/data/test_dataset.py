"""The images of a split that are taken if not all are."""

import pytest

from toolkit.data.dataset import spread


@pytest.mark.parametrize(
    ("available", "wanted", "places"),
    [
        (10, 4, [0, 3, 6, 9]),
        (10, 1, [0]),
        (3, 3, [0, 1, 2]),
        (3, 9, [0, 1, 2]),
        (5, 0, []),
        (0, 4, []),
    ],
)
def test_images_are_spread_evenly_and_none_comes_twice(available: int, wanted: int, places: list[int]) -> None:
    assert spread(available, wanted).tolist() == places
