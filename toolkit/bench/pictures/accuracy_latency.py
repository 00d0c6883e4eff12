"""The plot of accuracy against latency: the top-1 accuracy and the p50 of every row, and the Pareto front."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from toolkit import console
from toolkit.bench.report.verdict import name_gpu, name_model, name_runtime
from toolkit.bench.schema import Report, ReportRow
from toolkit.plotting import COLOURS, GREY, INK, add_title, dress_axes, start_figure, write_png

LARGEST_BUBBLE = 1000.0
"""points², the area of the largest file's bubble; the others' are in proportion, down to SMALLEST_BUBBLE"""
SMALLEST_BUBBLE = 36.0
OPACITY = {"fp32": 0.6, "fp16": 0.35, "int8": 0.15}
"""Precision → how solid a bubble is."""
FEW_ROWS = 8
"""rows that fit beside the plot of a small picture"""
LINE = 0.215
"""inches from one row of the list to the next"""
NUMBER_POINTS = 7.5
"""points, the size of the letters in the list of rows and at the bubbles"""

Point = tuple[float, float]


def draw_accuracy_latency(report: Report) -> bytes:
    """PNG: top-1 accuracy against p50 latency of batch 1 (log scale); a row is a bubble, its area the file's size.

    Numbers start at the fastest row, in the plot and in the list beside it. Any number of rows stays readable.
    """
    rows = sorted(report.rows, key=lambda row: (row.latency_ms.p50, -row.accuracy_top1))
    front = find_front(rows)
    width, height = (8.0, 5.0) if len(rows) <= FEW_ROWS else (10.4, max(5.6, 1.5 + LINE * (len(rows) + 3)))
    figure = start_figure(width, height)
    list_width = (3.6 if len(rows) <= FEW_ROWS else 4.1) / width
    axes = figure.add_axes((0.75 / width, 0.6 / height, 1 - 0.95 / width - list_width, 1 - 1.5 / height))
    _scale_axes(axes, rows)
    _draw_front(axes, [rows[i] for i in front])
    _draw_bubbles(axes, rows)
    panel = figure.add_axes((1 - list_width, 0.6 / height, list_width - 0.1 / width, 1 - 1.5 / height))
    _list_rows(panel, rows, front, line=LINE / (height - 1.5))
    dataset, hardware = report.dataset, report.hardware
    where = name_gpu(hardware) or f"{hardware.cpu}, {console.count(hardware.cores, 'core')}"
    add_title(
        figure,
        f"{dataset.name}: accuracy against latency",
        f"{dataset.images:,} test images · batch 1 · {where} · bubble area: file size",
    )
    return write_png(figure)


def find_front(rows: Sequence[ReportRow]) -> list[int]:
    """Indices of the rows that no other row beats: faster (p50) and as accurate, or as fast and more accurate.

    The fastest comes first. If rows are equal in both, only the first of them is in it.
    """
    order = sorted(range(len(rows)), key=lambda i: (rows[i].latency_ms.p50, -rows[i].accuracy_top1))
    front: list[int] = []
    for i in order:
        if not front or rows[i].accuracy_top1 > rows[front[-1]].accuracy_top1:
            front.append(i)
    return front


def _place(row: ReportRow) -> Point:
    return row.latency_ms.p50, 100 * row.accuracy_top1


def _scale_axes(axes: Axes, rows: Sequence[ReportRow]) -> None:
    latencies, accuracies = zip(*(_place(row) for row in rows), strict=True)
    axes.set_xscale("log")
    margin = max(1.6, (max(latencies) / min(latencies)) ** 0.12)
    axes.set_xlim(min(latencies) / margin, max(latencies) * margin)
    room = max(0.5, max(accuracies) - min(accuracies)) * 0.25
    axes.set_ylim(max(min(accuracies) - room, -4), min(max(accuracies) + room, 104))
    decades = math.log10(max(latencies) / min(latencies))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2.5 else (1,)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.get_major_formatter().set_useOffset(False)  # type: ignore[attr-defined]
    dress_axes(axes, "latency p50, ms (log scale; left is faster)", "top-1 accuracy, %")


def _draw_front(axes: Axes, front: Sequence[ReportRow]) -> None:
    """The best accuracy that each latency buys: steps, from the fastest row to the right edge."""
    x, y = zip(*(_place(row) for row in front), strict=True)
    bottom, right = axes.get_ylim()[0], axes.get_xlim()[1]
    axes.plot([x[0], *x, right], [bottom, *y, y[-1]], color=GREY, linewidth=1.1, drawstyle="steps-post", zorder=1.5)


def _draw_bubbles(axes: Axes, rows: Sequence[ReportRow]) -> None:
    largest = max(row.size_bytes for row in rows)
    areas = [max(SMALLEST_BUBBLE, LARGEST_BUBBLE * row.size_bytes / largest) for row in rows]
    for row, area in sorted(zip(rows, areas, strict=True), key=lambda pair: -pair[1]):
        x, y = _place(row)
        colour = COLOURS[row.model]
        axes.scatter([x], [y], s=area, color=colour, alpha=_opacity(row), linewidths=0, zorder=2)
        axes.scatter([x], [y], s=area, facecolors="none", edgecolors=colour, linewidths=1, zorder=2.5)
    points_a_pixel = 72 / axes.figure.dpi
    centres = [tuple(axes.transData.transform(_place(row)) * points_a_pixel) for row in rows]
    offsets = place_numbers(centres, [math.sqrt(area / math.pi) for area in areas])
    for number, (row, offset) in enumerate(zip(rows, offsets, strict=True), start=1):
        style: dict[str, Any] = {"ha": "center", "va": "center", "color": INK, "fontsize": NUMBER_POINTS, "zorder": 4}
        axes.annotate(str(number), _place(row), xytext=offset, textcoords="offset points", **style)


def place_numbers(centres: Sequence[Point], radii: Sequence[float]) -> list[Point]:
    """Where each bubble's number goes, from its centre, so that numbers do not cover one another or a bubble.

    All in points. A number lies in its bubble if there is room, else around it, else a little farther off. It takes
    the place that covers least.
    """
    spots: list[Point] = []
    for i, ((x, y), radius) in enumerate(zip(centres, radii, strict=True)):
        choices = [(x, y)] if radius > NUMBER_POINTS else []
        for distance in (radius + 6, radius + 13):
            angles = np.radians([45, 135, 225, 315, 90, 270, 0, 180])
            choices += [(x + distance * math.cos(angle), y + distance * math.sin(angle)) for angle in angles]
        others = [(centres[j], radii[j]) for j in range(len(centres)) if j != i]
        costs = [_count_covered(spot, spots, others) for spot in choices]
        spots.append(choices[int(np.argmin(costs))])
    return [(spot[0] - x, spot[1] - y) for spot, (x, y) in zip(spots, centres, strict=True)]


def _count_covered(spot: Point, numbers: Sequence[Point], bubbles: Sequence[tuple[Point, float]]) -> float:
    """1000 for each other number that a number at `spot` would cover, and its depth in bubbles, in points."""
    width, height = 1.5 * NUMBER_POINTS, 1.2 * NUMBER_POINTS  # of two digits
    hit = sum(abs(spot[0] - x) < width and abs(spot[1] - y) < height for x, y in numbers)
    depth = sum(max(0.0, radius + width / 2 - math.dist(spot, centre)) for centre, radius in bubbles)
    return 1000 * hit + depth


def _list_rows(panel: Axes, rows: Sequence[ReportRow], front: Sequence[int], line: float) -> None:
    """The numbered rows beside the plot, `line` of the panel's height apart; those of the front are bold."""
    panel.set_xlim(0, 1)
    panel.set_ylim(0, 1)
    panel.set_axis_off()
    columns = ((0.03, "center"), (0.07, "left"), (0.3, "left"), (0.69, "right"), (0.84, "right"), (1.0, "right"))
    headings = ("", "model", "runtime", "p50 ms", "top-1 %", "size")
    for (x, align), heading in zip(columns, headings, strict=True):
        panel.text(x, 1, heading, ha=align, va="center", color=GREY, fontsize=NUMBER_POINTS)
    for number, row in enumerate(rows, start=1):
        y = 1 - number * line
        panel.scatter([columns[0][0]], [y], s=95, color=COLOURS[row.model], alpha=_opacity(row), linewidths=0)
        latency, accuracy = _place(row)
        cells = (
            *(str(number), name_model(row), name_runtime(row, rows)),
            *(f"{latency:.2f}" if latency < 1000 else f"{latency:,.0f}", f"{accuracy:.2f}"),
            console.size(row.size_bytes),
        )
        weight = "bold" if number - 1 in front else "normal"
        for (x, align), cell in zip(columns, cells, strict=True):
            panel.text(x, y, cell, ha=align, va="center", color=INK, fontsize=NUMBER_POINTS, weight=weight)
    y = 1 - (len(rows) + 1.1) * line
    panel.plot([0.005, 0.055], [y, y], color=GREY, linewidth=1.1)
    legend = "Pareto front, bold: no other row is\nboth faster and more accurate"
    panel.text(0.07, y + line * 0.25, legend, va="top", color=GREY, fontsize=NUMBER_POINTS)


def _opacity(row: ReportRow) -> float:
    return OPACITY.get(row.precision, OPACITY["fp32"])
