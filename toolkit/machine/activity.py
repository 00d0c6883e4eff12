"""The present activity of the processor: its clock, the load, and the share of other processes."""

import contextlib
import os
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from toolkit.machine.limits import ROOT

COUNTED = (0, 1, 2, 5, 6, 7)
"""Columns of /proc/stat that count as work: user, nice, system, irq, softirq, steal (proc(5))."""


def clock_mhz(root: Path = ROOT) -> int | None:
    """MHz, the mean of all cores at this moment; None if the system does not say."""
    try:
        text = (root / "proc" / "cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    clocks = [float(value) for value in re.findall(r"^cpu MHz\s*:\s*([\d.]+)", text, re.MULTILINE)]
    return round(statistics.fmean(clocks)) if clocks else None


def load_1m() -> float | None:
    """The system's load average over the last minute, including this process's own work; None on Windows."""
    with contextlib.suppress(OSError, AttributeError):
        return round(os.getloadavg()[0], 2)
    return None


def other_load_cores(
    root: Path = ROOT,
    seconds: float = 0.25,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.perf_counter,
    own_clock: Callable[[], float] = time.process_time,
) -> float | None:
    """Cores that other processes keep busy, measured over `seconds`; None if the system does not say."""
    before, start, own = _busy_s(root), clock(), own_clock()
    sleep(seconds)
    after, end = _busy_s(root), clock()
    if before is None or after is None:
        return None
    others_s = after - before - (own_clock() - own)
    return round(max(0.0, others_s / (end - start)), 2)


def _busy_s(root: Path) -> float | None:
    """Seconds that all cores together have worked since the machine started."""
    try:
        columns = (root / "proc" / "stat").read_text(encoding="utf-8").splitlines()[0].split()[1:]
        return sum(int(columns[i]) for i in COUNTED) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return None
