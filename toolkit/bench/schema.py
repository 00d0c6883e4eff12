"""The rows of report.json, and how to find one."""

from collections.abc import Sequence
from typing import Any

ReportRow = dict[str, Any]


def find_row(
    rows: Sequence[ReportRow], model: str, runtime: str, precision: str = "fp32", *, provider: str | None = None
) -> ReportRow | None:
    """The first such row; of any provider where none is given."""
    wanted = (model, runtime, precision)
    for row in rows:
        if (row["model"], row["runtime"], row["precision"]) == wanted and provider in (None, row.get("provider")):
            return row
    return None


def short_provider(provider: str) -> str:
    """`CPUExecutionProvider` → `cpu`, `CUDAExecutionProvider:1` → `cuda:1`; torch's names stay."""
    return provider.replace("ExecutionProvider", "").lower()
