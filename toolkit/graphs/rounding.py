"""A float16 graph as float16 hardware computes it, on any CPU.

onnxruntime computes a float16 file in float32 on most CPUs, and rounds nothing between the nodes: an activation of
100,000, which is infinite in float16, passes unnoticed.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from toolkit.graphs.layers import find_tensors

EXACT = frozenset({
    "Concat", "Expand", "Flatten", "Gather", "GatherND", "Identity", "MaxPool", "Relu", "Reshape", "ScatterND", "Slice",
    "Split", "Squeeze", "Transpose", "Unsqueeze", "Where",
})  # fmt: skip
"""Node types whose outputs are some of their inputs, or zero: they need no rounding."""


def round_as_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """A float32 graph in which every tensor that is float16 in `model` is rounded to float16, where it is made.

    Within one node it computes in float32, sums among it, as onnxruntime's CUDA provider does. A graph without float16
    stays as it is. The given graph does not change.
    """
    halves = find_tensors(model, TensorProto.FLOAT16)
    rounded = onnx.ModelProto()
    rounded.CopyFrom(model)
    graph = rounded.graph
    del graph.node[:], graph.value_info[:]
    for node in model.graph.node:
        graph.node.extend(_rounding(node, halves))
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            tensor.CopyFrom(_widened(tensor))
    return rounded


def _rounding(node: onnx.NodeProto, halves: set[str]) -> list[onnx.NodeProto]:
    """The node in float32, and the casts that round its outputs."""
    made = onnx.NodeProto()
    made.CopyFrom(node)
    for attribute in made.attribute:
        if attribute.t.data_type == TensorProto.FLOAT16:
            attribute.t.CopyFrom(_widened(attribute.t))
        elif node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT16:
            attribute.i = TensorProto.FLOAT
    nodes = [made]
    for place, name in enumerate(node.output):
        if name in halves and node.op_type not in EXACT:
            exact, narrow = f"{name}_exact", f"{name}_narrow"
            made.output[place] = exact
            nodes.append(helper.make_node("Cast", [exact], [narrow], name=f"round_{exact}", to=TensorProto.FLOAT16))
            nodes.append(helper.make_node("Cast", [narrow], [name], name=f"widen_{narrow}", to=TensorProto.FLOAT))
    return nodes


def _widened(tensor: TensorProto) -> TensorProto:
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)
