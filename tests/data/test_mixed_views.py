"""Batches of labelled and unlabelled images: which ones come together, and in which views."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from distill_samples import DATA, load_splits, make_views

from toolkit.data.batches import TrainingViews, batches
from toolkit.data.mixed_views import MixedIndices, MixedViews, Portions


@pytest.mark.parametrize("ratio", [0.3, 0.5, 1.0, 1.5, 2.5, 7.0])
def test_a_batch_s_size_tells_how_many_of_it_are_labelled(ratio: float) -> None:
    mix = Portions(ratio, 100, 40, 8)
    for labelled in range(1, 60):
        assert mix.labelled_of(labelled + mix.beside(labelled)) == labelled
    assert mix.beside(8) == round(8 * ratio)


def test_an_epoch_s_unlabelled_images_belong_to_its_batches() -> None:
    assert Portions(1.0, 20, 100, 6).per_epoch == 20
    assert Portions(0.5, 20, 100, 6).per_epoch == 3 + 3 + 3 + 1
    assert Portions(1.0, 19, 100, 6, least=2).per_epoch == 19, "the last image joins the batch before"


@pytest.mark.parametrize("count", [7, 20, 55])
def test_every_unlabelled_image_is_shown_before_one_is_shown_again(count: int) -> None:
    mix = Portions(1.0, 20, count, 6)
    order = np.concatenate([mix.order_of(epoch, seed=3) for epoch in range(12)])
    assert len(order) == 12 * 20
    for start in range(0, len(order) - count + 1, count):
        assert sorted(order[start : start + count]) == list(range(count))
    assert not np.array_equal(mix.order_of(0, seed=3), mix.order_of(0, seed=4))


def test_their_view_changes_when_all_were_shown_and_once_per_epoch_at_most() -> None:
    assert [Portions(1.0, 20, 50, 6).view_of(view) for view in range(8)] == [0, 0, 0, 1, 1, 2, 2, 2]
    assert [Portions(2.0, 20, 10, 6).view_of(view) for view in range(4)] == [0, 1, 2, 3]


def make_mixed(class_folders: Path, ratio: float = 1.5, mixup: float = 0.0) -> tuple[MixedViews, TrainingViews]:
    """24 labelled images with 12 others, which stand for unlabelled ones; and views of the labelled ones alone."""
    train, valid = load_splits(class_folders)
    labelled, unlabelled = (make_views(pixels, mixup=mixup) for pixels in (train, valid))
    return MixedViews(labelled, unlabelled, Portions(ratio, len(train), len(valid), 6)), make_views(train, mixup=mixup)


def steps_of(views: MixedViews, epoch: int = 0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    order = np.random.default_rng((0, epoch)).permutation(len(views))
    labelled = list(batches(order, 6, 2))
    return labelled, views.add_unlabelled(labelled, epoch)


def test_a_batch_begins_with_the_labelled_images_that_it_has_without_the_others(class_folders: Path) -> None:
    views, _ = make_mixed(class_folders)
    labelled, mixed = steps_of(views)
    for alone, both in zip(labelled, mixed, strict=True):
        assert np.array_equal(both[: len(alone)], alone)
        assert len(both) == len(alone) + 9
    assert np.array_equal(np.concatenate([both[6:] for both in mixed]), views.portions.order_of(0, seed=0))


@pytest.mark.parametrize("mixup", [0.0, 0.3])
def test_labelled_images_have_their_views_and_targets_and_mix_among_themselves(
    class_folders: Path, mixup: float
) -> None:
    views, alone = make_mixed(class_folders, mixup=mixup)
    part = views.parts(steps_of(views)[1][0], lambda items: items, None)[0]
    assert (len(part), len(part.labelled), len(part.unlabelled)) == (15, 6, 9)
    for view in (0, 2):
        shown = views.render(part, view)
        assert shown.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(shown[:6], alone.render(part.labelled, view))
        assert torch.equal(shown[6:], views.of_unlabelled.render(part.unlabelled, views.portions.view_of(view)))
        assert torch.equal(views.targets(part, view), alone.targets(part.labelled, view))
    assert torch.equal(views.labels(part), alone.labels(part.labelled))
    assert views.render(part, 0, side=16).shape == (15, 3, 16, 16)


@pytest.mark.parametrize("part_size", [1, 2, 4, 7, None])
@pytest.mark.parametrize("ratio", [0.4, 1.0, 2.5])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_parts_of_all_processes_are_the_batch_and_each_has_its_proportion(
    class_folders: Path, part_size: int | None, ratio: float, processes: int
) -> None:
    views, _ = make_mixed(class_folders, ratio)
    batch = steps_of(views)[1][0]
    parts = list(
        itertools.chain.from_iterable(
            views.parts(batch, lambda items, rank=rank: items[rank::processes], part_size) for rank in range(processes)
        )
    )
    assert sorted(np.concatenate([part.labelled for part in parts])) == sorted(batch[:6])
    assert sorted(np.concatenate([part.unlabelled for part in parts])) == sorted(batch[6:])
    if part_size:
        assert max(map(len, parts)) <= max(part_size + 1, 2)
        assert all(abs(len(part.labelled) - len(part) * 6 / len(batch)) < 2 for part in parts)


def test_a_part_may_have_images_of_one_kind_only(class_folders: Path) -> None:
    views, _ = make_mixed(class_folders)
    nothing, some = np.empty(0, np.int64), np.array([1, 3])
    assert torch.equal(views.render(MixedIndices(some, nothing), 1), views.of_labelled.render(some, 1))
    assert views.render(MixedIndices(nothing, some), 1).shape == (2, 3, DATA.image_size, DATA.image_size)
    assert len(views.targets(MixedIndices(nothing, some), 1)) == 0
    views.expect([MixedIndices(some, nothing), MixedIndices(nothing, some)], 0)
