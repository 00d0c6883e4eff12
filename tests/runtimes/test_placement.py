"""Placement: by hand from a session's list of nodes, and of a real session."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from toolkit.runtimes.placement import RECORD, Placement

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


class PlacedSession:
    """Stands for a session with these placed nodes, one subgraph per node: provider, operator, name."""

    def __init__(self, *placed: tuple[str, ...]) -> None:
        self.placed = placed

    def get_provider_graph_assignment_info(self) -> list[Any]:
        return [
            SimpleNamespace(ep_name=provider, get_nodes=lambda node=node: [node])
            for provider, node in (
                (provider, SimpleNamespace(op_type=operator, name="".join(name)))
                for provider, operator, *name in self.placed
            )
        ]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file whose nodes are named after their operators: image → Cast → Reshape → Gemm → logits, and the shape's way.

    Shape → Gather → Concat → the shape that Reshape takes; Dequantize → the weights of Gemm.
    """
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], "Cast", to=TensorProto.FLOAT),
        helper.make_node("Shape", ["image"], ["shape"], "Shape"),
        helper.make_node("Gather", ["shape", "first"], ["count"], "Gather"),
        helper.make_node("Concat", ["count", "rest"], ["flat"], "Concat", axis=0),
        helper.make_node("Reshape", ["float", "flat"], ["features"], "Reshape"),
        helper.make_node("DequantizeLinear", ["whole", "scale"], ["weight"], "DequantizeLinear"),
        helper.make_node("Gemm", ["features", "weight"], ["logits"], "Gemm"),
    ]
    constants = {
        "first": np.array([0], np.int64),
        "rest": np.array([12], np.int64),
        "whole": np.ones((12, 2), np.int8),
        "scale": np.array(0.5, np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "named",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 2, 2, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 2])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    path = tmp_path_factory.mktemp("placement") / "named.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def test_nodes_are_gathered_by_provider() -> None:
    placement = Placement.of(
        PlacedSession((CUDA, "Conv", "a"), (CPU, "Shape", "b"), (CUDA, "Relu", "c"), (CPU, "Gemm"))
    )
    assert placement.nodes == {CUDA: [("a", "Conv"), ("c", "Relu")], CPU: [("b", "Shape"), ("", "Gemm")]}
    assert placement.heavy == {CUDA: 1, CPU: 1}


@pytest.mark.parametrize(
    ("placed", "main"),
    [
        ([(CUDA, "Conv"), (CUDA, "Gemm"), (CPU, "Shape"), (CPU, "Gather")], CUDA),
        ([(CUDA, "Conv"), (CPU, "Gemm")], CUDA),
        ([(CUDA, "MatMul"), (CPU, "QLinearConv"), (CPU, "FusedMatMul")], CPU),
        ([(CPU, "Conv"), (CPU, "MatMulInteger")], CPU),
        ([(CPU, "Relu")], CUDA),
        ([], CUDA),
    ],
)
def test_the_provider_that_does_most_of_the_work(placed: list[tuple[str, str]], main: str) -> None:
    assert Placement.of(PlacedSession(*placed)).main_provider(CUDA) == main


@pytest.mark.parametrize(
    ("on_cpu", "strays"),
    [
        ([], ""),
        (["Shape", "Gather", "Concat"], ""),
        (["DequantizeLinear"], ""),
        (["Cast"], f"1 of its 3 operators run on {CPU} (Cast)"),
        (["Shape", "Reshape", "Gemm"], f"2 of its 3 operators run on {CPU} (Reshape, Gemm)"),
        (["Cast", "Reshape", "Gemm"], f"3 of its 3 operators run on {CPU} (Cast, Reshape, Gemm)"),
    ],
)
def test_operators_of_the_images_elsewhere_are_reported(path: Path, on_cpu: list[str], strays: str) -> None:
    names = [node.name for node in onnx.load(path).graph.node]
    placement = Placement.of(PlacedSession(*((CPU if name in on_cpu else CUDA, name, name) for name in names)))
    assert placement.describe_strays(CUDA, path) == strays


def test_of_operators_that_onnxruntime_rewrote_the_heavy_ones_count(path: Path) -> None:
    placement = Placement.of(
        PlacedSession((CUDA, "Gemm", "Gemm"), (CPU, "Conv", "Conv_token_7"), (CPU, "Slice", "new"))
    )
    assert placement.describe_strays(CUDA, path) == f"1 of its 2 operators run on {CPU} (Conv)"


def test_a_real_session_lists_every_node(path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry(RECORD, "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=[CPU])
    nodes = Placement.of(session).nodes
    assert list(nodes) == [CPU]
    assert set(nodes[CPU]) == {(node.name, node.op_type) for node in onnx.load(str(path)).graph.node}
    assert Placement.of(session).heavy == {CPU: 1}
    assert Placement.of(session).describe_strays(CPU, path) == ""
