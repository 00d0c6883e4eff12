"""CutMix beside mixup: a box of the partner's, labels by its true area, and one of the two in each view."""

import numpy as np
import pytest
import torch
from test_resident import BATCH, UNLIKE, load, make_views
from torchvision.transforms import v2

from toolkit.data.mixing import draw_mix, mix_targets, mix_views
from toolkit.settings import Mix

COUNT = 20_000


def area(boxes: np.ndarray) -> np.ndarray:
    found: np.ndarray = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return found


def test_a_box_of_whole_pixels_is_cut_as_torchvision_s() -> None:
    views, partners = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8)
    boxes = torch.tensor([[1, 2, 5, 8]]) / 8
    found = mix_views(views, partners, torch.tensor([1 - 24 / 64]), boxes)
    expected = views.clone()
    expected[..., 1:5, 2:8] = partners[..., 1:5, 2:8]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert mix_targets(torch.tensor([0]), torch.tensor([2]), torch.tensor([1 - 24 / 64]), 3).tolist() == [
        [0.625, 0, 0.375]
    ]


@pytest.mark.parametrize("side", [16, 24, 50])
def test_labels_have_the_weight_of_the_area_at_any_size(side: int) -> None:
    """Views of ones and partners of zeros: their mean is the images' own share."""
    mix = draw_mix(Mix(cutmix=1.0), 100, seed=0, view=0)
    assert mix.boxes is not None
    ones = torch.ones(100, 3, side, side)
    mixed = mix_views(ones, ones * 0, torch.from_numpy(mix.weights), torch.from_numpy(mix.boxes))
    torch.testing.assert_close(mixed.mean((1, 2, 3)), torch.from_numpy(mix.weights), rtol=0, atol=1e-5)
    assert len(set(mix.weights.tolist())) > 90


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_boxes_are_distributed_as_torchvision_s(alpha: float) -> None:
    mix = draw_mix(Mix(cutmix=alpha), COUNT, seed=2, view=0)
    assert mix.boxes is not None
    assert sorted(mix.partners.tolist()) == list(range(COUNT))
    np.testing.assert_allclose(mix.weights, 1 - area(mix.boxes), atol=1e-6)
    torch.manual_seed(0)
    transform, images = v2.CutMix(alpha=alpha, num_classes=2), torch.empty(2, 3, 500, 500)
    drawn = [transform.make_params([images]) for _ in range(3000)]
    weights = np.array([values["lam_adjusted"] for values in drawn])
    corners = np.array([values["box"] for values in drawn])[:, [1, 0, 3, 2]] / 500
    at = [0.1, 0.25, 0.5, 0.75, 0.9]
    np.testing.assert_allclose(np.quantile(mix.weights, at), np.quantile(weights, at), atol=0.04)
    for found, expected in zip(mix.boxes.T, corners.T, strict=True):
        np.testing.assert_allclose(np.quantile(found, at), np.quantile(expected, at), atol=0.05)


def test_if_both_are_given_each_view_draws_one_of_them() -> None:
    mix = draw_mix(Mix(mixup=0.4, cutmix=1.0), COUNT, seed=1, view=0)
    assert mix.boxes is not None
    is_cut = area(mix.boxes) > 0
    assert abs(is_cut.mean() - 0.5) < 0.02
    np.testing.assert_allclose(mix.weights[is_cut], 1 - area(mix.boxes)[is_cut], atol=1e-6)
    alone = draw_mix(Mix(mixup=0.4), COUNT, seed=1, view=0)
    assert np.array_equal(mix.weights[~is_cut], alone.weights[~is_cut]), "Beta(α, α)"
    views, partners = torch.rand(2, COUNT, 1, 1, 1).unbind(0)
    weights, boxes = torch.from_numpy(mix.weights), torch.from_numpy(mix.boxes)
    mixed = mix_views(views, partners, weights, boxes)[~is_cut]
    torch.testing.assert_close(mixed, mix_views(views, partners, weights)[~is_cut], rtol=0, atol=0)


def test_a_cut_view_is_its_own_view_with_a_box_of_its_partner_s_view() -> None:
    pixels = load(UNLIKE)
    plain, cut = make_views(pixels, rotation_degrees=10), make_views(pixels, cutmix=1.0, rotation_degrees=10)
    mix = draw_mix(Mix(cutmix=1.0), len(pixels), seed=3, view=2)
    assert mix.boxes is not None
    own, partner = plain.render(BATCH, 2), plain.render(mix.partners[BATCH], 2)
    found = cut.render(BATCH, 2)
    middles = (np.arange(16) + 0.5) / 16
    for i, (top, left, bottom, right) in enumerate(mix.boxes[BATCH]):
        rows, columns = ((middles > start) & (middles < end) for start, end in ((top, bottom), (left, right)))
        inner = np.ix_(range(3), rows.nonzero()[0][1:-1], columns.nonzero()[0][1:-1])
        torch.testing.assert_close(found[i][inner], partner[i][inner], rtol=0, atol=1e-6)
        near = [(middles > start - 0.1) & (middles < end + 0.1) for start, end in ((top, bottom), (left, right))]
        outer = ~np.outer(*near)
        torch.testing.assert_close(found[i][:, outer], own[i][:, outer], rtol=0, atol=1e-6)
    targets = cut.targets(BATCH, 2)
    torch.testing.assert_close(targets.sum(1), torch.ones(len(BATCH)))
    labels = torch.from_numpy(pixels.labels)
    is_other = labels[BATCH] != labels[mix.partners[BATCH]]
    own_share = targets[torch.arange(len(BATCH)), labels[BATCH]]
    expected = torch.where(is_other, torch.from_numpy(mix.weights[BATCH]), 1.0)
    torch.testing.assert_close(own_share, expected)
