"""The stronger views: drawn as torchvision draws them, in its order, and the same at any size and on any device."""

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_device_views import SOURCES, on_device
from test_resident import ALIKE, BATCH, UNLIKE, load, make_views
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as V2F

from toolkit.data.alterations import alter, erase
from toolkit.data.batches import TrainingViews
from toolkit.data.pixels import Pixels
from toolkit.data.preprocess import Preprocess
from toolkit.data.view_draws import ViewDraw, draw_views
from toolkit.data.views import render_views
from toolkit.settings import DataRecipe, Mix

STRONG: dict[str, dict[str, Any]] = {
    "crop": {"crop_scale": (0.2, 0.9)},
    "crop, turned": {"crop_scale": (0.2, 0.9), "rotation_degrees": 20.0},
    "jitter": {"color_jitter": (0.4, 0.4, 0.4, 0.1)},
    "some jitter": {"color_jitter": (0.4, 0.0, 0.0, 0.1)},
    "grey, blur": {"grey": 0.4, "blur": 0.5, "blur_sigma": (0.01, 0.1)},
    "erasing": {"erasing": 0.7, "mean": (0.2, 0.5, 0.7)},
    "randaugment": {"augment": "randaugment", "augment_operations": 3, "augment_magnitude": 12},
    "trivialaugment": {"augment": "trivialaugment", "rotation_degrees": 10.0},
    "all": {
        **{"crop_scale": (0.3, 1.0), "color_jitter": (0.2, 0.2, 0.2, 0.05), "grey": 0.2, "blur": 0.2, "erasing": 0.3},
        **{"augment": "randaugment", "crop_padding": 3, "padding_mode": "constant"},
    },
}


def recipe(**values: object) -> DataRecipe:
    return DataRecipe.model_validate({"image_size": 24, "resize": 0, **values})


def draw(data: DataRecipe, count: int = 20_000, seed: int = 0, view: int = 0) -> ViewDraw:
    return draw_views(data, np.full((count, 2), 100), np.arange(count), seed, view)


class TestDraws:
    def test_new_settings_leave_the_draws_of_others_as_they_were(self) -> None:
        plain = draw(recipe(rotation_degrees=10))
        assert plain.changes == {}
        assert plain.height is None
        strong = draw(recipe(rotation_degrees=10, **{k: v for k, v in STRONG["all"].items() if "crop" not in k}))
        for name in ("top", "left", "flip", "angle"):
            assert np.array_equal(getattr(plain, name), getattr(strong, name))

    def test_a_recipe_of_earlier_versions_has_the_views_that_it_had(self) -> None:
        """The digest is from before there were stronger views."""
        data = recipe(crop_padding=3, rotation_degrees=15.0)
        sizes, found = np.array([[20, 31], [24, 24], [17, 40], [40, 13]]), hashlib.sha256()
        for view in range(5):
            drawn = draw_views(data, sizes, np.arange(4), 3, view)
            for values in (drawn.top, drawn.left, drawn.flip, drawn.angle):
                found.update(values.tobytes())
        images = np.arange(4 * 40 * 40 * 3).reshape(4, 40, 40, 3).astype(np.uint8)
        views = render_views(images, sizes, drawn, data.model_copy(update={"rotation_degrees": 0.0}))
        found.update((views * 255).round().byte().contiguous().numpy().tobytes())
        assert found.hexdigest() == "b621dd956c38b8bedd8cfcc95daa4d55edba4a5c596ad580107ffe6a21062ff3"

    @pytest.mark.parametrize("name", list(STRONG))
    def test_they_are_fixed_by_seed_image_and_view_alone(self, name: str) -> None:
        data = recipe(**STRONG[name])
        sizes, images = np.full((1000, 2), 100), np.arange(1000)
        whole = draw_views(data, sizes, images, 7, 3).tensors()
        some = draw_views(data, sizes[:50], images[900:950], 7, 3).tensors()
        others = [draw_views(data, sizes, images, *key).tensors() for key in ((8, 3), (7, 4))]
        for key, values in some.items():
            assert torch.equal(values, whole[key][900:950]), key
            assert all(not torch.equal(other[key], whole[key]) or key == "warp" for other in others), key

    def test_jitter_is_torchvision_s(self) -> None:
        reach = (0.4, 1.5, 0.2, 0.1)
        drawn = draw(recipe(color_jitter=reach)).changes
        transform = v2.ColorJitter(*reach)
        names = ("brightness", "contrast", "saturation", "hue")
        torch.manual_seed(0)
        references = [transform.make_params([]) for _ in range(3000)]
        for number, name in enumerate(names):
            expected = np.array([values[f"{name}_factor"] for values in references])
            low, high = getattr(transform, name)
            found = drawn["factors"][:, number]
            assert low - 1e-6 <= found.min() < low + 0.02 * (high - low)
            assert high - 0.02 * (high - low) < found.max() <= high + 1e-6
            at = [0.1, 0.5, 0.9]
            np.testing.assert_allclose(np.quantile(found, at), np.quantile(expected, at), atol=0.06 * (high - low))
        orders, counts = np.unique(drawn["order"], axis=0, return_counts=True)
        assert len(orders) == 24
        assert (np.sort(orders, 1) == np.arange(4)).all()
        assert np.abs(counts / 20_000 - 1 / 24).max() < 0.007

    def test_shares_and_ranges_are_those_of_the_settings(self) -> None:
        drawn = draw(recipe(grey=0.3, blur=0.6, blur_sigma=(0.01, 0.05), erasing=0.25)).changes
        assert abs(drawn["is_grey"].mean() - 0.3) < 0.015
        assert abs(drawn["is_blurred"].mean() - 0.6) < 0.015
        assert 0.01 <= drawn["sigma"].min() < 0.0101
        assert 0.0499 < drawn["sigma"].max() <= 0.05
        assert abs(drawn["sigma"].mean() - 0.03) < 0.001
        assert abs((drawn["erased"][:, 2] > 0).mean() - 0.25) < 0.015
        assert abs(np.corrcoef(drawn["is_grey"], drawn["is_blurred"])[0, 1]) < 0.03

    def test_crops_lie_within_their_images(self) -> None:
        sizes = np.tile([[20, 31], [24, 24], [17, 40], [300, 13]], (500, 1))
        drawn = draw_views(recipe(crop_scale=(0.05, 1.0), crop_padding=4), sizes, np.arange(2000), 0, 0)
        assert drawn.height is not None
        assert drawn.width is not None
        assert min(drawn.top.min(), drawn.left.min()) >= 0
        assert (drawn.top + drawn.height <= sizes[:, 0] + 1e-9).all()
        assert (drawn.left + drawn.width <= sizes[:, 1] + 1e-9).all()


