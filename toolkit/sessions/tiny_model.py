"""A classifier in ONNX, small enough to try a runtime with: the operators of a real export, one after another.

A runtime that runs it right has the kernels for what this toolkit deploys, not for a convolution alone.
"""

import numpy as np
from numpy.typing import NDArray

SIDE, CHANNELS, CLASSES = 8, 8, 3
BATCH = 2

PROBABILITIES = ((0.89947, 0.03725, 0.06328), (0.89636, 0.04830, 0.05534))
"""Its answer to `images`; worked out outside of any runtime by the test."""


def images() -> NDArray[np.uint8]:
    """(BATCH, SIDE, SIDE, 3), stripes of all values."""
    shape = (BATCH, SIDE, SIDE, 3)
    return (7 * np.arange(np.prod(shape)) % 256).astype(np.uint8).reshape(shape)


def weights() -> dict[str, NDArray[np.float32]]:
    """Of its layers, by the names that the graph has; convolutions as (out, in / groups, height, width)."""
    shapes = {
        "first": (CHANNELS, 3, 3, 3),
        "depthwise": (CHANNELS, 1, 3, 3),
        "pointwise": (CHANNELS, CHANNELS, 1, 1),
        "last": (CLASSES, CHANNELS),
    }
    return {name: np.cos(np.arange(np.prod(shape), dtype=np.float32)).reshape(shape) for name, shape in shapes.items()}


def build() -> bytes:
    """The file: `image` uint8 (N, SIDE, SIDE, 3) → `logits` and `probabilities` float32 (N, CLASSES)."""
    from onnx import TensorProto, helper, numpy_helper

    pads = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Transpose", ["image"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("BatchNormalization", ["floats", "one", "zero", "mean", "variance"], ["normal"], epsilon=0.0),
        helper.make_node("Conv", ["normal", "first"], ["wide"], **pads),
        helper.make_node("MaxPool", ["wide"], ["half"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Clip", ["half", "least", "most"], ["clipped"]),
        helper.make_node("Conv", ["clipped", "depthwise"], ["deep"], group=CHANNELS, **pads),
        helper.make_node("Relu", ["deep"], ["positive"]),
        helper.make_node("Conv", ["positive", "pointwise"], ["mixed"]),
        helper.make_node("Add", ["mixed", "clipped"], ["sum"]),
        helper.make_node("ReduceMean", ["sum", "axes"], ["pooled"], keepdims=1),
        helper.make_node("Reshape", ["pooled", "flat"], ["features"]),
        helper.make_node("Gemm", ["features", "last", "bias"], ["logits"], transB=1),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    constants = weights() | {
        "one": np.ones(3, np.float32),
        "zero": np.zeros(3, np.float32),
        "mean": np.full(3, 127.5, np.float32),
        "variance": np.full(3, 127.5**2, np.float32),
        "least": np.array(0, np.float32),
        "most": np.array(1.5, np.float32),
        "axes": np.array([2, 3], np.int64),
        "flat": np.array([-1, CHANNELS], np.int64),
        "bias": np.zeros(CLASSES, np.float32),
    }
    outputs = ("logits", "probabilities")
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", CLASSES]) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 18)]
    oldest = helper.find_min_ir_version_for(opsets)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=oldest)
    return bytes(model.SerializeToString())
