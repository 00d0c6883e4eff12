"""Batches of views: mixup is one convex combination of images and targets, and a smaller view shows the same part."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from toolkit.data.batches import TrainingViews
from toolkit.data.mixing import draw_mix
from toolkit.data.pixels import Pixels, load_pixels
from toolkit.data.preprocess import Preprocess
from toolkit.data.sources import load_dataset
from toolkit.settings import DataRecipe, Mix

INDICES = np.array([3, 17, 0, 35, 8])


def recipe(**values: object) -> DataRecipe:
    return DataRecipe.model_validate({"image_size": 32, "resize": 0, **values})


@pytest.fixture(scope="module")
def pixels(class_folders: Path) -> Pixels:
    data = recipe(source=str(class_folders))
    return load_pixels(load_dataset(data), "train", Preprocess.from_recipe(data))


def views(pixels: Pixels, mixup: float = 0.0, seed: int = 0, **values: object) -> TrainingViews:
    return TrainingViews(pixels, recipe(**values), num_classes=3, seed=seed, mix=Mix(mixup), device="cpu")


def test_mixup_mixes_images_and_targets_by_the_same_share(pixels: Pixels) -> None:
    plain, mixed = views(pixels, rotation_degrees=10), views(pixels, mixup=0.4, rotation_degrees=10)
    mix = draw_mix(Mix(0.4), len(pixels), seed=0, view=2)
    share = torch.from_numpy(mix.weights[INDICES])
    own, partner = plain.render(INDICES, 2), plain.render(mix.partners[INDICES], 2)
    expected = share.view(-1, 1, 1, 1) * own + (1 - share.view(-1, 1, 1, 1)) * partner
    torch.testing.assert_close(mixed.render(INDICES, 2), expected, rtol=0, atol=1e-6)

    one_hot = np.eye(3)
    labels = pixels.labels
    wanted = mix.weights[INDICES, None] * one_hot[labels[INDICES]]
    wanted = wanted + (1 - mix.weights[INDICES, None]) * one_hot[labels[mix.partners[INDICES]]]
    targets = mixed.targets(INDICES, 2)
    np.testing.assert_allclose(targets.numpy(), wanted, atol=1e-6)
    torch.testing.assert_close(targets.sum(1), torch.ones(len(INDICES)))
    assert torch.equal(mixed.labels(INDICES), torch.from_numpy(labels[INDICES])), "hits are counted on own labels"


def test_without_mixup_targets_are_labels(pixels: Pixels) -> None:
    targets = views(pixels).targets(INDICES, 0)
    assert targets.dtype == torch.int64
    assert targets.tolist() == pixels.labels[INDICES].tolist()


def test_a_mixed_view_is_fixed_by_seed_image_and_view_alone(pixels: Pixels) -> None:
    mixed = views(pixels, mixup=1.0)
    whole = mixed.render(np.arange(len(pixels)), 4)
    torch.testing.assert_close(mixed.render(INDICES, 4), whole[INDICES], rtol=0, atol=0)
    torch.testing.assert_close(views(pixels, mixup=1.0).render(INDICES, 4), whole[INDICES], rtol=0, atol=0)
    assert not torch.equal(mixed.render(INDICES, 5), whole[INDICES])
    assert not torch.equal(views(pixels, mixup=1.0, seed=1).render(INDICES, 4), whole[INDICES])


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_partners_are_a_permutation_and_shares_are_beta(alpha: float) -> None:
    mix = draw_mix(Mix(alpha), 20_000, seed=1, view=0)
    assert sorted(mix.partners.tolist()) == list(range(20_000))
    assert mix.weights.dtype == np.float32
    assert abs(mix.weights.mean() - 0.5) < 0.01
    assert mix.weights.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)


def test_half_the_size_without_rotation_is_the_mean_of_2_by_2(pixels: Pixels) -> None:
    source = views(pixels, crop_padding=4)
    full, half = source.render(INDICES, 1), source.render(INDICES, 1, side=16)
    assert half.shape == (5, 3, 16, 16)
    torch.testing.assert_close(half, F.avg_pool2d(full, 2), rtol=0, atol=1e-5)


@pytest.mark.parametrize("side", [8, 20, 24])
def test_a_smaller_view_is_the_same_view_resized(pixels: Pixels, side: int) -> None:
    source = views(pixels, crop_padding=4)
    full = source.render(INDICES, 1)
    expected = F.interpolate(full, size=(side, side), mode="bilinear", align_corners=False, antialias=False)
    torch.testing.assert_close(source.render(INDICES, 1, side=side), expected, rtol=0, atol=1e-5)


def test_a_smaller_turned_view_shows_the_same_part() -> None:
    """On a smooth picture two samplings differ little, and another angle or flip would differ much."""
    ramp = np.stack(np.broadcast_arrays(*np.ogrid[0:200:50j, 0:240:60j], 128), axis=-1).astype(np.uint8)
    smooth = Pixels(
        ("a",), np.array([0]), np.array([50]), np.array([60]), ramp.reshape(-1), np.array([0]),
        Preprocess.from_recipe(recipe()),
    )  # fmt: skip
    source = views(smooth, rotation_degrees=30.0)
    for view in range(4):
        full = source.render(np.array([0]), view)
        small = source.render(np.array([0]), view, side=16)
        inside = (slice(None), slice(None), slice(5, -5), slice(5, -5))
        torch.testing.assert_close(small[inside], F.avg_pool2d(full, 2)[inside], rtol=0, atol=0.02)


def test_views_are_channels_last(pixels: Pixels) -> None:
    for source in (views(pixels), views(pixels, rotation_degrees=5), views(pixels, mixup=0.2)):
        assert source.render(INDICES, 0).is_contiguous(memory_format=torch.channels_last)
