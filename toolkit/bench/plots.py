"""Pictures of a report."""

import io
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from toolkit import console
from toolkit.palette import COLOURS, FAINT, INK

EDGES = {"torch": "-", "onnxruntime": "--"}
LARGEST_BUBBLE = 1600.0
"""points², the area of the largest file's bubble; the others' are in proportion, down to SMALLEST_BUBBLE"""
SMALLEST_BUBBLE = 36.0


def draw_accuracy_latency(report: dict[str, Any]) -> bytes:
    """PNG: top-1 accuracy against p50 latency of batch 1 (log scale); a row is a bubble, its area the file's size."""
    rows = report["rows"]
    figure = Figure(figsize=(8, 5), dpi=160, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)  # no global state, no display
    axes = figure.add_subplot()
    largest = max(row["size_bytes"] for row in rows)
    for row in rows:
        _draw_bubble(axes, row, max(SMALLEST_BUBBLE, LARGEST_BUBBLE * row["size_bytes"] / largest))
    _scale_axes(axes, rows)
    dataset = report["dataset"]
    axes.set_title(f"{dataset['name']}: accuracy against latency", loc="left", color=INK, fontsize=13, pad=26)
    hardware = report["hardware"]
    where = hardware["gpu"] or f"{hardware['cpu']}, {hardware['cores']} cores"
    subtitle = f"{dataset['images']:,} test images · batch 1 · {where} · bubble area: file size"
    axes.text(0, 1.03, subtitle, transform=axes.transAxes, color="#666666", fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _draw_bubble(axes: Axes, row: dict[str, Any], area: float) -> None:
    x, y = row["latency_ms"]["p50"], 100 * row["accuracy_top1"]
    colour = COLOURS[row["model"]]
    axes.scatter([x], [y], s=area, color=colour, alpha=0.55, linewidths=0, zorder=2)
    axes.scatter([x], [y], s=area, facecolors="none", edgecolors=colour, linestyle=EDGES[row["runtime"]], zorder=3)
    precision = "" if row["precision"] == "fp32" else f" {row['precision']}"
    label = f"{row['model']}{precision}, {row['runtime']}\n{x:.2f} ms · {y:.1f} % · {console.size(row['size_bytes'])}"
    radius_points = (area / 3.1416) ** 0.5
    # students lie close together: their labels stand beside them, out of the way of the teachers' above and below
    beside = row["model"] != "teacher"
    above = row["runtime"] == "torch"
    offset = radius_points + 5
    axes.annotate(
        label,
        (x, y),
        xytext=(offset, 0) if beside else (0, offset if above else -offset),
        textcoords="offset points",
        ha="left" if beside else "center",
        va="center" if beside else "bottom" if above else "top",
        color=INK,
        fontsize=8.5,
        zorder=4,
    )


def _scale_axes(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    latencies = [row["latency_ms"]["p50"] for row in rows]
    accuracies = [100 * row["accuracy_top1"] for row in rows]
    axes.set_xscale("log")
    margin = max(2.2, (max(latencies) / min(latencies)) ** 0.2)  # half a label on either side
    axes.set_xlim(min(latencies) / margin, max(latencies) * margin)
    room = max(1.0, max(accuracies) - min(accuracies)) * 0.8
    axes.set_ylim(min(accuracies) - room, max(accuracies) + room)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("latency p50, ms (log scale; left is faster)", color=INK)
    axes.set_ylabel("top-1 accuracy, %", color=INK)
    axes.grid(True, which="major", color=FAINT, linewidth=0.8, zorder=0)
    axes.tick_params(which="both", colors=INK, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(FAINT)
