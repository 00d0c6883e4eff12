"""Pixels on a device give the same canvas and the same views as pixels in the memory map."""

import numpy as np
import pytest
import torch
from conftest import make_image

from toolkit.data.dataset import Dataset, Images
from toolkit.data.pixels import Pixels, load_pixels
from toolkit.data.preprocess import Preprocess
from toolkit.data.resident import ResidentPixels
from toolkit.data.views import draw_views, render_views
from toolkit.recipe import DataRecipe

BATCH = np.array([4, 0, 2, 2])


def load(sizes: list[tuple[int, int]]) -> Pixels:
    pictures = [make_image(i, seed=i, size=size) for i, size in enumerate(sizes)]
    names = tuple(f"{i}.png" for i in range(len(sizes)))
    images = Images(names, np.arange(len(sizes), dtype=np.int64) % 2, lambda i: pictures[i])
    dataset = Dataset("made", ("a", "b"), images, images, images, sha256=f"resident {sizes}")
    return load_pixels(dataset, "train", Preprocess(16, 0, (0.0,) * 3, (1.0,) * 3))


@pytest.mark.parametrize("sizes", [[(20, 24)] * 5, [(31, 20), (18, 25), (8, 8), (40, 12), (17, 17)]])
@pytest.mark.parametrize("padding_mode", ["symmetric", "constant"])
def test_canvas_and_views_equal_those_of_the_memory_map(sizes: list[tuple[int, int]], padding_mode: str) -> None:
    pixels = load(sizes)
    resident = ResidentPixels(pixels, "cpu")
    expected, expected_sizes = pixels.canvas(BATCH)
    canvas, canvas_sizes = resident.canvas(BATCH)
    assert np.array_equal(canvas.numpy(), expected)
    assert np.array_equal(canvas_sizes, expected_sizes)
    for rotation in (0.0, 15.0):
        data = DataRecipe.model_validate(
            {"image_size": 16, "crop_padding": 3, "padding_mode": padding_mode, "rotation_degrees": rotation}
        )
        draw = draw_views(data, expected_sizes, BATCH, seed=0, view=1)
        views = [render_views(source, expected_sizes, draw, data) for source in (canvas, expected)]
        torch.testing.assert_close(*views, rtol=0, atol=0)


@pytest.mark.gpu
def test_on_a_gpu_views_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    pixels = load([(31, 20), (18, 25), (8, 8), (40, 12), (17, 17)])
    resident = ResidentPixels.where_it_fits(pixels, "cuda:0")
    assert resident is not None
    data = DataRecipe(image_size=16, rotation_degrees=15.0)
    canvas, sizes = resident.canvas(BATCH)
    draw = draw_views(data, sizes, BATCH, seed=0, view=1)
    on_gpu = render_views(canvas, sizes, draw, data, "cuda:0").cpu()
    torch.testing.assert_close(on_gpu, render_views(pixels.canvas(BATCH)[0], sizes, draw, data), rtol=0, atol=1e-3)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 1000))
    assert ResidentPixels.where_it_fits(pixels, "cuda:0") is None
