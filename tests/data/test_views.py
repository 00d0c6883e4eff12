"""Views against torchvision's own transforms, and their reproducibility."""

import numpy as np
import pytest
import torch
from torchvision.transforms import functional as TF
from torchvision.transforms.v2 import functional as V2F

from toolkit.data.view_draws import ViewDraw, draw_views
from toolkit.data.views import centre_views, render_views
from toolkit.settings import DataRecipe

SIZES = np.array([[20, 31], [24, 24], [17, 40], [40, 13]])


def recipe(**values: object) -> DataRecipe:
    return DataRecipe.model_validate({"image_size": 24, "resize": 0, **values})


@pytest.fixture
def canvas() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (len(SIZES), 40, 40, 3), dtype=np.uint8)


def reference_crop(image: np.ndarray, draw: ViewDraw, i: int, data: DataRecipe) -> torch.Tensor:
    """torchvision's pad, crop and flip of one image with the choices of `draw`: float (3, S, S) in 0..1."""
    tensor = torch.from_numpy(image).permute(2, 0, 1).float() / 255
    height, width = image.shape[:2]
    side, padding = data.image_size, data.crop_padding
    missing_h = max(side - height - 2 * padding, 0)
    missing_w = max(side - width - 2 * padding, 0)
    modes = {"symmetric": "symmetric", "constant": "constant"}
    tensor = V2F.pad(tensor, [padding], padding_mode=modes[data.padding_mode])
    if missing_w:
        tensor = V2F.pad(tensor, [missing_w, 0], padding_mode=modes[data.padding_mode])
    if missing_h:
        tensor = V2F.pad(tensor, [0, missing_h], padding_mode=modes[data.padding_mode])
    top, left = int(draw.top[i]) + padding + missing_h, int(draw.left[i]) + padding + missing_w
    assert 0 <= top <= tensor.shape[1] - side, "the crop must lie inside the padded image"
    assert 0 <= left <= tensor.shape[2] - side
    tensor = TF.crop(tensor, top, left, side, side)
    return TF.hflip(tensor) if draw.flip[i] else tensor


@pytest.mark.parametrize("padding_mode", ["symmetric", "constant"])
@pytest.mark.parametrize("crop_padding", [0, 3])
def test_crop_and_flip_equal_torchvision_to_the_bit(canvas: np.ndarray, padding_mode: str, crop_padding: int) -> None:
    data = recipe(padding_mode=padding_mode, crop_padding=crop_padding)
    for view in range(5):
        draw = draw_views(data, SIZES, np.arange(len(SIZES)), seed=3, view=view)
        views = render_views(canvas, SIZES, draw, data)
        for i, (height, width) in enumerate(SIZES):
            torch.testing.assert_close(
                views[i], reference_crop(canvas[i, :height, :width], draw, i, data), rtol=0, atol=1e-7
            )


@pytest.mark.parametrize("angle", [-90.0, 90.0, 180.0])
def test_rotation_by_right_angles_turns_as_torchvision_does(canvas: np.ndarray, angle: float) -> None:
    data = recipe(rotation_degrees=180)
    draw = draw_views(data, SIZES, np.arange(len(SIZES)), seed=1, view=0)
    draw = ViewDraw(draw.top, draw.left, draw.flip, np.full(len(SIZES), angle))
    views = render_views(canvas, SIZES, draw, data)
    for i, (height, width) in enumerate(SIZES):
        expected = TF.rotate(reference_crop(canvas[i, :height, :width], draw, i, data), angle)
        torch.testing.assert_close(views[i], expected, rtol=0, atol=1e-4)


def test_rotation_by_any_angle_equals_torchvision_bilinear_inside_the_border() -> None:
    ramp = np.add.outer(np.arange(40), np.arange(40))[..., None].repeat(3, 2).astype(np.uint8) * 2
    data, sizes = recipe(rotation_degrees=15, flip=False), np.array([[40, 40]])
    draw = draw_views(data, sizes, np.array([5]), seed=1, view=2)
    assert 1 < abs(draw.angle[0]) <= 15
    view = render_views(ramp[None], sizes, draw, data)[0]
    crop = reference_crop(ramp, draw, 0, data)
    expected = TF.rotate(crop, draw.angle[0], interpolation=TF.InterpolationMode.BILINEAR)
    torch.testing.assert_close(view[:, 4:-4, 4:-4], expected[:, 4:-4, 4:-4], rtol=0, atol=2e-3)


