"""The plot of a training run: accuracy and loss over the epochs, from metrics.jsonl."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from toolkit.distill.metrics import EpochMetrics, read_metrics
from toolkit.modeldir import Role
from toolkit.plotting import COLOURS, INK, TITLE_INCHES, add_title, dress_axes, start_figure, write_png

LABELS: dict[Role, str] = {"teacher": "teacher", "student": "student", "control": "control (no teacher)"}
"""Role → its label in the picture."""

WIDTH, HEIGHT = 10.0, 4.6
"""inches"""


def draw_learning_curves(metrics_file: Path) -> bytes:
    """PNG: validation (solid) and training (dotted) figures of every role in the file; a dot marks the kept epoch."""
    lines = read_metrics(metrics_file)
    figure = start_figure(WIDTH, HEIGHT)
    figure.set_layout_engine("constrained", rect=(0, 0, 1, 1 - TITLE_INCHES / HEIGHT))
    accuracy, loss = figure.subplots(1, 2)
    for role in LABELS:
        if epochs := [line for line in lines if line.role == role]:
            _draw_role(accuracy, role, epochs, "accuracy", factor=100)
            _draw_role(loss, role, epochs, "loss", factor=1)
    for axes, label in ((accuracy, "top-1 accuracy, %"), (loss, "loss (not comparable across networks)")):
        dress_axes(axes, "epoch", label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    accuracy.legend(frameon=False, fontsize=9, labelcolor=INK)
    add_title(
        figure,
        f"{metrics_file.parent.resolve().name}: learning curves",
        "solid: validation · dotted: training, on augmented views · dot: the kept epoch",
    )
    return write_png(figure)


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
