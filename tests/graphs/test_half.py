"""Half precision: near the float graph, of the same form, with the parts in float that need it."""

import numpy as np
import onnx
import onnxruntime
import pytest
from small_networks import MEAN, SIDE, STD, settled_network

from toolkit.graphs.build import build_graph, check_graph, set_metadata
from toolkit.graphs.half import halve
from toolkit.networks.classifier import Classifier

IMAGES = np.random.default_rng(0).integers(0, 256, (5, SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    built = build_graph(Classifier(settled_network("depthwise"), MEAN, STD).eval(), SIDE, opset=20)
    set_metadata(built, {"role": "student"})
    return built


def answer(model: onnx.ModelProto) -> tuple[np.ndarray, np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    logits, probabilities = session.run(["logits", "probabilities"], {"image": IMAGES})
    return logits, probabilities


def test_answers_nearly_as_the_float_graph(model: onnx.ModelProto) -> None:
    expected, (logits, probabilities) = answer(model)[0], answer(halve(model))
    assert logits.dtype == probabilities.dtype == np.float32
    assert 0 < np.abs(logits - expected).max() < 0.01 * np.ptp(expected)
    powers = np.exp(logits.astype(np.float64))
    np.testing.assert_allclose(probabilities, powers / powers.sum(1, keepdims=True), atol=1e-6)


def test_form_and_metadata_stay(model: onnx.ModelProto) -> None:
    half = halve(model)
    check_graph(half, SIDE, 4)
    assert half.metadata_props == model.metadata_props


def test_weights_are_half_as_large_and_normalisation_stays_float(model: onnx.ModelProto) -> None:
    half = halve(model)
    kinds = {tensor.name: tensor.data_type for tensor in half.graph.initializer}
    norm = next(node for node in half.graph.node if node.op_type == "BatchNormalization")
    assert {kinds[name] for name in norm.input[1:]} == {onnx.TensorProto.FLOAT}
    layers = [node for node in half.graph.node if node.op_type in ("Conv", "Gemm")]
    assert {kinds[name] for node in layers for name in node.input[1:]} == {onnx.TensorProto.FLOAT16}
    assert half.ByteSize() < 0.65 * model.ByteSize()


def test_the_given_graph_is_left_alone(model: onnx.ModelProto) -> None:
    before = model.SerializeToString(deterministic=True)
    halve(model)
    assert model.SerializeToString(deterministic=True) == before
