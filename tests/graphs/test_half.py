"""Half precision: near the float graph, of the same form, with the parts in float that need it."""

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from small_networks import SIDE, settled_graph
from tiny_families import CLASSES, MAKERS, family_graph
from tiny_families import SIDE as FAMILY_SIDE

from toolkit.graphs.build import check_graph, set_metadata
from toolkit.graphs.half import SMALLEST, half_nodes, halve
from toolkit.graphs.layers import find_layers
from toolkit.graphs.rounding import round_as_half

IMAGES = np.random.default_rng(0).integers(0, 256, (5, SIDE, SIDE, 3), dtype=np.uint8)
FAMILY_IMAGES = IMAGES[:, :4, :4].repeat(FAMILY_SIDE // 4, 1).repeat(FAMILY_SIDE // 4, 2)


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    built = settled_graph()
    set_metadata(built, {"role": "student"})
    return built


def answer(model: onnx.ModelProto, images: NDArray[np.uint8] = IMAGES) -> tuple[np.ndarray, np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    logits, probabilities = session.run(["logits", "probabilities"], {"image": images})
    return logits, probabilities


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    values = [*model.graph.value_info, *model.graph.output]
    kinds = {value.name: value.type.tensor_type.elem_type for value in values}
    return kinds | {tensor.name: tensor.data_type for tensor in model.graph.initializer}


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
    assert (half.ir_version, half.opset_import) == (model.ir_version, model.opset_import)


def test_weights_are_half_as_large_and_normalisation_stays_float(model: onnx.ModelProto) -> None:
    half = halve(model)
    kinds = types_of(half)
    norm = next(node for node in half.graph.node if node.op_type == "BatchNormalization")
    assert {kinds[name] for name in norm.input[1:]} == {TensorProto.FLOAT}
    layers = [node for node in half.graph.node if node.op_type in ("Conv", "Gemm")]
    assert {kinds[name] for node in layers for name in node.input[1:]} == {TensorProto.FLOAT16}
    assert half.ByteSize() < 0.65 * model.ByteSize()


def test_between_the_first_layer_and_the_logits_all_is_half(model: onnx.ModelProto) -> None:
    half = halve(model)
    kinds = types_of(half)
    names = {node.name for node in half_nodes(model)}
    assert {kinds[node.output[0]] for node in half.graph.node if node.name in names} == {TensorProto.FLOAT16}
    assert [node.op_type for node in half.graph.node].count("Cast") == 3, "the pixels, the picture, the logits"


def test_the_given_graph_is_left_alone(model: onnx.ModelProto) -> None:
    before = model.SerializeToString(deterministic=True)
    halve(model)
    assert model.SerializeToString(deterministic=True) == before


class TestNamedNodes:
    def test_they_compute_in_float32(self, model: onnx.ModelProto) -> None:
        keep = find_layers(model.graph)[3:5]
        half = halve(model, keep)
        check_graph(half, SIDE, 4)
        kinds = types_of(half)
        for node in half.graph.node:
            if node.op_type in ("Conv", "Gemm"):
                expected = TensorProto.FLOAT if node.name in keep else TensorProto.FLOAT16
                assert {kinds[name] for name in (*node.input, *node.output)} == {expected}, node.name

    def test_with_all_named_the_graph_is_the_float_one(self, model: onnx.ModelProto) -> None:
        kept = halve(model, [node.name for node in half_nodes(model)])
        assert [node.op_type for node in kept.graph.node] == [node.op_type for node in model.graph.node]
        assert np.array_equal(answer(kept)[0], answer(model)[0])


def one_node(node: onnx.NodeProto, *constants: onnx.TensorProto) -> onnx.ModelProto:
    """image uint8 (N, 2) → floats → MatMul with the identity → `x` → the node → `logits` and their softmax."""
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["floats", "identity"], ["x"], name="layer"),
        node,
        helper.make_node("Softmax", ["logits"], ["probabilities"], name="softmax"),
    ]
    identity = numpy_helper.from_array(np.eye(2, dtype=np.float32), "identity")
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 2])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 2]) for name in ("logits", "probabilities")],
        [identity, *constants],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


