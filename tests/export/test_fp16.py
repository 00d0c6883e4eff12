"""Fp16 exports: proven in float16's own arithmetic, and float32 where that is not enough."""

import json
import math
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from export_samples import make_pixels, save_weights
from onnx.reference import ReferenceEvaluator
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from toolkit.errors import GateError
from toolkit.export.export import ExportOptions, ExportResult, export_onnx
from toolkit.export.samples import draw_images
from toolkit.graphs.half import half_nodes
from toolkit.graphs.ranges import Ranges
from toolkit.recipe import Recipe
from toolkit.runtimes.pytorch import TorchPredictor

COUNT = 12
RECIPE = Recipe().with_overrides([f"export.images={COUNT}"])
OPTIONS = ExportOptions(RECIPE, make_pixels(np.zeros(COUNT)), smaller=("fp16",))

ACTIVATIONS = ("cnn.2.3", "MaxPool after cnn.2.3", "cnn.3.0")
"""What makes the scaled activations, lets them through, and reads them."""


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_weights(tmp_path_factory.mktemp("fp16") / "student.safetensors", "depthwise")


def scale(source: Path, destination: Path, factor: float) -> Path:
    """The same function, in which the activations after `cnn.2.3` are `factor` times as large."""
    state = load_file(source)
    for key, value in (("cnn.2.3.weight", factor), ("cnn.2.3.bias", factor), ("cnn.3.0.weight", 1 / factor)):
        state[key] = state[key] * value
    with safe_open(source, framework="pt") as file:
        save_file(state, destination, file.metadata())
    return destination


def export(weights: Path, options: ExportOptions = OPTIONS) -> list[ExportResult]:
    return export_onnx(weights, weights.with_suffix(".onnx"), options)


def by_the_standard(path: Path, images: np.ndarray) -> np.ndarray:
    """The file's logits by onnx's own evaluation, which computes float16 in float16."""
    with np.errstate(all="ignore"):
        return np.asarray(ReferenceEvaluator(onnx.load(str(path))).run(["logits"], {"image": images})[0])


def test_an_ordinary_network_has_no_layer_in_float32(plain: Path) -> None:
    fp16 = export(plain)[1]
    assert fp16.float_layers == ()
    assert "left in float32" not in fp16.summary()
    images = make_pixels(np.zeros(COUNT)).centre(np.arange(COUNT))
    expected = TorchPredictor(plain).logits(images)
    off = np.abs(by_the_standard(fp16.path, images) - expected).max()
    assert fp16.max_logit_difference == pytest.approx(off, rel=0.5), "the proof's figure is that of float16"


@pytest.mark.parametrize("factor", [2.0**20, 2.0**-24], ids=["beyond 65,504", "below 6e-8"])
def test_what_float16_cannot_hold_stays_float32_and_is_named(plain: Path, tmp_path: Path, factor: float) -> None:
    weights = scale(plain, tmp_path / "student.safetensors", factor)
    fp16 = export(weights)[1]
    assert set(ACTIVATIONS) <= set(fp16.float_layers)
    assert len(fp16.float_layers) < 8
    assert f"left in float32: {', '.join(fp16.float_layers)}" in fp16.summary()
    metadata = {entry.key: entry.value for entry in onnx.load(str(fp16.path)).metadata_props}
    assert tuple(json.loads(metadata["float_layers"])) == fp16.float_layers
    images = draw_images(4, 40)
    np.testing.assert_allclose(by_the_standard(fp16.path, images), TorchPredictor(plain).logits(images), atol=0.05)
    assert fp16.size_bytes < 0.7 * weights.with_suffix(".onnx").stat().st_size


def test_an_overflow_that_stays_is_refused_in_float16_s_name(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proof does not rely on the search. No weight is beyond 65,504: on this CPU the file's answers are right."""
    for search in ("find_overflows", "find_losses"):
        monkeypatch.setattr(Ranges, search, lambda *_: set())
    largest = float(load_file(plain)["cnn.2.3.weight"].abs().max())
    weights = scale(plain, tmp_path / "student.safetensors", 2.0 ** math.floor(math.log2(65_504 / largest)))
    with pytest.raises(GateError) as refused:
        export(weights)
    assert str(refused.value).startswith("student.fp16.onnx in float16 arithmetic does not answer as its weights do: ")
    assert "its logits are off by inf on valid/0.jpg" in str(refused.value)
    assert str(refused.value).endswith("not kept; leave out fp16, or allow more with a setting of [export]")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["student.onnx", "student.safetensors"]


def test_a_file_without_a_half_layer_is_none(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ranges, "find_overflows", lambda self, _: {node.name for node in half_nodes(self._model)})
    weights = scale(plain, tmp_path / "student.safetensors", 1.0)
    (tmp_path / "student.fp16.onnx").write_bytes(b"an earlier one")
    options = ExportOptions(RECIPE, smaller=("fp16",), force=True)
    with pytest.raises(GateError, match=r"student\.fp16\.onnx would have no layer in half precision: .*leave out fp16"):
        export(weights, options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["student.onnx", "student.safetensors"]


@pytest.mark.parametrize(
    ("factor", "told"), [(1e4, r"reach \d\.\de\+\d\d"), (1e20, "are not finite")], ids=["huge", "not finite"]
)
def test_a_training_that_diverged_is_called_so(plain: Path, tmp_path: Path, factor: float, told: str) -> None:
    """The head and the layer before it have grown."""
    state = load_file(plain)
    before = [name for name, value in state.items() if value.ndim == 4][-1]
    for name in (before, "fc.0.weight"):
        state[name] = state[name] * factor
    with safe_open(plain, framework="pt") as file:
        save_file(state, tmp_path / "student.safetensors", file.metadata())
    with pytest.raises(GateError) as refused:
        export(tmp_path / "student.safetensors")
    message = str(refused.value)
    assert "opset" not in message
    assert message.startswith("student.onnx was not written: the network's own logits ")
    assert "; train it again, longer or with a lower learning rate (teacher.learning_rate, " in message
    assert re.search(rf"{told} on valid/\d+\.jpg.*, so its training diverged", message)
    assert [path.name for path in tmp_path.iterdir()] == ["student.safetensors"]
