"""The picture of a training run: accuracy and loss over the epochs, from metrics.jsonl."""

import io
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from toolkit.distill.metrics import EpochMetrics, read_metrics
from toolkit.modeldir import Role
from toolkit.plotting import COLOURS, FAINT, INK

LABELS: dict[Role, str] = {"teacher": "teacher", "student": "student", "control": "control (no teacher)"}
"""Role → its label in the picture."""


def draw_learning_curves(metrics_file: Path) -> bytes:
    """PNG: validation (solid) and training (dotted) figures of every role in the file; a dot marks the kept epoch."""
    lines = read_metrics(metrics_file)
    figure = Figure(figsize=(10, 4.2), dpi=160, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)  # no global state, no display
    accuracy, loss = figure.subplots(1, 2)
    for role in LABELS:
        if epochs := [line for line in lines if line.role == role]:
            _draw_role(accuracy, role, epochs, "accuracy", factor=100)
            _draw_role(loss, role, epochs, "loss", factor=1)
    _dress(accuracy, "top-1 accuracy, %")
    _dress(loss, "loss (not comparable across networks)")
    accuracy.plot([], [], color=INK, label="validation")
    accuracy.plot([], [], color=INK, linestyle=":", label="training, on augmented views")
    accuracy.scatter([], [], color=INK, s=26, label="kept epoch")
    accuracy.legend(frameon=False, fontsize=9, labelcolor=INK)
    figure.suptitle(f"{metrics_file.parent.resolve().name}: learning curves", color=INK, fontsize=13, x=0.01, ha="left")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _draw_role(axes: Axes, role: Role, epochs: list[EpochMetrics], figure: str, factor: float) -> None:
    x = [line.epoch + 1 for line in epochs]
    valid = [factor * getattr(line, f"valid_{figure}") for line in epochs]
    colour = COLOURS[role]
    best = max(range(len(epochs)), key=lambda i: epochs[i].valid_accuracy)
    axes.plot(
        x, [factor * getattr(line, f"train_{figure}") for line in epochs], color=colour, linestyle=":", linewidth=1.4
    )
    axes.plot(x, valid, color=colour, linewidth=1.8, label=LABELS[role], zorder=3)
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
