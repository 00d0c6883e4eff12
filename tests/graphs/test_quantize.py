"""Int8 graphs: close to the float graph, in the form that was asked for, with float layers if they were asked for."""

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from avx2_cpu import run_python_on_avx2
from numpy.typing import NDArray
from small_networks import CLASSES, SIDE, graph_of, settled_graph
from tiny_families import MAKERS, family_graph
from tiny_families import SIDE as FAMILY_SIDE
from torch import Tensor, nn

from toolkit.graphs import quantize as module
from toolkit.graphs.build import check_graph, set_metadata
from toolkit.graphs.quantize import BETWEEN, Quantizer, _stride
from toolkit.settings import Calibration

IMAGES = (
    np.random.default_rng(0).integers(0, 256, (24, SIDE // 8, SIDE // 8, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
)


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    """A student whose batch norms have seen images, as a graph."""
    built = settled_graph()
    set_metadata(built, {"classes": '["a"]', "role": "student"})
    return built


@pytest.fixture(scope="module")
def quantizer(model: onnx.ModelProto) -> Iterator[Quantizer]:
    with Quantizer(model, IMAGES, "minmax") as quantizer:
        yield quantizer


def answer(model: onnx.ModelProto, *, exact: bool = False) -> np.ndarray:
    """Logits; `exact` makes onnxruntime's products exact on every CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.x64quantprecision", str(int(exact)))
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
    assert (int8.ir_version, int8.opset_import) == (model.ir_version, model.opset_import)
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


class TestWithoutVnni:
    """A CPU without VNNI adds every two products in 16 bits and saturates: weights of 7 bits leave room for both."""

    def test_no_two_products_of_any_layer_saturate(self, int8: onnx.ModelProto) -> None:
        weights = int8_weights(int8)
        assert len(weights) > 2
        for values in weights.values():
            assert 60 <= np.abs(values.astype(int)).max() <= 64, "all of the range, and no more"
        assert np.iinfo(np.int16).max >= 2 * 255 * 64

    def test_in_the_worst_case_a_layer_is_exact_and_with_8_bits_it_is_not(
        self, int8: onnx.ModelProto, eight_bits: onnx.ModelProto
    ) -> None:
        for model, exact in ((int8, True), (eight_bits, False)):
            as_matrices = [values.reshape(len(values), -1).T for values in int8_weights(model).values()]
            matrix = max(as_matrices, key=len)
            matrix = matrix[: len(matrix) // 2 * 2]
            whites = np.full((1, len(matrix)), 255, np.uint8)
            sums = saturating_products(whites, matrix)
            assert np.array_equal(sums, whites.astype(int) @ matrix.astype(int)) is exact

    def test_that_is_how_onnxruntime_multiplies_there(self, tmp_path: Path) -> None:
        random = np.random.default_rng(1)
        rows, weights = random.integers(0, 256, (9, 64), np.uint8), random.integers(-128, 128, (64, 24), np.int8)
        nodes = [onnx.helper.make_node("MatMulInteger", ["image", "weights"], ["sums"])]
        sums = answer_on_avx2(as_model(nodes, onnx.numpy_helper.from_array(weights, "weights")), tmp_path, rows)
        assert np.array_equal(sums, saturating_products(rows, weights))
        assert not np.array_equal(sums, rows.astype(int) @ weights.astype(int))

    def test_products_of_two_activations_are_exact_there(self, tmp_path: Path) -> None:
        """Attention multiplies uint8 with uint8, whose products onnxruntime widens before it adds them."""
        rows = np.full((9, 64), 255, np.uint8)
        nodes = [
            onnx.helper.make_node("Transpose", ["image"], ["turned"]),
            onnx.helper.make_node("MatMulInteger", ["image", "turned"], ["sums"]),
        ]
        assert np.all(answer_on_avx2(as_model(nodes), tmp_path, rows) == 64 * 255 * 255)

    def test_answers_need_no_exact_products(self, int8: onnx.ModelProto) -> None:
        assert np.array_equal(answer(int8), answer(int8, exact=True))

    def test_answers_are_those_of_a_cpu_with_vnni(self, int8: onnx.ModelProto, tmp_path: Path) -> None:
        exact = answer(int8, exact=True)
        assert np.abs(answer_on_avx2(int8, tmp_path, IMAGES) - exact).max() <= 0.005 * np.ptp(exact)

    def test_weights_of_8_bits_would_answer_otherwise(self, eight_bits: onnx.ModelProto, tmp_path: Path) -> None:
        exact = answer(eight_bits, exact=True)
        assert np.abs(answer_on_avx2(eight_bits, tmp_path, IMAGES) - exact).max() > 0.03 * np.ptp(exact)


@pytest.mark.slow
@pytest.mark.parametrize("family", MAKERS)
def test_in_no_family_do_two_products_saturate(family: str) -> None:
    """Whatever enters between the layers: tables, masks, class tokens."""
    model = family_graph(family)
    with Quantizer(model, IMAGES[:8, :FAMILY_SIDE, :FAMILY_SIDE], "minmax") as quantizer:
        int8 = quantizer.quantize()
    check_graph(int8, FAMILY_SIDE, len(CLASSES))
    weights = int8_weights(int8)
    assert len(weights) >= 2
    assert max(np.abs(values.astype(int)).max() for values in weights.values()) == 64


class Attention(nn.Module):
    """Patches that look at each other: products of activations with activations, as in torchvision's transformers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, 32, 8, 8)
        self.attention = nn.MultiheadAttention(32, 2, batch_first=True)
        self.head = nn.Linear(32, len(CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patches(images).flatten(2).transpose(1, 2)
        attended, _ = self.attention(patches, patches, patches, need_weights=False)
        logits: Tensor = self.head((patches + attended).mean(1))
        return logits


@pytest.fixture(scope="module", params=["depthwise", "attention"])
def network(request: pytest.FixtureRequest) -> onnx.ModelProto:
    return graph_of(Attention(), SIDE) if request.param == "attention" else settled_graph(request.param)


@pytest.fixture(scope="module")
def int8(network: onnx.ModelProto) -> onnx.ModelProto:
    with Quantizer(network, IMAGES, "minmax") as quantizer:
        return quantizer.quantize()


@pytest.fixture(scope="module")
def eight_bits(network: onnx.ModelProto) -> onnx.ModelProto:
    """The same with weights of int8's whole range."""
    with pytest.MonkeyPatch.context() as patch, Quantizer(network, IMAGES, "minmax") as quantizer:
        patch.setattr(module, "REDUCE_RANGE", False)
        return quantizer.quantize()


def int8_weights(model: onnx.ModelProto) -> dict[str, NDArray[np.int8]]:
    """Weights of all layers, by the layer's name; every product is of uint8 with them, or of uint8 with uint8."""
    makers = {output: node for node in model.graph.node for output in node.output}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            factors = [makers[name] for name in node.input[:2]]
            assert [factor.op_type for factor in factors] == ["DequantizeLinear"] * 2
            types = [constants[factor.input[2]].data_type for factor in factors]
            assert types[0] == onnx.TensorProto.UINT8
            if types[1] == onnx.TensorProto.INT8:
                found[node.name] = onnx.numpy_helper.to_array(constants[factors[1].input[0]])
            else:
                assert types[1] == onnx.TensorProto.UINT8
    return found


def saturating_products(rows: NDArray[np.uint8], weights: NDArray[np.int8]) -> NDArray[np.int64]:
    """(M, K) × (K, N) → (M, N) as `vpmaddubsw` and `vpmaddwd` do: every two products are added within 16 bits.

    Intel SDM volume 2B, PMADDUBSW. K is even.
    """
    products = rows.astype(np.int64)[:, :, np.newaxis] * weights
    return np.clip(products[:, ::2] + products[:, 1::2], -(2**15), 2**15 - 1).sum(1)


def as_model(nodes: list[onnx.NodeProto], *constants: onnx.TensorProto) -> onnx.ModelProto:
    """From `image` uint8 (M, K) by these nodes to int32 `sums`, which are the float `logits`."""
    nodes = [*nodes, onnx.helper.make_node("Cast", ["sums"], ["logits"], to=onnx.TensorProto.FLOAT)]
    image = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, ["M", "K"])
    logits = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["M", "N"])
    graph = onnx.helper.make_graph(nodes, "products", [image], [logits], constants)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9)


def answer_on_avx2(model: onnx.ModelProto, folder: Path, images: NDArray[np.uint8]) -> np.ndarray:
    onnx.save(model, str(folder / "model.onnx"))
    np.save(folder / "images.npy", images)
    run_python_on_avx2(folder, "-c", ANSWER, folder / "model.onnx", folder / "images.npy", folder / "logits.npy")
    return np.asarray(np.load(folder / "logits.npy"))


ANSWER = """
import sys
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
numpy.save(sys.argv[3], session.run(["logits"], {"image": numpy.load(sys.argv[2])})[0])
"""
