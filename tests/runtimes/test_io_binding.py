"""I/O binding: with the real interface on the CPU, and the calls to a session on CUDA, by one that remembers them."""

from pathlib import Path

import numpy as np
import pytest
from cuda_sessions import CUDA, FakeValue, OnCuda, pretend_cuda
from tiny_onnx import save_colour_model

from toolkit.runtimes.io_binding import IoBindingPredictor
from toolkit.runtimes.onnxruntime import OnnxPredictor
from toolkit.runtimes.opening import open_predictor

SIDE = 32


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_colour_model(tmp_path_factory.mktemp("binding") / "student.onnx", image_size=SIDE, resize=0)


def images(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)


def test_it_answers_as_the_file_does_whatever_came_before(path: Path) -> None:
    bound, plain = open_predictor("onnxruntime.io_binding", path, "cpu", 1), OnnxPredictor(path, "cpu", 1)
    assert isinstance(bound, IoBindingPredictor)
    assert (bound.runtime, bound.provider, bound.remark) == ("onnxruntime.io_binding", "CPUExecutionProvider", "")
    first = bound.logits(images(3))
    for batch in (images(1), images(4), images(3)[::-1], images(1)):
        np.testing.assert_array_equal(bound.logits(batch), plain.logits(batch))
    np.testing.assert_array_equal(first, plain.logits(images(3)))  # a copy: later batches do not write into it


def test_batches_of_one_size_lie_in_one_place(path: Path) -> None:
    """A captured graph reads and writes at addresses."""
    bound = IoBindingPredictor(path, "cpu", 1)
    one, other = bound.send(images(1)), bound.send(images(2))
    assert bound.send(images(1)) is one
    assert other is not one
    with pytest.raises(ValueError, match=r"images must be uint8 \(N, 32, 32, 3\)"):
        bound.send(images(1)[0])


def open_on_cuda(path: Path, monkeypatch: pytest.MonkeyPatch, fake: OnCuda) -> IoBindingPredictor:
    pretend_cuda(monkeypatch, fake)
    return IoBindingPredictor(path, "cuda:1", 1)


def test_bound_arrays_lie_on_the_gpu_and_one_image_is_a_graph(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = OnnxPredictor(path, "cpu", 1)
    fake = OnCuda()
    bound = open_on_cuda(path, monkeypatch, fake)
    assert (bound.remark, bound.provider) == ("", f"{CUDA}:1")
    assert [settings.get("enable_cuda_graph") for settings in fake.opened] == [None, "1"]
    assert {settings["device_id"] for settings in fake.opened} == {"1"}
    fake.graph_ids.clear()
    for batch in (images(1), images(8), images(1)):
        np.testing.assert_array_equal(bound.logits(batch), plain.logits(batch))
    assert fake.graph_ids == [(1, "1"), (8, "-1"), (1, "1")]
    shapes = [((count, SIDE, SIDE, 3), (count, 3)) for count in (1, 8)]
    assert FakeValue.made == [
        one for image, logits in shapes for one in ((image, np.uint8, "cuda", 1), (logits, np.float32, "cuda", 1))
    ]
    batch = bound.send(images(8))
    before = batch.binding.synchronized
    bound.run(batch)
    assert batch.binding.synchronized == before + 1


OPENING = (
    "[ONNXRuntimeError] : 1 : FAIL : This session cannot use the graph capture feature as requested by the user as all"
    " compute graph nodes have not been partitioned to the CUDAExecutionProvider"
)


@pytest.mark.parametrize(
    ("fake", "reason"),
    [
        (
            OnCuda(error_when_opened=OPENING),
            f"{CUDA}:1 cannot run student.onnx: This session cannot use the graph capture feature as requested by the"
            " user as all compute graph nodes have not been partitioned to the CUDAExecutionProvider",
        ),
        (
            OnCuda(error="CUDA failure 900: operation not permitted when stream is capturing ; GPU=1\nmore"),
            "CUDA failure 900: operation not permitted when stream is capturing ; GPU=1",
        ),
        (OnCuda(wrong=0.1), "its answers differ from those without"),
    ],
)
def test_if_a_graph_does_not_hold_it_goes_without_and_says_so(
    path: Path, monkeypatch: pytest.MonkeyPatch, fake: OnCuda, reason: str
) -> None:
    plain = OnnxPredictor(path, "cpu", 1)
    bound = open_on_cuda(path, monkeypatch, fake)
    assert bound.remark == f"student.onnx runs without a CUDA graph in onnxruntime.io_binding: {reason}"
    for count in (1, 4):
        np.testing.assert_array_equal(bound.logits(images(count)), plain.logits(images(count)))


@pytest.mark.gpu
def test_on_a_gpu(path: Path) -> None:
    bound, plain = IoBindingPredictor(path, "cuda"), OnnxPredictor(path, "cuda")
    for count in (1, 7, 1, 32):
        np.testing.assert_allclose(bound.logits(images(count)), plain.logits(images(count)), rtol=0, atol=1e-4)
    assert bound.remark == ""
