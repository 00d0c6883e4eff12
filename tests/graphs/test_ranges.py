"""What half precision cannot hold: it is found where it is, and nowhere else."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from small_networks import SIDE, graph_of, settled_network

from toolkit.graphs.half import LARGEST
from toolkit.graphs.layers import name_nodes
from toolkit.graphs.ranges import HEADROOM, Ranges

IMAGES = np.random.default_rng(0).integers(0, 256, (6, SIDE, SIDE, 3), dtype=np.uint8)
BATCHES = (IMAGES[:4], IMAGES[4:])


def scaled(first: str, second: str, factor: float) -> onnx.ModelProto:
    """The student, whose layer `first` is `factor` times as large and `second` makes that good: the same function."""
    network = settled_network("depthwise")
    state = network.state_dict()
    for name, value in ((first, factor), (second, 1 / factor)):
        state[f"{name}.weight"] = state[f"{name}.weight"] * value
    state[f"{first}.bias"] = state[f"{first}.bias"] * factor
    network.load_state_dict(state)
    return graph_of(network, SIDE)


@pytest.fixture(scope="module")
def plain() -> onnx.ModelProto:
    return scaled("cnn.2.3", "cnn.3.0", 1.0)


def test_an_ordinary_network_has_nothing_of_the_kind(plain: onnx.ModelProto) -> None:
    assert Ranges(plain, 1).find_overflows(BATCHES) == set()
    assert Ranges(plain, 1).find_losses(BATCHES) == set()


def test_a_large_activation_is_found_where_it_is_made_and_read() -> None:
    model = scaled("cnn.2.3", "cnn.3.0", 2.0**20)
    found = Ranges(model, 1).find_overflows(BATCHES)
    assert name_nodes(model.graph, found) == ("cnn.2.3", "MaxPool after cnn.2.3", "cnn.3.0")
    assert Ranges(model, 1, found).find_overflows(BATCHES) == set(), "the rest is not touched"


def test_a_small_activation_is_a_loss_and_no_overflow() -> None:
    model = scaled("cnn.2.3", "cnn.3.0", 2.0**-24)
    found = Ranges(model, 1).find_losses(BATCHES)
    assert {"cnn.2.3", "cnn.3.0"} <= set(name_nodes(model.graph, found))
    assert Ranges(model, 1, found).find_losses(BATCHES) == set()


def one_layer(matrix: np.ndarray, *between: onnx.NodeProto, **constants: np.ndarray) -> onnx.ModelProto:
    """uint8 (N, H, W, C) → float32 → times `matrix`, called `layer` → `x` → `between` → `logits`, softmax."""
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["floats", "matrix"], ["x"], name="layer"),
        *between,
        helper.make_node("Softmax", ["logits"], ["probabilities"], name="softmax"),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", "H", "W", len(matrix)])
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("logits", "probabilities")]
    tensors = [numpy_helper.from_array(value, name) for name, value in {"matrix": matrix, **constants}.items()]
    graph = helper.make_graph(nodes, "layer", [image], outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def whites(channels: int) -> tuple[np.ndarray, ...]:
    return (np.full((1, 1, 1, channels), 255, np.uint8),)


IDENTITY = helper.make_node("Identity", ["x"], ["logits"], name="identity")


@pytest.mark.parametrize(("share", "found"), [(0.99, set()), (1.01, {"layer", "identity"})])
def test_other_pictures_may_have_values_some_times_as_large(share: float, found: set[str]) -> None:
    matrix = np.array([[share * LARGEST / HEADROOM / 255, 0.0]], np.float32)
    assert Ranges(one_layer(matrix, IDENTITY), 1).find_overflows(whites(1)) == found


def test_a_sum_that_ends_small_may_be_large_on_the_way() -> None:
    """1,000 products of 100 and as many of -100 make 0; in float16, in that order, they are infinite."""
    matrix = np.repeat([100 / 255, -100 / 255], 1000).astype(np.float32)[:, np.newaxis]
    in_order = (255 * matrix[:, 0]).astype(np.float16)
    with np.errstate(over="ignore"):
        assert in_order[:1000].sum(dtype=np.float16) == np.inf
    assert Ranges(one_layer(matrix, IDENTITY), 1).find_overflows(whites(2000)) == {"layer"}


LONG = 300
"""px; 300·255 is beyond 65,504, and so is the square of 255 times 300"""

AXES = {"axes": np.array([1, 2])}
MEANS: dict[str, tuple[dict[str, object], dict[str, np.ndarray]]] = {
    "ReduceMean": ({"keepdims": 0}, AXES),
    "ReduceL2": ({"keepdims": 0}, AXES),
    "ReduceSum": ({"keepdims": 0}, AXES),
    "GlobalAveragePool": ({}, {}),
    "AveragePool": ({"kernel_shape": [LONG, 1], "count_include_pad": 1}, {}),
}
"""Node type → its attributes and constants."""


@pytest.mark.parametrize("operator", MEANS)
def test_a_mean_is_a_sum_first(operator: str) -> None:
    """A strip of 300 whites: no value is beyond 255."""
    attributes, constants = MEANS[operator]
    node = helper.make_node(operator, ["x", *constants], ["logits"], name="mean", **attributes)
    for white, found in ((1.0, {"mean"}), (1 / 255, set())):
        model = one_layer(np.array([[white]], np.float32), node, **constants)
        strip = (np.full((1, 1, LONG, 1), 255, np.uint8),)
        assert Ranges(model, 1).find_overflows(strip) == found, white


def test_weights_count_too() -> None:
    """Pictures may be black; a weight of 1e5 is infinite all the same, and one of 1e-9 is lost."""
    black = (np.zeros((1, 1, 1, 1), np.uint8),)
    assert Ranges(one_layer(np.full((1, 2), 1e5, np.float32), IDENTITY), 1).find_overflows(black) == {"layer"}
    assert Ranges(one_layer(np.full((1, 2), 1e-9, np.float32), IDENTITY), 1).find_losses(black) == {"layer"}


def test_what_is_infinite_in_float32_is_meant() -> None:
    """A mask of -inf before a softmax is the same in float16."""
    add = helper.make_node("Add", ["x", "mask"], ["logits"], name="add")
    model = one_layer(np.eye(2, dtype=np.float32), add, mask=np.array([0, -np.inf], np.float32))
    assert Ranges(model, 1).find_overflows(whites(2)) == set()
    assert Ranges(model, 1).find_losses(whites(2)) == set()


def test_sums_are_those_of_absolute_products() -> None:
    """By torch in float64, for a convolution with groups, strides and padding."""
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
    images = torch.randn(3, 4, 9, 9)
    from toolkit.graphs.ranges import _Watch

    conv = helper.make_node("Conv", ["image", "w", "b"], ["y"], name="conv", strides=[2, 2], pads=[1] * 4, group=2)
    weights = {"w": layer.weight.detach().numpy(), "b": layer.bias.detach().numpy()}
    graph = helper.make_graph(
        [conv],
        "conv",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 4, 9, 9])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    watch = _Watch(model, 1)
    watch.add_output("ReduceMax", [watch.sum_absolute(conv, ["image"], weights)])
    ((found,),) = watch.run([images.numpy()])  # type: ignore[list-item]
    with torch.no_grad():
        layer.weight.abs_(), layer.bias.abs_()
        expected = layer.double()(images.double().abs()).max().item()
    assert found == pytest.approx(expected, rel=1e-5)
