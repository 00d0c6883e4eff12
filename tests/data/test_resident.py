"""Pixels on a device: as many bytes as it takes, the same crops, one copy for all, and gone with the last of them."""

import gc
import tracemalloc
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_image

from toolkit.data import resident
from toolkit.data.batches import TrainingViews
from toolkit.data.dataset import Dataset, Images
from toolkit.data.pixels import Pixels, load_pixels
from toolkit.data.preprocess import Preprocess
from toolkit.data.resident import ResidentPixels
from toolkit.settings import DataRecipe, Mix

BATCH = np.array([4, 0, 2, 2])
ALIKE, UNLIKE = [(20, 24)] * 5, [(31, 20), (18, 25), (8, 8), (40, 12), (17, 17)]


def load(sizes: list[tuple[int, int]]) -> Pixels:
    pictures = [make_image(i, seed=i, size=size) for i, size in enumerate(sizes)]
    names = tuple(f"{i}.png" for i in range(len(sizes)))
    images = Images(names, np.arange(len(sizes), dtype=np.int64) % 2, lambda i: pictures[i])
    dataset = Dataset("made", ("a", "b"), images, images, images, sha256=f"resident {sizes}")
    return load_pixels(dataset, "train", Preprocess(16, 0, (0.0,) * 3, (1.0,) * 3))


def make_views(
    pixels: Pixels, mixup: float = 0.0, device: str = "cpu", cutmix: float = 0.0, **data: Any
) -> TrainingViews:
    recipe = DataRecipe.model_validate({"image_size": 16, **data})
    return TrainingViews(pixels, recipe, num_classes=2, seed=3, mix=Mix(mixup, cutmix), device=device)


@pytest.mark.parametrize("sizes", [ALIKE, UNLIKE, [(12, 14)] * 5])
def test_centre_crops_are_those_of_the_memory_map(sizes: list[tuple[int, int]]) -> None:
    pixels = load(sizes)
    crops = ResidentPixels(pixels, "cpu").centre(torch.from_numpy(BATCH))
    assert np.array_equal(crops.numpy(), pixels.centre(BATCH))


def test_pixels_go_up_in_pieces_and_the_host_never_holds_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "PIECE_BYTES", 1000)
    data = np.random.default_rng(0).normal(size=(3, 1111))
    copy = torch.empty(data.shape, dtype=torch.float64)
    resident.copy_in_pieces(data, copy)
    assert np.array_equal(copy.numpy(), data)
    monkeypatch.setattr(resident, "PIECE_BYTES", 10_000)
    data = np.zeros(3_000_000, np.uint8)
    tracemalloc.start()
    resident.copy_in_pieces(data, torch.empty(len(data), dtype=torch.uint8, device="meta"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000


def test_an_index_a_pixel_is_the_largest_thing_that_cutting_makes() -> None:
    """Eight bytes for every byte of every canvas were gigabytes once."""
    pixels = load([(300, 200)] * 5)
    copy = ResidentPixels(pixels, "cpu")
    places = torch.arange(16).expand(len(BATCH), -1)
    with torch.profiler.profile(profile_memory=True) as profile:
        copy.crops(torch.from_numpy(BATCH), places, places, black=False)
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert largest <= 8 * len(BATCH) * 16 * 16


@pytest.fixture
def _no_cyclic_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


class TestRoom:
    @pytest.fixture
    def gpu(self, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
        """The memory of a GPU that is not there, in bytes; its pixels stay on the CPU."""
        memory = SimpleNamespace(free=10**9, reserved=0, allocated=0)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (memory.free, 10**9))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: memory.reserved)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: memory.allocated)
        return memory

    @pytest.mark.usefixtures("gpu", "_no_cyclic_collector")
    def test_all_stages_share_one_copy_and_it_goes_with_the_pixels(self) -> None:
        pixels = load(ALIKE)
        first, second = make_views(pixels, device="meta"), make_views(pixels, device="meta")
        assert first.on_device is not None
        assert second.on_device is not None
        assert first.on_device.resident is second.on_device.resident
        gone = weakref.ref(first), weakref.ref(first.on_device), weakref.ref(first.on_device.resident)
        del first, second
        assert [ref() is None for ref in gone] == [True, True, False]
        del pixels
        assert gone[2]() is None

    @pytest.mark.usefixtures("_no_cyclic_collector")
    def test_views_with_mixup_are_freed_at_once_too(self) -> None:
        views = make_views(load(ALIKE), mixup=0.3)
        views.render(BATCH, 0)
        gone = weakref.ref(views)
        del views
        assert gone() is None

    def test_if_they_do_not_fit_that_is_said_once(
        self, gpu: SimpleNamespace, capsys: pytest.CaptureFixture[str]
    ) -> None:
        pixels = load(ALIKE)
        gpu.free = 10_000
        for _ in range(2):
            assert not make_views(pixels, device="meta").is_resident
        said = capsys.readouterr().err
        assert said.splitlines() == [
            "meta: the pixels of 5 images, 7.2 kB, stay in the host's memory, because they may take 40% of the GPU's"
            " free 10.0 kB; batches are cut there, which is slower"
        ]

    @pytest.mark.usefixtures("gpu")
    def test_if_free_memory_cannot_be_allocated_they_stay_on_the_host_too(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A captured step keeps memory for itself that counts as free: smaller batches would not help."""
        pixels, tried = load(ALIKE), []

        def run_out(*_: Any) -> None:
            tried.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

        monkeypatch.setattr(resident, "copy_in_pieces", run_out)
        assert [ResidentPixels.where_it_fits(pixels, "meta") for _ in range(2)] == [None, None]
        assert len(tried) == 1
        assert "stay in the host's memory" in capsys.readouterr().err

    def test_memory_that_torch_keeps_and_does_not_use_is_free(self, gpu: SimpleNamespace) -> None:
        gpu.free, gpu.reserved, gpu.allocated = 10_000, 50_000, 40_000
        assert resident.free_memory_bytes("cuda:0") == 20_000
        assert ResidentPixels.where_it_fits(load(ALIKE), "meta") is not None


@pytest.mark.gpu
def test_on_a_gpu_centre_crops_are_the_same() -> None:
    pixels = load(UNLIKE)
    resident = ResidentPixels.where_it_fits(pixels, "cuda:0")
    assert resident is not None
    assert np.array_equal(resident.centre(torch.from_numpy(BATCH).to("cuda:0")).cpu().numpy(), pixels.centre(BATCH))


@pytest.mark.gpu
@pytest.mark.usefixtures("_no_cyclic_collector")
def test_a_gpu_s_memory_is_free_again_without_the_cyclic_collector() -> None:
    before = torch.cuda.memory_allocated()
    pixels = load(UNLIKE)
    views = make_views(pixels, mixup=0.4, device="cuda:0")
    views.render(BATCH, 0)
    assert torch.cuda.memory_allocated() > before
    del views, pixels
    assert torch.cuda.memory_allocated() == before
