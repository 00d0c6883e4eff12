"""Warnings about the times: a busy machine, a row that is not steady, two rows that cannot be ranked."""

import itertools
from collections.abc import Sequence

from toolkit.bench.schema import Hardware, ReportRow

WIDE = 0.2
"""Range of a row's medians by round over its p50; a row above that is called not steady."""

BUSY = 0.25
"""Share of the cores that other processes may use before the machine is called busy."""


def find_noise(rows: Sequence[ReportRow], hardware: Hardware) -> list[str]:
    """All warnings about the report's speed; `hardware` as hardware.describe_hardware measured it before."""
    return [*find_load(hardware), *find_restless_rows(rows), *find_close_rows(rows)]


def find_load(hardware: Hardware) -> list[str]:
    """A sentence if other processes kept more than BUSY of the cores busy when the benchmark began."""
    load, cores = hardware.other_load_cores, hardware.cores
    if load is None or load <= BUSY * cores:
        return []
    return [
        f"other programs kept {load:.1f} of {cores} cores busy when the benchmark began, so its times are too long;"
        " measure again when the machine is idle"
    ]


def find_restless_rows(rows: Sequence[ReportRow]) -> list[str]:
    """A sentence for each row whose median by round varies by more than WIDE of its p50."""
    found = []
    for row in rows:
        latency = row.latency_ms
        width = (latency.round_p50_max - latency.round_p50_min) / latency.p50
        if width > WIDE:
            found.append(
                f"the latency of {name_row(row)} is not steady: its p50 by round is {_range(row)}, a range of"
                f" {100 * width:.0f} % of {latency.p50:.4g} ms; measure again on a quieter machine"
            )
    return found


def find_close_rows(rows: Sequence[ReportRow]) -> list[str]:
    """A sentence for each two rows, next to each other by p50, whose medians by round overlap.

    Controls are left out: a control has the student's network.
    """
    ranked = sorted((row for row in rows if row.model != "control"), key=lambda row: row.latency_ms.p50)
    return [
        f"{name_row(faster)} and {name_row(slower)} cannot be ranked by latency: their p50 by round overlap,"
        f" {_range(faster)} and {_range(slower)}"
        for faster, slower in itertools.pairwise(ranked)
        if faster.latency_ms.round_p50_max >= slower.latency_ms.round_p50_min
    ]


def name_row(row: ReportRow) -> str:
    """`student int8 (onnxruntime)`"""
    return f"{row.model} {row.precision} ({row.runtime})"


def _range(row: ReportRow) -> str:
    latency = row.latency_ms
    return f"{latency.round_p50_min:.4g} to {latency.round_p50_max:.4g} ms"
