"""Where half precision does not suit a graph: values and sums too large for it, and values too small.

It is measured on images, in the float32 graph. N images, S px their side.
"""

from collections.abc import Collection, Iterable, Iterator

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from toolkit.graphs.half import LARGEST, half_nodes, round_values
from toolkit.graphs.layers import find_tensors
from toolkit.sessions.session import open_session

HEADROOM = 4
"""how many times the largest value on these images has to fit: other images may exceed it"""

LARGEST_LOSS = 2.0**-8
"""Root mean square of what rounding takes from a tensor, over that of the tensor; 2e-4 is usual.

Float16 has 11 bits down to 6e-5, fewer and fewer below, and none below 3e-8.
"""

SUMS = {
    "AveragePool": "LpPool",
    "Conv": "Conv",
    "Gemm": "Gemm",
    "GlobalAveragePool": "GlobalLpPool",
    "MatMul": "MatMul",
    "ReduceL2": "ReduceSumSquare",
    "ReduceMean": "ReduceSum",
    "ReduceSum": "ReduceSum",
}
"""Node types that add → what makes, of absolute values, the largest sum that can arise on the way, in any order."""

Batches = Iterable[NDArray[np.uint8]]
"""images (N, S, S, 3)"""


class Ranges:
    """Of the nodes that `halve(model, keep_float)` makes half, finds those that half precision does not suit."""

    def __init__(self, model: onnx.ModelProto, threads: int, keep_float: Collection[str] = ()) -> None:
        """`threads` compute one operator."""
        self._model, self._threads = model, threads
        self._nodes = [node for node in half_nodes(model) if node.name not in keep_float]
        floats = find_tensors(model, TensorProto.FLOAT)
        touched = {name for node in self._nodes for name in (*node.input, *node.output) if name in floats}
        weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self._weights = {name: numpy_helper.to_array(weights[name]) for name in sorted(touched & weights.keys())}
        self._tensors = sorted(touched - weights.keys())

    def find_overflows(self, batches: Batches) -> set[str]:
        """Names of nodes that read or make a value beyond float16's range, or add up to one on the way."""
        watch = _Watch(self._model, self._threads)
        for name in self._tensors:
            watch.add_output("ReduceMax", [watch.absolute(name)])
        adding = [node for node in self._nodes if node.op_type in SUMS]
        for node in adding:
            watch.add_output("ReduceMax", [watch.sum_absolute(node, self._tensors, self._weights)])
        most = np.max(list(watch.run(batches)), axis=0)
        peaks, sums = most[: len(self._tensors)], most[len(self._tensors) :]
        large = {name for name, peak in zip(self._tensors, peaks, strict=True) if LARGEST / HEADROOM < peak < np.inf}
        large |= {name for name, values in self._weights.items() if LARGEST < np.abs(values).max(initial=0) < np.inf}
        summing = {node.name for node, most in zip(adding, sums, strict=True) if LARGEST < most < np.inf}
        return self._touching(large) | summing

    def find_losses(self, batches: Batches) -> set[str]:
        """Names of nodes that read or make a tensor of which rounding to float16 takes more than LARGEST_LOSS."""
        watch = _Watch(self._model, self._threads)
        for name in self._tensors:
            narrow = watch.add("Cast", [name], to=TensorProto.FLOAT16)
            error = watch.add("Sub", [name, watch.add("Cast", [narrow], to=TensorProto.FLOAT)])
            watch.add_output("ReduceSumSquare", [error])
            watch.add_output("ReduceSumSquare", [name])
        squares = np.sum(list(watch.run(batches)), axis=0).reshape(-1, 2)
        pairs = dict(zip(self._tensors, squares.tolist(), strict=True))
        for name, values in self._weights.items():
            exact = values.astype(np.float64)
            with np.errstate(invalid="ignore"):  # what is infinite loses nothing
                pairs[name] = [np.square(exact - round_values(values)).sum(), np.square(exact).sum()]
        return self._touching({name for name, (lost, whole) in pairs.items() if lost > LARGEST_LOSS**2 * whole})

    def _touching(self, tensors: set[str]) -> set[str]:
        return {node.name for node in self._nodes if not tensors.isdisjoint((*node.input, *node.output))}


class _Watch:
    """A copy of a graph whose outputs are single numbers about its tensors."""

    def __init__(self, model: onnx.ModelProto, threads: int) -> None:
        self._model, self._threads = onnx.ModelProto(), threads
        self._model.CopyFrom(model)
        del self._model.graph.output[:]
        self._absolute: dict[str, str] = {}

    def add(self, op_type: str, inputs: Collection[str], **attributes: object) -> str:
        """Append a node; the name of its output."""
        name = f"watch_{len(self._model.graph.node)}"
        self._model.graph.node.append(helper.make_node(op_type, inputs, [name], name=name, **attributes))
        return name

    def add_output(self, op_type: str, inputs: Collection[str]) -> None:
        """A reduction to one number, which is an output."""
        name = self.add(op_type, inputs, keepdims=0)
        self._model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, []))

    def absolute(self, name: str) -> str:
        if name not in self._absolute:
            self._absolute[name] = self.add("Abs", [name])
        return self._absolute[name]

    def sum_absolute(self, node: onnx.NodeProto, *floats: Collection[str]) -> str:
        """The sums of a node of SUMS, of absolute values; `floats` are names of float32 tensors."""
        inputs = [self.absolute(name) if any(name in known for known in floats) else name for name in node.input]
        name = self.add(SUMS[node.op_type], inputs)
        attributes = self._model.graph.node[-1].attribute
        attributes.extend(attribute for attribute in node.attribute if attribute.name != "count_include_pad")
        if SUMS[node.op_type].endswith("LpPool"):
            attributes.append(helper.make_attribute("p", 1))
        return name

    def run(self, batches: Batches) -> Iterator[NDArray[np.float64]]:
        """One vector of the outputs for each batch."""
        session = open_session(self._model.SerializeToString(), self._threads)
        (image,) = (value.name for value in self._model.graph.input)
        for images in batches:
            yield np.array(session.run(None, {image: images}), dtype=np.float64)
