"""The nodes of an ONNX graph that have weights, and the nodes before and between them."""

import onnx

LAYERS = ("Conv", "Gemm", "MatMul")
"""Node types with weights: a smaller type is worth it for them, and each can stay float32 by name."""


def find_layers(graph: onnx.GraphProto) -> tuple[str, ...]:
    """Names of the nodes with weights, in the order of the data."""
    return tuple(node.name for node in graph.node if node.op_type in LAYERS)


def find_sources(graph: onnx.GraphProto) -> dict[str, frozenset[str]]:
    """For every other node the layers whose output reaches it through no further layer; empty before the first one."""
    flowing: dict[str, frozenset[str]] = {}
    sources = {}
    for node in graph.node:
        if node.op_type in LAYERS:
            reach = frozenset({node.name})
        else:
            reach = sources[node.name] = frozenset().union(*(flowing.get(name, ()) for name in node.input))
        flowing |= dict.fromkeys(node.output, reach)
    return sources


def name_layer(graph: onnx.GraphProto, layer: str) -> str:
    """A layer's name in the network, `cnn.3.0`; the node's own name if its weights do not say."""
    node = next(node for node in graph.node if node.name == layer)
    weights = next((name for name in node.input[1:] if "." in name), "")
    name = weights.removeprefix("classifier.").removeprefix("network.").rpartition(".")[0]
    return name or layer
