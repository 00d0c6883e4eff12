"""The nodes of an ONNX graph that have weights, and the nodes before and between them."""

from collections.abc import Collection

import onnx

LAYERS = ("Conv", "Gemm", "MatMul")
"""Node types with weights: a smaller type is worth it for them, and each can stay float32 by name."""

SHAPES = ("Shape", "Size")
"""Node types whose output tells of a tensor's form, and nothing of its values."""

NETWORK = "classifier.network."
"""what the names of weights begin with in the graphs of build.py"""


def find_layers(graph: onnx.GraphProto) -> tuple[str, ...]:
    """Names of the nodes with weights, in the order of the data."""
    return tuple(node.name for node in graph.node if node.op_type in LAYERS)


def find_sources(graph: onnx.GraphProto) -> dict[str, frozenset[str]]:
    """For every other node the layers whose output reaches it through no further layer; empty before the first one.

    A shape is no output: what is made of shapes and constants alone has no source.
    """
    flowing: dict[str, frozenset[str]] = {}
    sources = {}
    for node in graph.node:
        if node.op_type in LAYERS:
            reach = frozenset({node.name})
        else:
            reach = sources[node.name] = frozenset().union(*(flowing.get(name, ()) for name in node.input))
        if node.op_type not in SHAPES:
            flowing |= dict.fromkeys(node.output, reach)
    return sources


def find_tensors(model: onnx.ModelProto, kind: int) -> set[str]:
    """Names of all tensors of a type (onnx.TensorProto.FLOAT, ...), weights among them."""
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    values = [*graph.value_info, *graph.input, *graph.output]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    return {name for name, found in types.items() if found == kind}


def name_layer(graph: onnx.GraphProto, layer: str) -> str:
    """A layer's name in the network, `cnn.3.0`; the node's own name if neither its weights nor its bias say."""
    node = next(node for node in graph.node if node.name == layer)
    added = (other for other in graph.node if other.op_type == "Add" and node.output[0] in other.input)
    inputs = [*node.input[1:], *(name for other in added for name in other.input)]
    weights = next((name for name in inputs if name.startswith(NETWORK)), "")
    return weights.removeprefix(NETWORK).rpartition(".")[0] or layer


def name_nodes(graph: onnx.GraphProto, nodes: Collection[str]) -> tuple[str, ...]:
    """What people call these nodes, in the order of the data: `cnn.2.3` is a layer, `MaxPool after cnn.2.3` is none."""
    sources, order = find_sources(graph), list(find_layers(graph))
    names = []
    for node in graph.node:
        if node.name not in nodes:
            continue
        if node.op_type in LAYERS:
            names.append(name_layer(graph, node.name))
        else:
            last = max(sources[node.name], key=order.index, default="")
            names.append(f"{node.op_type} after {name_layer(graph, last)}" if last else node.op_type)
    return tuple(dict.fromkeys(names))
