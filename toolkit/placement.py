"""Which execution provider runs which node of an onnxruntime session: a session on CUDA may leave nodes to the CPU."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

RECORD = "session.record_ep_graph_assignment_info"
"""Session setting, "1" or "0", without which onnxruntime does not tell."""

HEAVY = ("Conv", "Gemm", "MatMul")
"""Parts of the names of operators that do nearly all the work: QLinearConv, FusedMatMul and their like too."""


@dataclass(frozen=True)
class Placement:
    """Provider → the operators that it runs, one entry a node."""

    operators: Mapping[str, Sequence[str]]

    @classmethod
    def of(cls, session: Any) -> "Placement":
        """Of an onnxruntime.InferenceSession that was made with RECORD."""
        operators: dict[str, list[str]] = {}
        for part in session.get_provider_graph_assignment_info():
            operators.setdefault(part.ep_name, []).extend(node.op_type for node in part.get_nodes())
        return cls(operators)

    @property
    def heavy(self) -> dict[str, int]:
        """Provider → how many convolutions and matrix products it runs, at least one."""
        counts = {
            provider: sum(any(part in operator for part in HEAVY) for operator in operators)
            for provider, operators in self.operators.items()
        }
        return {provider: count for provider, count in counts.items() if count}

    def main_provider(self, wanted: str) -> str:
        """Who does most of the work; `wanted` where it does as much, or where there is no such work."""
        counts = self.heavy
        return max(counts, key=lambda provider: (counts[provider], provider == wanted), default=wanted)

    def describe_strays(self, wanted: str) -> str:
        """What heavy work other providers do: `2 of 9 convolutions and matrix products run on ...`; "" for none."""
        strays = {provider: count for provider, count in self.heavy.items() if provider != wanted}
        if not strays:
            return ""
        total = sum(self.heavy.values())
        return f"{sum(strays.values())} of {total} convolutions and matrix products run on {', '.join(sorted(strays))}"
