"""End to end: the same bytes, the same pixels and the same probabilities as elsewhere, and times that add up."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_image
from numpy.typing import NDArray
from PIL import Image
from tiny_onnx import save_colour_model

from toolkit.bench.measure import end_to_end, timing
from toolkit.bench.measure.end_to_end import count_turns, encode_images, prepare_image, time_end_to_end
from toolkit.bench.measure.timing import Budget
from toolkit.data.dataset import Images
from toolkit.data.preprocess import Preprocess
from toolkit.predict import ask, read_pixels
from toolkit.runtimes.onnxruntime import OnnxPredictor

PREPROCESS = Preprocess(32, 36, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i, suffix in enumerate(("jpg", "png", "webp")):
        make_image(i, i).save(tmp_path / f"{i}.{suffix}")
    return tmp_path


def of_files(folder: Path) -> Images:
    return Images.from_files(folder, ("0.jpg", "1.png", "2.webp"), (0, 1, 2))


def test_bytes_are_the_files_own(folder: Path) -> None:
    contents = encode_images(of_files(folder), ["2.webp", "0.jpg"])
    assert contents == [(folder / "2.webp").read_bytes(), (folder / "0.jpg").read_bytes()]
    assert encode_images(of_files(folder).subset([1]), ["1.png"]) == [(folder / "1.png").read_bytes()]


@pytest.mark.parametrize("shape", [(3, 20, 24), (3, 20, 24, 3)])
def test_arrays_become_png_and_come_back_equal(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    images = Images.from_array("test", pixels, np.arange(3))
    for array, content in zip(pixels, encode_images(images, images.names), strict=True):
        with Image.open(io.BytesIO(content)) as image:
            assert image.format == "PNG"
            np.testing.assert_array_equal(np.asarray(image), array)


def test_pixels_are_those_of_predict(folder: Path) -> None:
    for name in of_files(folder).names:
        path = folder / name
        np.testing.assert_array_equal(prepare_image(path.read_bytes(), PREPROCESS), read_pixels(path, PREPROCESS))


def test_the_timed_answer_is_that_of_predict(folder: Path, tmp_path: Path) -> None:
    predictor = OnnxPredictor(save_colour_model(tmp_path / "colour.onnx"), "cpu", threads=1)
    for name in of_files(folder).names:
        probabilities = end_to_end._answer_with(predictor)((folder / name).read_bytes())[0]
        predicted = dict(ask(predictor, read_pixels(folder / name, predictor.preprocess), 3).top)
        assert predicted == dict(zip(predictor.classes, probabilities.tolist(), strict=True))


class FakeClock:
    """ns, moved by what is timed alone."""

    now_ns = 0

    def __call__(self) -> int:
        return self.now_ns


class FakePredictor:
    """A predictor that takes 4 ms on a clock and remembers what it saw."""

    classes = ("a",)
    preprocess = PREPROCESS
    runtime, provider, threads = "fake", "none", 1

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.seen: list[NDArray[np.uint8]] = []

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.clock.now_ns += 4_000_000
        self.seen.append(images)
        return np.zeros((len(images), 1), np.float32)


def test_an_answer_takes_its_preprocessing_and_its_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SETTLE_MS", 0.0)
    clock = FakeClock()
    real, predictor = prepare_image, FakePredictor(clock)

    def slow(content: bytes, preprocess: Preprocess) -> Any:
        clock.now_ns += 6_000_000
        return real(content, preprocess)

    monkeypatch.setattr(end_to_end, "prepare_image", slow)
    contents = [(folder / name).read_bytes() for name in of_files(folder).names]
    turns: list[int] = []
    predictors = [predictor, FakePredictor(clock)]
    result = time_end_to_end(PREPROCESS, predictors, contents, Budget(12, 0.5, clock=clock), turns.append)
    assert result.preprocess_ms.p50 == result.preprocess_ms.p95 == 6
    assert len(result.end_to_end_ms) == 2
    for whole in result.end_to_end_ms:
        assert whole.p50 == whole.p95 == 10
        assert whole.n >= 12
    assert sum(turns) == count_turns(2)
    np.testing.assert_array_equal(predictor.seen[0][0], real(contents[0], PREPROCESS))
    np.testing.assert_array_equal(predictor.seen[4][0], real(contents[1], PREPROCESS))


def test_preprocessing_alone_if_no_row_reads_onnx(folder: Path) -> None:
    result = time_end_to_end(PREPROCESS, [], [(folder / "0.jpg").read_bytes()], Budget(10, 0.05))
    assert result.end_to_end_ms == []
    assert result.preprocess_ms.p50 > 0