class TestRendering:
    @pytest.mark.parametrize("flip", [False, True])
    @pytest.mark.parametrize("box", [(0, 0, 40, 40), (3, 5, 30, 17), (10, 20, 6, 9), (39, 0, 1, 40)])
    def test_a_resized_crop_is_torchvision_s(self, box: tuple[int, int, int, int], flip: bool) -> None:
        image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        top, left, height, width = (np.array([float(value)]) for value in box)
        drawn = ViewDraw(top, left, np.array([flip]), np.zeros(1), height, width)
        view = render_views([image], np.array([[40, 40]]), drawn, recipe(crop_scale=(0.1, 1)))
        tensor = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
        expected = V2F.resized_crop(tensor, *box, [24, 24], antialias=False)
        expected = V2F.hflip(expected) if flip else expected
        torch.testing.assert_close(view, expected, rtol=0, atol=1e-5)

    def test_erasing_whole_pixels_is_torchvision_s(self) -> None:
        views, fill = torch.rand(2, 3, 10, 10), (0.1, 0.5, 0.9)
        found = erase(views, torch.tensor([[2, 3, 7, 5], [0, 0, 0, 0]]) / 10, fill)
        expected = V2F.erase(views[0], 2, 3, 5, 2, torch.tensor(fill)[:, None, None])
        torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-6)
        assert torch.equal(found[1], views[1])

    @pytest.mark.parametrize("whole", [True, False])
    def test_colours_change_one_after_the_other_as_in_torchvision(self, whole: bool) -> None:
        data = recipe(color_jitter=(0.4, 0.4, 0.4, 0.1), grey=0.3, blur=0.5, blur_sigma=(0.02, 0.1), erasing=0.5)
        drawn = draw(data, 40, seed=2).changes
        views = torch.rand(40, 3, 24, 24)
        found = alter(views, {name: torch.from_numpy(values) for name, values in drawn.items()}, data, whole=whole)
        assert found.is_contiguous(memory_format=torch.channels_last)
        change = (V2F.adjust_brightness, V2F.adjust_contrast, V2F.adjust_saturation, V2F.adjust_hue)
        for i, view in enumerate(views):
            for number in drawn["order"][i]:
                view = change[number](view, float(drawn["factors"][i, number]))
            if drawn["is_grey"][i]:
                view = V2F.rgb_to_grayscale(view, 3)
            if drawn["is_blurred"][i]:
                view = V2F.gaussian_blur(view, [17, 17], [float(drawn["sigma"][i]) * 24] * 2)
            box = torch.from_numpy(drawn["erased"][i : i + 1])
            torch.testing.assert_close(found[i], erase(view[None], box, data.mean)[0], rtol=0, atol=1e-5)

    def test_the_policy_comes_before_the_colours_and_these_before_erasing(self) -> None:
        data = recipe(augment="randaugment", augment_operations=1, color_jitter=(0.9, 0, 0, 0), erasing=1.0)
        drawn = {name: torch.from_numpy(values) for name, values in draw(data, 30).changes.items()}
        views = torch.rand(30, 3, 24, 24)
        steps = [("operations", "strengths", "warps"), ("factors", "order"), ("erased",)]
        expected = views
        for names in steps:
            expected = alter(expected, {name: drawn[name] for name in names}, data, whole=False)
        assert torch.equal(alter(views, drawn, data, whole=False), expected)


