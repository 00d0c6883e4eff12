"""Random boxes against torchvision's own draws, and their shares of pixels."""

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from toolkit.data.boxes import NUMBERS, coverage, draw_boxes
from toolkit.data.chance import uniform
from toolkit.data.view_draws import ERASED_RATIO, ERASED_SCALE

COUNT, REFERENCES = 20_000, 2_000


def chance(seed: int = 0) -> np.ndarray:
    return uniform(seed, np.arange(COUNT), 0, NUMBERS)


def quantiles(values: np.ndarray) -> np.ndarray:
    return np.quantile(values, [0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98])


def extents(boxes: np.ndarray) -> np.ndarray:
    """Borders, height, width and area: (7, B)."""
    top, left, bottom, right = boxes.T
    return np.stack((top, left, bottom, right, bottom - top, right - left, (bottom - top) * (right - left)))


def compare(boxes: np.ndarray, references: np.ndarray) -> None:
    for found, expected in zip(extents(boxes), extents(references), strict=True):
        np.testing.assert_allclose(quantiles(found), quantiles(expected), atol=0.04)


@pytest.mark.parametrize(("height", "width"), [(1000, 1000), (600, 1200), (1500, 400)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.5, 0.9)])
def test_crops_are_distributed_as_torchvision_s(height: int, width: int, scale: tuple[float, float]) -> None:
    transform = v2.RandomResizedCrop(8, scale=scale, ratio=(0.75, 4 / 3))
    torch.manual_seed(0)
    image, references = torch.empty(3, height, width), []
    for _ in range(REFERENCES):
        drawn = transform.make_params([image])
        top, left = drawn["top"], drawn["left"]
        references.append([top, left, top + drawn["height"], left + drawn["width"]])
    expected = np.array(references) / [height, width, height, width]
    boxes, fitted = draw_boxes(chance(), scale, (0.75, 4 / 3), np.full(COUNT, width / height))
    compare(boxes, expected)
    assert boxes.min() >= 0
    assert boxes.max() <= 1 + 1e-9
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    ratio = (boxes[:, 3] - boxes[:, 1]) * width / ((boxes[:, 2] - boxes[:, 0]) * height)
    assert ((area > scale[0] - 1e-9) & (area < scale[1] + 1e-9))[fitted].all()
    assert 0.75 - 1e-9 <= ratio.min() <= ratio.max() <= 4 / 3 + 1e-9


@pytest.mark.parametrize(("shape", "box"), [(4.0, [0, 1 / 3, 1, 2 / 3]), (0.25, [1 / 3, 0, 2 / 3, 1])])
def test_what_never_fits_lies_in_the_centre_as_torchvision_has_it(shape: float, box: list[float]) -> None:
    boxes, fitted = draw_boxes(chance()[:5], (0.9, 0.9), (0.75, 4 / 3), np.full(5, shape))
    assert not fitted.any()
    np.testing.assert_allclose(boxes, [box] * 5)


def test_erased_boxes_are_distributed_as_torchvision_s() -> None:
    transform = v2.RandomErasing(p=1)
    torch.manual_seed(0)
    image, references = torch.empty(3, 500, 500), []
    for _ in range(REFERENCES):
        drawn = transform.make_params([image])
        assert drawn["v"] is not None
        references.append([drawn["i"], drawn["j"], drawn["i"] + drawn["h"], drawn["j"] + drawn["w"]])
    boxes, fitted = draw_boxes(chance(1), ERASED_SCALE, ERASED_RATIO, np.ones(COUNT))
    assert fitted.all()
    compare(boxes, np.array(references) / 500)


def test_coverage_of_whole_pixels_is_a_mask() -> None:
    box = torch.tensor([[2, 3, 7, 5]]) / 10
    expected = torch.zeros(1, 1, 10, 10)
    expected[:, :, 2:7, 3:5] = 1
    torch.testing.assert_close(coverage(box, 10), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("side", [7, 16, 33])
def test_the_mean_of_coverage_is_the_box_s_area_at_any_size(side: int) -> None:
    boxes = torch.from_numpy(draw_boxes(chance()[:50], (0.01, 0.9), (0.3, 3.0), np.ones(50))[0]).float()
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    found = coverage(boxes, side)
    assert found.shape == (50, 1, side, side)
    torch.testing.assert_close(found.mean((1, 2, 3)), area, rtol=0, atol=1e-5)
    assert coverage(torch.zeros(2, 4), side).abs().max() == 0
