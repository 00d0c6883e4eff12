"""Int8 graphs: close to the float graph, in the form that was asked for, and float where it was asked for."""

from collections.abc import Iterator
from typing import get_args

import numpy as np
import onnx
import onnxruntime
import pytest
from small_networks import MEAN, SIDE, STD, settled_network

from toolkit.networks.classifier import Classifier
from toolkit.networks.graph import build_graph, check_graph, set_metadata
from toolkit.networks.quantize import BETWEEN, Quantizer, _stride
from toolkit.recipe import Calibration

IMAGES = (
    np.random.default_rng(0).integers(0, 256, (24, SIDE // 8, SIDE // 8, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
)


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    """A student whose batch norms have seen images, as a graph."""
    built = build_graph(Classifier(settled_network("depthwise"), MEAN, STD).eval(), SIDE, opset=20)
    set_metadata(built, {"classes": '["a"]', "role": "student"})
    return built


@pytest.fixture(scope="module")
def quantizer(model: onnx.ModelProto) -> Iterator[Quantizer]:
    with Quantizer(model, IMAGES, "minmax") as quantizer:
        yield quantizer


def answer(model: onnx.ModelProto) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], {"image": IMAGES})[0])


def kernels(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """The float32 weights of convolutions, by name."""
    weights = {node.input[1] for node in model.graph.node if node.op_type == "Conv"}
    return {tensor.name: tensor for tensor in model.graph.initializer if tensor.name in weights}


def quantized_layers(model: onnx.ModelProto) -> int:
    """Layers whose weights are int8, counted from the file alone."""
    by_output = {output: node for node in model.graph.node for output in node.output}
    int8 = {tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT8}
    count = 0
    for node in model.graph.node:
        weights = by_output.get(node.input[1]) if node.op_type in ("Conv", "Gemm", "MatMul") else None
        count += weights is not None and weights.op_type == "DequantizeLinear" and weights.input[0] in int8
    return count


@pytest.mark.parametrize("method", get_args(Calibration))
def test_answers_nearly_as_the_float_graph(model: onnx.ModelProto, method: Calibration) -> None:
    expected = answer(model)
    with Quantizer(model, IMAGES, method) as quantizer:
        logits = answer(quantizer.quantize())
    assert 0 < np.abs(logits - expected).max() < 0.15 * np.ptp(expected)


def test_every_layer_is_int8_per_channel(model: onnx.ModelProto, quantizer: Quantizer) -> None:
    int8 = quantizer.quantize()
    assert quantized_layers(int8) == len(quantizer.layers) == 16
    scales = {tensor.name: tensor for tensor in int8.graph.initializer if tensor.name.endswith("_scale")}
    for weights in kernels(model).values():
        assert list(scales[f"{weights.name}_scale"].dims) == [weights.dims[0]]


def test_weights_are_the_float_ones_to_half_a_step(model: onnx.ModelProto, quantizer: Quantizer) -> None:
    int8 = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in quantizer.quantize().graph.initializer}
    floats = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    name = next(iter(kernels(model)))
    step = int8[f"{name}_scale"].reshape(-1, 1, 1, 1)
    assert np.all(np.abs(int8[f"{name}_quantized"] * step - floats[name]) <= 0.5001 * step)


def test_named_layers_stay_float(quantizer: Quantizer) -> None:
    keep = quantizer.layers[3:6]
    int8 = quantizer.quantize(keep)
    assert quantized_layers(int8) == len(quantizer.layers) - len(keep)
    assert len(kernels(int8)) == len(keep)


def test_all_layers_float_is_the_float_graph(model: onnx.ModelProto, quantizer: Quantizer) -> None:
    int8 = quantizer.quantize(quantizer.layers)
    assert quantized_layers(int8) == 0
    assert [node.op_type for node in int8.graph.node] == [node.op_type for node in model.graph.node]
    assert np.array_equal(answer(int8), answer(model))


def test_between_two_float_layers_all_is_float(quantizer: Quantizer) -> None:
    first, second = quantizer.layers[3:5]
    kinds = {output: node for node in quantizer.quantize([first, second]).graph.node for output in node.output}
    node = next(node for node in kinds.values() if node.name == second)
    while node.name != first:
        node = kinds[node.input[0]]
        assert node.op_type not in ("QuantizeLinear", "DequantizeLinear")


def test_normalisation_logits_and_softmax_stay_float(quantizer: Quantizer) -> None:
    graph = quantizer.quantize().graph
    kinds = {output: node.op_type for node in graph.node for output in node.output}
    assert kinds["logits"] == "Gemm"
    assert kinds["probabilities"] == "Softmax"
    for node in graph.node:
        if node.op_type in ("BatchNormalization", "Cast", "Softmax"):
            assert not any(kinds.get(source) == "DequantizeLinear" for source in node.input), node.name


def test_form_and_metadata_are_those_of_the_float_graph(model: onnx.ModelProto, quantizer: Quantizer) -> None:
    int8 = quantizer.quantize()
    check_graph(int8, SIDE, 4)
    assert [(entry.key, entry.value) for entry in int8.metadata_props] == [
        (entry.key, entry.value) for entry in model.metadata_props
    ]


def test_the_given_graph_is_left_alone(model: onnx.ModelProto) -> None:
    before = model.SerializeToString(deterministic=True)
    with Quantizer(model, IMAGES[:3], "minmax") as quantizer:  # fewer than a stride
        quantizer.quantize()
    assert model.SerializeToString(deterministic=True) == before


def test_a_graph_without_layers() -> None:
    value = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["N", 3])
    node = onnx.helper.make_node("Relu", ["image"], ["logits"], name="relu")
    graph = onnx.helper.make_graph([node], "g", [value], [onnx.helper.make_tensor_value_info("logits", 1, ["N", 3])])
    with pytest.raises(ValueError, match="no Conv, Gemm, MatMul"):
        Quantizer(onnx.helper.make_model(graph), IMAGES, "minmax")


def test_types_between_are_known_to_the_quantizer() -> None:
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    assert set(BETWEEN) <= {*QDQRegistry, *QLinearOpsRegistry}


@pytest.mark.parametrize(("images", "stride"), [(1, 1), (3, 3), (8, 8), (15, 5), (20, 5), (23, 1), (128, 8)])
def test_no_image_is_left_out(images: int, stride: int) -> None:
    assert _stride(images) == stride
