"""Placement: by hand from what a session tells, and of a real session."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import onnxruntime
import pytest
from tiny_onnx import save_colour_model

from toolkit.placement import RECORD, Placement

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


class ToldSession:
    """Stands for a session whose nodes were placed as the test says, one subgraph a node."""

    def __init__(self, *placed: tuple[str, str]) -> None:
        self.placed = placed

    def get_provider_graph_assignment_info(self) -> list[Any]:
        return [
            SimpleNamespace(ep_name=provider, get_nodes=lambda operator=operator: [SimpleNamespace(op_type=operator)])
            for provider, operator in self.placed
        ]


def test_nodes_are_gathered_by_provider() -> None:
    placement = Placement.of(ToldSession((CUDA, "Conv"), (CPU, "Shape"), (CUDA, "Relu"), (CPU, "Gemm")))
    assert placement.operators == {CUDA: ["Conv", "Relu"], CPU: ["Shape", "Gemm"]}
    assert placement.heavy == {CUDA: 1, CPU: 1}


@pytest.mark.parametrize(
    ("placed", "main", "strays"),
    [
        ([(CUDA, "Conv"), (CUDA, "Gemm"), (CPU, "Shape"), (CPU, "Gather")], CUDA, ""),
        ([(CUDA, "Conv"), (CPU, "Gemm")], CUDA, f"1 of 2 convolutions and matrix products run on {CPU}"),
        (
            [(CUDA, "MatMul"), (CPU, "QLinearConv"), (CPU, "FusedMatMul")],
            CPU,
            f"2 of 3 convolutions and matrix products run on {CPU}",
        ),
        ([(CPU, "Conv"), (CPU, "MatMulInteger")], CPU, f"2 of 2 convolutions and matrix products run on {CPU}"),
        ([(CPU, "Relu")], CUDA, ""),
        ([], CUDA, ""),
    ],
)
def test_who_does_the_work(placed: list[tuple[str, str]], main: str, strays: str) -> None:
    placement = Placement.of(ToldSession(*placed))
    assert placement.main_provider(CUDA) == main
    assert placement.describe_strays(CUDA) == strays


def test_a_real_session_tells_every_node(tmp_path: Path) -> None:
    path = save_colour_model(tmp_path / "colour.onnx")
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(RECORD, "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=[CPU])
    operators = Placement.of(session).operators
    assert list(operators) == [CPU]
    assert Counter(operators[CPU]) == Counter(node.op_type for node in onnx.load(str(path)).graph.node)
    assert Placement.of(session).heavy == {CPU: 1}
