"""The picture of a training run: accuracy and loss over the epochs, from metrics.jsonl."""

import io
import json
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from toolkit.plotting import COLOURS, FAINT, INK

LABELS = {"teacher": "teacher", "distill": "student", "control": "student alone (control)"}
"""Stage of metrics.jsonl → what it is called in the picture; the role whose colour it has is the stage's own."""
ROLES = {"teacher": "teacher", "distill": "student", "control": "control"}


def draw_learning_curves(metrics_file: Path) -> bytes:
    """PNG: validation (solid) and training (dotted) figures of every stage in the file; a dot marks the kept epoch."""
    lines = [json.loads(line) for line in metrics_file.read_text(encoding="utf-8").splitlines()]
    stages = {stage: [line for line in lines if line["stage"] == stage] for stage in LABELS}
    figure = Figure(figsize=(10, 4.2), dpi=160, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)  # no global state, no display
    accuracy, loss = figure.subplots(1, 2)
    for stage, epochs in stages.items():
        if epochs:
            _draw_stage(accuracy, stage, epochs, "accuracy", factor=100)
            _draw_stage(loss, stage, epochs, "loss", factor=1)
    _dress(accuracy, "top-1 accuracy, %")
    _dress(loss, "loss (each stage's own)")
    accuracy.plot([], [], color=INK, label="validation")
    accuracy.plot([], [], color=INK, linestyle=":", label="training, on augmented views")
    accuracy.scatter([], [], color=INK, s=26, label="the epoch that was kept")
    accuracy.legend(frameon=False, fontsize=9, labelcolor=INK)
    figure.suptitle(f"{metrics_file.parent.resolve().name}: learning curves", color=INK, fontsize=13, x=0.01, ha="left")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _draw_stage(axes: Axes, stage: str, epochs: list[dict[str, Any]], figure: str, factor: float) -> None:
    x = [line["epoch"] + 1 for line in epochs]
    valid = [factor * line[f"valid_{figure}"] for line in epochs]
    colour = COLOURS[ROLES[stage]]
    best = max(range(len(epochs)), key=lambda i: epochs[i]["valid_accuracy"])
    axes.plot(x, [factor * line[f"train_{figure}"] for line in epochs], color=colour, linestyle=":", linewidth=1.4)
    axes.plot(x, valid, color=colour, linewidth=1.8, label=LABELS[stage], zorder=3)
    axes.scatter([x[best]], [valid[best]], color=colour, s=26, zorder=4)


def _dress(axes: Axes, label: str) -> None:
    axes.set_xlabel("epoch", color=INK)
    axes.set_ylabel(label, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(True, color=FAINT, linewidth=0.8, zorder=0)
    axes.tick_params(colors=INK, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(FAINT)
