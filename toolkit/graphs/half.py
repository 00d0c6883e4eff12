"""An ONNX graph in half precision (fp16), of the same inputs and outputs."""

import contextlib
import io
import warnings
from collections.abc import Iterable
from typing import Any

import onnx
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.transformers.float16 import convert_float_to_float16

from toolkit.graphs.layers import find_sources


def halve(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph of `build.build_graph` with float16 weights and activations; the given graph does not change.

    Normalisation and the softmax stay float32, as do all outputs: they are cut off, the rest is converted, and they are
    put back. Weights beyond float16's range (65,504) are clipped to it: the proof decides if the graph is good enough.
    """
    half = onnx.ModelProto()
    half.CopyFrom(model)
    graph = half.graph
    sources = find_sources(graph)
    front = [node for node in graph.node if sources.get(node.name) == frozenset()]
    core, softmax = [node for node in graph.node[:-1] if node not in front], graph.node[-1]
    made = {output for node in front for output in node.output}
    (joint,) = {name for node in core for name in node.input} & made
    image, (logits, probabilities), weights = graph.input[0], list(graph.output), list(graph.initializer)
    of_front = {name for node in front for name in node.input}
    between = next(value for value in graph.value_info if value.name == joint)
    _replace(graph.node, core)
    _replace(graph.input, [between])
    _replace(graph.output, [logits])
    _replace(graph.initializer, [tensor for tensor in weights if tensor.name not in of_front])
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # there is one for each weight that rounds to zero
        half = convert_float_to_float16(half, keep_io_types=True)
    graph = half.graph
    _replace(graph.node, [*front, *graph.node, softmax])
    _replace(graph.input, [image])
    _replace(graph.output, [logits, probabilities])
    graph.initializer.extend(tensor for tensor in weights if tensor.name in of_front)
    ONNXModel(half).topological_sort()  # casts stand at the end
    del graph.value_info[:]  # some are of the types before
    return onnx.shape_inference.infer_shapes(half)


def _replace(field: Any, values: Iterable[Any]) -> None:
    """Set a repeated field of a protobuf message."""
    kept = [type(value).FromString(value.SerializeToString()) for value in values]
    del field[:]
    field.extend(kept)
