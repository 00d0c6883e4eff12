"""An ONNX graph in half precision (fp16), of the same inputs and outputs."""

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from toolkit.graphs.layers import find_sources, find_tensors

LARGEST = float(np.finfo(np.float16).max)
"""65,504"""

SMALLEST = float(np.finfo(np.float16).smallest_subnormal)
"""6e-8"""

SUFFIX = "_half"
"""Of a tensor's name in half precision; its plain name is that of float32."""


def halve(model: onnx.ModelProto, keep_float: Collection[str] = ()) -> onnx.ModelProto:
    """The graph of `build.build_graph` with float16 weights and activations; the given graph does not change.

    Nodes named in `keep_float` stay float32. So do normalisation, what depends on shapes or constants alone, the
    softmax and all outputs. Weights beyond float16's range (65,504) become infinite: name their nodes in `keep_float`.
    """
    half = onnx.ModelProto()
    half.CopyFrom(model)
    del half.graph.value_info[:]  # they are of the types before
    _multiply_before_transposing(half.graph)
    _Halving(half, keep_float).run()
    return onnx.shape_inference.infer_shapes(half)


def half_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes that `halve` makes half, in the order of the data: those that layers reach, without the softmax."""
    sources, probabilities = find_sources(model.graph), model.graph.output[-1].name
    reached = (node for node in model.graph.node if sources.get(node.name) != frozenset())
    return [node for node in reached if probabilities not in node.output]


def _multiply_before_transposing(graph: onnx.GraphProto) -> None:
    """Put a transposition that leaves the last axis alone behind the product with a matrix that it goes into.

    The answer is the same. The other way round, in float16, onnxruntime 1.24 to 1.31 crash while they open the file
    (github.com/microsoft/onnxruntime/issues/28392).
    """
    matrices = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 2}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    nodes = list(graph.node)
    for node in graph.node:
        if node.op_type != "Transpose" or len(found := readers.get(node.output[0], [])) != 1:
            continue
        (product,) = found
        order = next((list(attribute.ints) for attribute in node.attribute if attribute.name == "perm"), [0])
        into_product = product.op_type == "MatMul" and product.input[0] == node.output[0]
        if into_product and product.input[1] in matrices and len(order) > 1 and order[-1] == len(order) - 1:
            product.input[0], product.output[0], node.output[0] = node.input[0], node.output[0], product.output[0]
            node.input[0] = product.output[0]
            nodes.remove(node)
            nodes.insert(nodes.index(product) + 1, node)
    _replace(graph.node, nodes)


class _Halving:
    """Node by node, in order. Every float32 tensor keeps its name; its float16 version is called so with SUFFIX.

    Whichever is missing is cast from the other one where it is needed first.
    """

    def __init__(self, model: onnx.ModelProto, keep_float: Collection[str]) -> None:
        self._graph = model.graph
        self._opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
        self._floats = find_tensors(model, TensorProto.FLOAT)
        self._half_nodes = {node.name for node in half_nodes(model)} - set(keep_float)
        self._weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self._known = {*self._weights, *(value.name for value in model.graph.input)}
        self._nodes: list[onnx.NodeProto] = []
        self._half_weights: list[TensorProto] = []

    def run(self) -> None:
        """Change the graph."""
        for node in self._graph.node:
            self._add(node, half=node.name in self._half_nodes)
        for output in self._graph.output:
            self._name(output.name, half=False)
        _replace(self._graph.node, self._nodes)
        used = {name for node in self._nodes for name in node.input}
        weights = [*self._graph.initializer, *self._half_weights]
        _replace(self._graph.initializer, [tensor for tensor in weights if tensor.name in used])

    def _add(self, node: onnx.NodeProto, *, half: bool) -> None:
        """Append the node, in float16 as far as its operator can be."""
        made = onnx.NodeProto()
        made.CopyFrom(node)
        inputs, outputs = self._halvable(node) if half else (set(), set())
        made.input[:] = [self._name(name, half=place in inputs) for place, name in enumerate(node.input)]
        produced = [f"{name}{SUFFIX}" if place in outputs else name for place, name in enumerate(node.output)]
        made.output[:] = produced
        for attribute in made.attribute:
            if outputs and node.op_type == "Cast" and attribute.name == "to":
                attribute.i = TensorProto.FLOAT16
        self._known |= set(produced)
        self._nodes.append(made)

    def _halvable(self, node: onnx.NodeProto) -> tuple[set[int], set[int]]:
        """Places of the float32 inputs and outputs that ONNX's definition of the operator allows to be float16."""
        schema = onnx.defs.get_schema(node.op_type, self._opset, node.domain)
        allowed = {entry.type_param_str: entry.allowed_type_strs for entry in schema.type_constraints}

        def places(names: Any, formal: Any) -> Iterator[int]:
            for place, name in enumerate(names):
                kind = formal[min(place, len(formal) - 1)].type_str
                if name in self._floats and "tensor(float16)" in allowed.get(kind, ()):
                    yield place

        return set(places(node.input, schema.inputs)), set(places(node.output, schema.outputs))

    def _name(self, name: str, *, half: bool) -> str:
        """The name of this version of a tensor, which exists from now on."""
        wanted, other = (f"{name}{SUFFIX}", name) if half else (name, f"{name}{SUFFIX}")
        if not name or wanted in self._known:
            return wanted if name else ""
        self._known.add(wanted)
        if half and name in self._weights:
            rounded = round_values(numpy_helper.to_array(self._weights[name]))
            self._half_weights.append(numpy_helper.from_array(rounded, wanted))
        else:
            to = TensorProto.FLOAT16 if half else TensorProto.FLOAT
            self._nodes.append(helper.make_node("Cast", [other], [wanted], name=f"cast_{wanted}", to=to))
        return wanted


def round_values(values: NDArray[np.float32]) -> NDArray[np.float16]:
    """Weights in float16. What is not zero stays so: some networks divide by what is at least 1e-12."""
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float16)
    vanished = (rounded == 0) & (values != 0)
    rounded[vanished] = np.copysign(SMALLEST, values[vanished])
    return rounded


def _replace(field: Any, values: list[Any]) -> None:
    """Set a repeated field of a protobuf message."""
    kept = [type(value).FromString(value.SerializeToString()) for value in values]
    del field[:]
    field.extend(kept)