@pytest.mark.parametrize(("value", "expected"), [(1e-12, SMALLEST), (-1e-12, -SMALLEST), (0.0, 0.0), (1e5, np.inf)])
def test_what_is_not_zero_stays_so(value: float, expected: float) -> None:
    """Some networks divide by a norm of 1e-12 at least; what is too large has to be found, and is not made smaller."""
    bound = numpy_helper.from_array(np.array(value, np.float32), "bound")
    half = halve(one_node(helper.make_node("Max", ["x", "bound"], ["logits"], name="max"), bound))
    (rounded,) = (numpy_helper.to_array(t) for t in half.graph.initializer if t.name.startswith("bound"))
    assert (rounded.dtype, float(rounded)) == (np.float16, expected)


def test_an_input_that_an_operator_takes_in_float32_alone_stays_so() -> None:
    """By ONNX's definition of it: scales of Resize are float32, whatever the picture is."""
    scales = numpy_helper.from_array(np.array([1, 1], np.float32), "scales")
    half = halve(one_node(helper.make_node("Resize", ["x", "", "scales"], ["logits"], name="resize"), scales))
    onnx.checker.check_model(half, full_check=True)
    kinds = types_of(half)
    assert kinds["scales"] == TensorProto.FLOAT
    images = np.array([[3, 7]], np.uint8)
    assert answer(half, images)[0].tolist() == [[3, 7]]


@pytest.fixture(scope="module", params=list(MAKERS))
def family(request: pytest.FixtureRequest) -> onnx.ModelProto:
    return family_graph(request.param)


@pytest.mark.slow
class TestWhatConstantsAndShapesEnter:
    """Class tokens, tables of positions, masks, more than one tensor from the picture."""

    def test_it_is_half_and_near_in_onnxruntime_and_by_the_standard(self, family: onnx.ModelProto) -> None:
        half = halve(family)
        check_graph(half, FAMILY_SIDE, CLASSES)
        expected = answer(family, FAMILY_IMAGES)[0]
        assert np.ptp(expected, axis=0).min() > 0, "there is something to compare"
        by_the_standard = ReferenceEvaluator(half).run(["logits"], {"image": FAMILY_IMAGES})[0]
        for logits in (answer(half, FAMILY_IMAGES)[0], by_the_standard):
            np.testing.assert_allclose(logits, expected, rtol=0, atol=0.03 * np.abs(expected).max())
        kinds = types_of(half)
        layers = [node for node in half.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
        assert {kinds[name] for node in layers for name in (*node.input, *node.output)} == {TensorProto.FLOAT16}

    def test_the_batch_may_have_any_size(self, family: onnx.ModelProto) -> None:
        half = halve(family)
        alone = np.concatenate([answer(half, image[np.newaxis])[0] for image in FAMILY_IMAGES])
        np.testing.assert_allclose(alone, answer(half, FAMILY_IMAGES)[0], atol=1e-3)

    def test_rounding_comes_near_the_standard(self, family: onnx.ModelProto) -> None:
        half = halve(family)
        by_the_standard = ReferenceEvaluator(half).run(["logits"], {"image": FAMILY_IMAGES})[0]
        rounded = answer(round_as_half(half), FAMILY_IMAGES)[0]
        np.testing.assert_allclose(rounded, by_the_standard, rtol=0, atol=0.03 * np.abs(by_the_standard).max())


def test_a_transposition_that_leaves_the_last_axis_goes_behind_the_product() -> None:
    """In front of it, in float16, it makes onnxruntime 1.24 to 1.31 crash while they open the file."""
    matrix = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["floats", "eye"], ["x"], name="first"),
        helper.make_node("Transpose", ["x"], ["turned"], name="turn", perm=[1, 0, 2]),
        helper.make_node("MatMul", ["turned", "matrix"], ["product"], name="second"),
        helper.make_node("ReduceMean", ["product", "axes"], ["logits"], name="mean", keepdims=0),
        helper.make_node("Softmax", ["logits"], ["probabilities"], name="softmax"),
    ]
    constants = {"eye": np.eye(8, dtype=np.float32), "matrix": matrix, "axes": np.array([0])}
    graph = helper.make_graph(
        nodes,
        "turned",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 3, 8])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in ("logits", "probabilities")],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    half = halve(model)
    onnx.checker.check_model(half, full_check=True)
    order = [node.op_type for node in half.graph.node if node.op_type in ("Transpose", "MatMul")]
    assert order == ["MatMul", "MatMul", "Transpose"]
    images = np.random.default_rng(1).integers(0, 256, (2, 3, 8), dtype=np.uint8)
    expected = (images.astype(np.float64) @ matrix).mean(1)
    np.testing.assert_allclose(answer(half, images)[0], expected, rtol=0.01, atol=0.5)
