"""Views that are made on a device are to the bit those of the memory map, wherever their pixels are."""

import itertools
import threading
import time
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from test_resident import ALIKE, BATCH, UNLIKE, load, make_views

from toolkit.data import host_crops
from toolkit.data.batches import TrainingViews
from toolkit.data.device_views import DeviceViews
from toolkit.data.host_crops import CentreCrops, HostCrops, ViewCrops
from toolkit.data.pixels import Pixels
from toolkit.data.resident import ResidentPixels
from toolkit.settings import DataRecipe

SOURCES = ["resident", "host"]


def on_device(views: TrainingViews, source: str) -> TrainingViews:
    """The same views, made as on a GPU that has room for the pixels, or has none."""
    views.on_device = DeviceViews(views, ResidentPixels(views.pixels, "cpu") if source == "resident" else None)
    return views


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("sizes", [ALIKE, UNLIKE])
@pytest.mark.parametrize(("padding_mode", "crop_padding"), [("symmetric", 0), ("symmetric", 3), ("constant", 3)])
@pytest.mark.parametrize(("rotation", "side"), [(0.0, 16), (15.0, 16), (0.0, 24), (15.0, 8)])
@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_views_and_targets_are_those_of_the_cpu(
    source: str,
    sizes: list[tuple[int, int]],
    padding_mode: str,
    crop_padding: int,
    rotation: float,
    side: int,
    mixup: float,
) -> None:
    pixels = load(sizes)
    settings = {"padding_mode": padding_mode, "crop_padding": crop_padding, "rotation_degrees": rotation}
    expected, views = make_views(pixels, mixup, **settings), on_device(make_views(pixels, mixup, **settings), source)
    chosen = views.upload(BATCH)
    assert isinstance(chosen, torch.Tensor) == (source == "resident")
    for view in (0, 1, 0):
        views.expect([chosen, chosen[::-1].copy() if source == "host" else chosen], view)
        assert torch.equal(views.render(chosen, view, side), expected.render(BATCH, view, side))
        assert torch.equal(views.targets(chosen, view), expected.targets(BATCH, view))
    assert torch.equal(views.labels(chosen), expected.labels(BATCH))
    assert views.render(BATCH, 1).is_contiguous(memory_format=torch.channels_last), "an array will do in any case"


@pytest.mark.parametrize("source", SOURCES)
def test_another_view_s_draws_lie_where_the_last_one_s_did(source: str) -> None:
    """A captured step knows nothing but their addresses."""
    views = on_device(make_views(load(UNLIKE), mixup=0.4), source).on_device
    assert views is not None
    views.show(0)
    before = dict(views._drawn)
    places, values = {name: v.data_ptr() for name, v in before.items()}, {n: v.clone() for n, v in before.items()}
    views.show(1)
    assert {name: v.data_ptr() for name, v in views._drawn.items()} == places
    assert not any(torch.equal(values[name], views._drawn[name]) for name in ("top", "warp", "partners", "weights"))


class TestHostCrops:
    @pytest.fixture
    def pixels(self) -> Pixels:
        return load(UNLIKE)

    def make(self, pixels: Pixels, workers: int, monkeypatch: pytest.MonkeyPatch) -> HostCrops:
        monkeypatch.setattr(torch, "get_num_threads", lambda: workers)
        return ViewCrops(pixels, DataRecipe(image_size=16), seed=3, pinned=False)

    @pytest.mark.parametrize("workers", [1, 2, 3, 8])
    def test_crops_come_in_the_order_of_the_images_however_threads_end(
        self, pixels: Pixels, workers: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cut = host_crops.cut_crops

        def dawdle(images: Any, *rest: Any) -> None:
            time.sleep(0.01 * len(images[0]) % 3)
            cut(images, *rest)

        monkeypatch.setattr(host_crops, "cut_crops", dawdle)
        crops = self.make(pixels, workers, monkeypatch)
        batches = [BATCH, np.array([1, 3, 0]), np.array([2])]
        crops.expect(batches, 1)
        one_by_one = {i: self.make(pixels, 1, monkeypatch).take(np.array([i]), 1)[0] for i in range(5)}
        for batch in batches:
            assert torch.equal(crops.take(batch, 1), torch.stack([one_by_one[i] for i in batch.tolist()]))

    def test_expected_crops_are_cut_before_anybody_asks_and_only_once(
        self, pixels: Pixels, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        threads: list[int] = []
        cut, done = ViewCrops._cut, threading.Event()

        def note(self: HostCrops, *given: Any) -> None:
            threads.append(threading.get_ident())
            cut(self, *given)
            done.set()

        monkeypatch.setattr(ViewCrops, "_cut", note)
        crops = self.make(pixels, 1, monkeypatch)
        crops.expect([BATCH], 0)
        assert done.wait(600)
        crops.expect([BATCH, BATCH[:2]], 0)
        first = crops.take(BATCH, 0)
        assert crops.take(BATCH, 0) is first, "a live teacher asks once more"
        crops.take(BATCH[:2], 0)
        assert len(threads) == 2
        assert threading.get_ident() not in threads
        crops.expect([BATCH[:2]], 0)
        assert crops.take(BATCH, 0) is not first, "what is expected no more is forgotten"
        crops.take(BATCH, 1)
        assert len(threads) == 4

    @pytest.mark.parametrize("sizes", [ALIKE, UNLIKE, [(12, 14)] * 5])
    def test_evaluation_s_crops_are_those_of_the_memory_map(
        self, sizes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
        pixels = load(sizes)
        assert np.array_equal(CentreCrops(pixels, pinned=False).take(BATCH, 0).numpy(), pixels.centre(BATCH))

    def test_an_error_of_a_thread_is_raised_where_the_crops_are_taken(
        self, pixels: Pixels, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        crops = self.make(pixels, 2, monkeypatch)

        def fail(*_: Any) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(host_crops, "cut_crops", fail)
        crops.expect([BATCH], 0)
        with pytest.raises(OSError, match="Input/output error"):
            crops.take(BATCH, 0)

    def test_its_threads_end_with_it(self, pixels: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
        before = set(threading.enumerate())
        crops = self.make(pixels, 2, monkeypatch)
        crops.take(BATCH, 0)
        threads = set(threading.enumerate()) - before
        gone = weakref.ref(crops)
        assert threads
        del crops
        for thread in threads:
            thread.join(600)
            assert not thread.is_alive()
        assert gone() is None


@pytest.mark.gpu
@pytest.mark.parametrize("source", SOURCES)
def test_on_a_gpu_views_are_the_same(source: str) -> None:
    pixels = load(UNLIKE)
    if source == "host":
        pixels.residents["cuda:0"] = None
    for mixup, rotation, side in itertools.product((0.0, 0.4), (0.0, 15.0), (16, 8)):
        on_gpu = make_views(pixels, mixup, "cuda:0", rotation_degrees=rotation)
        on_cpu = make_views(pixels, mixup, rotation_degrees=rotation)
        assert on_gpu.is_resident == (source == "resident")
        chosen = on_gpu.upload(BATCH)
        on_gpu.expect([chosen], 1)
        found, expected = on_gpu.render(chosen, 1, side).cpu(), on_cpu.render(BATCH, 1, side)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)
        torch.testing.assert_close(on_gpu.targets(chosen, 1).cpu(), on_cpu.targets(BATCH, 1))