@pytest.mark.parametrize("side", [24, 16])
def test_a_turned_view_is_flipped_before_it_turns(canvas: np.ndarray, side: int) -> None:
    data, sizes = recipe(rotation_degrees=30), np.full((len(SIZES), 2), 40)
    draw = draw_views(data, sizes, np.arange(len(SIZES)), seed=1, view=0)
    flipped, plain = (
        ViewDraw(draw.top, left, flip, draw.angle)
        for left, flip in ((draw.left, np.ones(len(SIZES), bool)), (40 - 24 - draw.left, np.zeros(len(SIZES), bool)))
    )
    expected = render_views(canvas[:, :, ::-1].copy(), sizes, plain, data, side=side)
    torch.testing.assert_close(render_views(canvas, sizes, flipped, data, side=side), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("padding_mode", ["symmetric", "constant"])
def test_a_crop_over_the_border_is_turned_like_one_that_was_cut_before(canvas: np.ndarray, padding_mode: str) -> None:
    data = recipe(rotation_degrees=30, crop_padding=6, padding_mode=padding_mode, flip=False)
    draw = draw_views(data, SIZES, np.arange(len(SIZES)), seed=4, view=1)
    views = render_views(canvas, SIZES, draw, data)
    for i, (height, width) in enumerate(SIZES):
        crop = (reference_crop(canvas[i, :height, :width], draw, i, data) * 255).round().byte().permute(1, 2, 0).numpy()
        alone = ViewDraw(np.zeros(1, int), np.zeros(1, int), np.zeros(1, bool), draw.angle[i : i + 1])
        expected = render_views(crop[None], np.array([[24, 24]]), alone, recipe(rotation_degrees=30))[0]
        torch.testing.assert_close(views[i], expected, rtol=0, atol=1e-6)


def test_corners_turned_in_from_outside_are_black() -> None:
    white = np.full((1, 30, 30, 3), 255, np.uint8)
    sizes, data = np.array([[30, 30]]), recipe(rotation_degrees=45)
    draw = ViewDraw(np.array([3]), np.array([3]), np.array([False]), np.array([45.0]))
    view = render_views(white, sizes, draw, data)[0]
    assert view[:, 0, 0].max() == 0
    assert view[:, 12, 12].min() == 1


def test_a_view_is_fixed_by_seed_image_and_view_alone() -> None:
    data, images = recipe(rotation_degrees=15, crop_padding=4), np.arange(1000)
    sizes = np.full((1000, 2), 40)
    whole = draw_views(data, sizes, images, seed=7, view=3)
    some = draw_views(data, sizes[:50], images[900:950], seed=7, view=3)
    np.testing.assert_array_equal(whole.angle[900:950], some.angle)
    np.testing.assert_array_equal(whole.top[900:950], some.top)
    for other in (draw_views(data, sizes, images, 8, 3), draw_views(data, sizes, images, 7, 4)):
        assert abs(np.corrcoef(whole.angle, other.angle)[0, 1]) < 0.1
        assert 0.4 < (whole.flip == other.flip).mean() < 0.6


def test_draws_are_uniform_over_what_is_allowed() -> None:
    data, sizes = recipe(rotation_degrees=10, crop_padding=2), np.full((20_000, 2), 26)
    draw = draw_views(data, sizes, np.arange(20_000), seed=0, view=0)
    values, counts = np.unique(draw.left, return_counts=True)
    assert values.tolist() == [-2, -1, 0, 1, 2, 3, 4]
    assert np.abs(counts / 20_000 - 1 / 7).max() < 0.01
    assert abs(draw.flip.mean() - 0.5) < 0.02
    assert -10 <= draw.angle.min() < -9.9 < 9.9 < draw.angle.max() <= 10
    assert abs(draw.angle.mean()) < 0.2
    assert not draw_views(recipe(flip=False), sizes, np.arange(20_000), 0, 0).flip.any()


def test_centre_views_are_the_pixels_over_255() -> None:
    crops = np.random.default_rng(1).integers(0, 256, (2, 5, 5, 3), dtype=np.uint8)
    views = centre_views(torch.from_numpy(crops)).permute(0, 2, 3, 1)
    np.testing.assert_array_equal(views.numpy(), crops.astype(np.float32) / 255)