@pytest.mark.parametrize("name", list(STRONG))
def test_an_image_has_the_same_view_in_any_batch(name: str) -> None:
    views = make_views(load(UNLIKE), 0.3, cutmix=1.0, **STRONG[name])
    for view in range(4):
        whole = views.render(np.arange(5), view)
        torch.testing.assert_close(views.render(BATCH, view), whole[BATCH], rtol=0, atol=1e-6)


class TestDevices:
    @pytest.mark.parametrize("source", SOURCES)
    @pytest.mark.parametrize("sizes", [ALIKE, UNLIKE])
    @pytest.mark.parametrize("name", list(STRONG))
    @pytest.mark.parametrize("side", [16, 24])
    def test_views_and_targets_are_those_of_the_cpu(
        self, source: str, sizes: list[tuple[int, int]], name: str, side: int
    ) -> None:
        pixels, mix = load(sizes), {"mixup": 0.3, "cutmix": 1.0}
        expected = make_views(pixels, **mix, **STRONG[name])
        views = on_device(make_views(pixels, **mix, **STRONG[name]), source)
        chosen = views.upload(BATCH)
        for view in (0, 1, 0):
            views.expect([chosen], view)
            found = views.render(chosen, view, side)
            torch.testing.assert_close(found, expected.render(BATCH, view, side), rtol=0, atol=1e-5)
            assert torch.equal(views.targets(chosen, view), expected.targets(BATCH, view))
            assert found.is_contiguous(memory_format=torch.channels_last)
            assert -1e-5 < found.min() <= found.max() < 1 + 1e-5, "sampling rounds"

    @pytest.mark.parametrize("source", SOURCES)
    def test_another_view_s_draws_lie_where_the_last_one_s_did(self, source: str) -> None:
        views = on_device(make_views(load(UNLIKE), 0.4, cutmix=1.0, **STRONG["all"]), source).on_device
        assert views is not None
        views.show(0)
        places = {name: values.data_ptr() for name, values in views._drawn.items()}
        assert {"height", "operations", "factors", "order", "is_grey", "sigma", "erased", "boxes"} < places.keys()
        views.show(1)
        assert {name: values.data_ptr() for name, values in views._drawn.items()} == places

    @pytest.mark.gpu
    @pytest.mark.parametrize("source", SOURCES)
    @pytest.mark.parametrize("name", list(STRONG))
    def test_on_a_gpu_views_are_the_same(self, source: str, name: str) -> None:
        pixels = load(UNLIKE)
        if source == "host":
            pixels.residents["cuda:0"] = None
        on_gpu = make_views(pixels, 0.3, "cuda:0", cutmix=1.0, **STRONG[name])
        on_cpu = make_views(pixels, 0.3, cutmix=1.0, **STRONG[name])
        for side in (16, 24):
            chosen = on_gpu.upload(BATCH)
            found, expected = on_gpu.render(chosen, 1, side).cpu(), on_cpu.render(BATCH, 1, side)
            # a value on the edge of a step of posterize, solarize or equalize may lie on its other side
            assert ((found - expected).abs() > 2e-3).float().mean() < 0.01
            torch.testing.assert_close(on_gpu.targets(chosen, 1).cpu(), on_cpu.targets(BATCH, 1))


