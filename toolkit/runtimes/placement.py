"""The execution provider of each node of an onnxruntime session: a session on CUDA may leave nodes to the CPU."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

RECORD = "session.record_ep_graph_assignment_info"
"""Session setting, "1" or "0": onnxruntime records the placement only with it."""

HEAVY = ("Conv", "Gemm", "MatMul")
"""Parts of the names of operators that do nearly all the work: QLinearConv, FusedMatMul and their like too."""

OF_SHAPES = ("Shape", "Size")
"""Operators whose output depends on an image's shape alone, not on its pixels."""


class Node(NamedTuple):
    name: str
    operator: str

    @property
    def is_heavy(self) -> bool:
        return any(part in self.operator for part in HEAVY)


@dataclass(frozen=True)
class Placement:
    """Provider → the nodes that it runs."""

    nodes: Mapping[str, Sequence[Node]]

    @classmethod
    def of(cls, session: Any) -> "Placement":
        """Of an onnxruntime.InferenceSession that was made with RECORD."""
        nodes: dict[str, list[Node]] = {}
        for part in session.get_provider_graph_assignment_info():
            nodes.setdefault(part.ep_name, []).extend(Node(node.name, node.op_type) for node in part.get_nodes())
        return cls(nodes)

    @property
    def heavy(self) -> dict[str, int]:
        """Provider → how many convolutions and matrix products it runs, at least one."""
        counts = {provider: sum(node.is_heavy for node in nodes) for provider, nodes in self.nodes.items()}
        return {provider: count for provider, count in counts.items() if count}

    def main_provider(self, wanted: str) -> str:
        """The provider that does most of the work; `wanted` if it does as much, or if there is no such work."""
        counts = self.heavy
        return max(counts, key=lambda provider: (counts[provider], provider == wanted), default=wanted)

    def describe_strays(self, wanted: str, path: Path) -> str:
        """The work of other providers on the images: `2 of its 14 operators run on CPUExecutionProvider (Cast, Gemm)`.

        "" if it is nothing: they may compute shapes, and values that follow from weights alone. `path` is the file's.
        """
        others = [provider for provider in self.nodes if provider != wanted]
        if not others:
            return ""
        carriers = _find_carriers(path)
        # onnxruntime renames operators that it rewrites; of those, only the heavy ones count
        mine = {
            provider: [node.operator for node in nodes if node.name in carriers or node.is_heavy]
            for provider, nodes in self.nodes.items()
        }
        strays = {provider: mine[provider] for provider in sorted(others) if mine[provider]}
        texts = [
            f"{len(operators)} of its {sum(map(len, mine.values()))} operators run on {provider}"
            f" ({', '.join(dict.fromkeys(operators))})"
            for provider, operators in strays.items()
        ]
        return ", ".join(texts)


def _find_carriers(path: Path) -> set[str]:
    """Names of the nodes of an ONNX file whose answer depends on what its inputs hold, not on their shape alone."""
    import onnx

    graph = onnx.load_model(path).graph
    carried, names = {value.name for value in graph.input}, set()
    for node in graph.node:
        if node.op_type not in OF_SHAPES and carried.intersection(node.input):
            carried.update(node.output)
            names.add(node.name)
    return names
