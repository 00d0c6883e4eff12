"""A float16 graph as float16 hardware has it: near the standard's own evaluation, and infinite where that is."""

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from small_networks import SIDE, graph_of, settled_graph, settled_network

from toolkit.graphs.build import check_graph
from toolkit.graphs.half import halve
from toolkit.graphs.rounding import EXACT, round_as_half

IMAGES = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), dtype=np.uint8)


def run(model: onnx.ModelProto, inputs: dict[str, NDArray[np.generic]]) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, inputs)[0])


def chain(*operators: str) -> onnx.ModelProto:
    """float32 `x` (N) → float16 → those operators → float32 `y`."""
    names = ["x", *(f"t{i}" for i in range(len(operators) + 1)), "y"]
    steps = [("Cast", {"to": TensorProto.FLOAT16}), *((operator, {}) for operator in operators)]
    steps.append(("Cast", {"to": TensorProto.FLOAT}))
    nodes = [
        helper.make_node(operator, [source], [target], name=target, **attributes)
        for (operator, attributes), source, target in zip(steps, names[:-1], names[1:], strict=True)
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N"]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "chain", values[:1], values[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


VALUES = np.array([1 + 2**-12, 1e5, -1e5, 1e-9, 300.0, -300.0, 0.0, 3.14159], np.float32)


@pytest.mark.parametrize("operators", [(), ("Neg",), ("Abs", "Sqrt"), ("Neg", "Relu"), ("Abs", "Log", "Exp")])
def test_every_step_is_rounded(operators: tuple[str, ...]) -> None:
    """To the bit: the operators' own results in float32, rounded by numpy after each."""
    steps = {"Neg": np.negative, "Abs": np.abs, "Sqrt": np.sqrt, "Relu": lambda x: np.maximum(x, 0)}
    steps |= {"Log": np.log, "Exp": np.exp}
    with np.errstate(all="ignore"):
        expected = VALUES.astype(np.float16)
        for operator in operators:
            expected = steps[operator](expected.astype(np.float32)).astype(np.float16)
    rounded = run(round_as_half(chain(*operators)), {"x": VALUES})
    np.testing.assert_allclose(rounded, expected.astype(np.float32), rtol=0 if "Exp" not in operators else 1e-3)


def test_onnxruntime_alone_does_not_round_on_a_cpu_without_float16() -> None:
    """That is why this module is there; where it is no longer so, it does no harm."""
    values = run(chain("Neg", "Relu"), {"x": np.array([-1e5], np.float32)})
    assert values[0] in (np.float32(1e5), np.inf)


def test_what_is_large_is_infinite_as_by_the_standard() -> None:
    """Case B03: an activation of 2e5 between two layers whose product is as it was."""
    network = settled_network("depthwise")
    state = network.state_dict()
    state["cnn.2.3.weight"] *= 2.0**20
    state["cnn.2.3.bias"] *= 2.0**20
    state["cnn.3.0.weight"] *= 2.0**-20
    network.load_state_dict(state)
    model = graph_of(network, SIDE)
    half = halve(model)
    with np.errstate(all="ignore"):
        by_the_standard = ReferenceEvaluator(half).run(["logits"], {"image": IMAGES})[0]
    assert not np.isfinite(by_the_standard).any()
    assert not np.isfinite(run(round_as_half(half), {"image": IMAGES})).any()


def test_the_rest_of_the_graph_stays_and_the_given_one_too() -> None:
    model = settled_graph()
    half = halve(model)
    before = half.SerializeToString(deterministic=True)
    rounded = round_as_half(half)
    check_graph(rounded, SIDE, 4)
    assert half.SerializeToString(deterministic=True) == before
    by_the_standard = ReferenceEvaluator(half).run(["logits"], {"image": IMAGES})[0]
    np.testing.assert_allclose(run(rounded, {"image": IMAGES}), by_the_standard, rtol=0.01, atol=0.01)


def test_a_float32_graph_stays_as_it_is() -> None:
    model = settled_graph()
    rounded = round_as_half(model)
    assert list(rounded.graph.node) == list(model.graph.node)
    assert list(rounded.graph.initializer) == list(model.graph.initializer)


def test_a_constant_of_a_node_is_widened() -> None:
    tensor = numpy_helper.from_array(np.array([0.1], np.float16))
    graph = helper.make_graph(
        [
            helper.make_node("Constant", [], ["tenth"], name="constant", value=tensor),
            helper.make_node("Cast", ["tenth"], ["y"], name="cast", to=TensorProto.FLOAT),
        ],
        "constant",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    assert run(round_as_half(model), {}).tolist() == [float(np.float16(0.1))]


def test_operators_that_need_no_rounding_are_onnxs() -> None:
    assert all(onnx.defs.has(name) for name in EXACT)