def smooth_pixels(factor: int, data: DataRecipe) -> Pixels:
    """Six smooth pictures of 60·`factor` to 84·`factor` px; larger ones are the same pictures, decoded larger."""
    generator, pictures = np.random.default_rng(4), []
    for i in range(6):
        coarse = Image.fromarray(generator.integers(30, 226, (4, 5, 3), dtype=np.uint8))
        large = coarse.resize(((84 - 4 * i) * 4, (60 + 2 * i) * 4), Image.Resampling.BICUBIC)
        pictures.append(np.asarray(large.reduce(4 // factor)))
    sizes = np.array([picture.shape[:2] for picture in pictures])
    starts = np.concatenate(([0], np.cumsum(sizes.prod(1) * 3)[:-1]))
    flat = np.concatenate([picture.ravel() for picture in pictures])
    names = tuple(map(str, range(6)))
    return Pixels(names, np.arange(6) % 2, sizes[:, 0], sizes[:, 1], flat, starts, Preprocess.from_recipe(data))


def enlarged(data: DataRecipe, factor: int) -> DataRecipe:
    lengths = ("image_size", "resize", "crop_padding")
    return data.model_copy(update={name: getattr(data, name) * factor for name in lengths})


def render(data: DataRecipe, factor: int, view: int, side: int | None = None) -> Tensor:
    larger = enlarged(data, factor)
    mix = Mix(cutmix=1.0)
    views = TrainingViews(smooth_pixels(factor, larger), larger, 2, seed=1, mix=mix, device="cpu")
    return views.render(np.arange(6), view, side)


SAME_AT_ANY_SIZE = {**STRONG, "plain": {"crop_padding": 8, "rotation_degrees": 10.0}}


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("name", list(SAME_AT_ANY_SIZE))
def test_a_larger_picture_with_larger_settings_gives_the_same_view(name: str, factor: int) -> None:
    """As a teacher has it that sees larger images than its student."""
    data = recipe(**{"image_size": 48, "resize": 60, "crop_padding": 4, **SAME_AT_ANY_SIZE[name]})
    for view in range(3):
        small, large = render(data, 1, view), F.avg_pool2d(render(data, factor, view), factor)
        difference, other = (small - large).abs(), (small - F.avg_pool2d(render(data, factor, view + 1), factor)).abs()
        # a plain crop may begin a pixel later, and sampling differs at edges
        assert difference.mean() < 0.025, (view, difference.mean())
        assert difference.mean() < 0.3 * other.mean()


@pytest.mark.parametrize("name", list(SAME_AT_ANY_SIZE))
def test_a_smaller_rendering_is_the_same_view(name: str) -> None:
    data = recipe(**{"image_size": 48, "resize": 60, "crop_padding": 4, **SAME_AT_ANY_SIZE[name]})
    for view in range(3):
        half, other = (render(data, 1, number, side=24) for number in (view, view + 1))
        difference = (F.avg_pool2d(render(data, 1, view), 2) - half).abs().mean()
        # equalize tells apart values that are alike: dark corners are sampled in another way
        assert difference < 0.04
        assert difference < 0.3 * (half - other).abs().mean()


def test_rotation_and_the_first_move_of_a_policy_are_one_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    sample = F.grid_sample
    monkeypatch.setattr(F, "grid_sample", lambda *args, **options: calls.append(1) or sample(*args, **options))
    views = make_views(load(ALIKE), crop_scale=(0.3, 0.8), rotation_degrees=10.0, augment="trivialaugment")
    views.render(BATCH, 0, 24)
    assert len(calls) == 1


def test_a_turned_view_that_a_policy_moves_is_turned_first() -> None:
    image = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    data = recipe(image_size=48, rotation_degrees=30, augment="trivialaugment", flip=True)
    options: dict[str, Any] = {"interpolation": InterpolationMode.BILINEAR}
    for number in range(40):
        drawn = draw_views(data, np.array([[48, 48]]), np.array([number]), 0, 0)
        move = int(drawn.changes["operations"][0, 0])
        if move not in (1, 3):
            continue
        view = render_views([image], np.array([[48, 48]]), drawn, data)[0]
        tensor = torch.from_numpy(image).permute(2, 0, 1).float() / 255
        expected = V2F.rotate(V2F.hflip(tensor) if drawn.flip[0] else tensor, float(drawn.angle[0]), **options)
        amount = float(drawn.changes["warps"][0, 0, 2].real)
        if move == 1:
            shear = [float(np.degrees(np.arctan(amount))), 0.0]
            expected = V2F.affine(expected, 0.0, [0, 0], 1.0, shear, center=[0, 0], **options)
        else:
            expected = V2F.affine(expected, 0.0, [-amount * 24, 0.0], 1.0, [0.0, 0.0], **options)
        inside = V2F.affine(torch.ones(1, 48, 48), 0.0, [0, 0], 0.5, [0.0, 0.0])[0] > 0
        assert (view - expected)[:, inside].abs().mean() < 0.04, (move, number)
