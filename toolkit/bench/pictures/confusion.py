"""Classes that the student confuses more, or less, than the teacher: the difference of two confusion matrices.

N images, C classes.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from numpy.typing import NDArray

from toolkit.plotting import COLOURS, FAINT, INK, add_title, start_figure, write_png

MOST_CLASSES = 30
"""most classes that are all drawn; if there are more, only the MOST_CHANGED are"""
MOST_CHANGED = 20
MOST_NUMBERED = 20
"""classes up to which every cell has room for its number"""
LONGEST_NAME = 18
"""letters of a class name"""
LEAST_SHOWN = 0.05
"""points; smaller differences get no number"""

NAMES_OF_COLOURS: dict[str, str] = {"teacher": "blue", "control": "green"}

MORE_OR_LESS = {
    role: LinearSegmentedColormap.from_list("more or less", [COLOURS[role], "#ffffff", COLOURS["student"]])
    for role in NAMES_OF_COLOURS
}
"""Blue: the teacher predicts it more often, green: the control does; orange: the student does."""


def confusion_difference(
    labels: NDArray[np.integer], teacher_logits: NDArray[np.floating], student_logits: NDArray[np.floating]
) -> NDArray[np.float64]:
    """(C, C) in points: the share of class i (row) for which the student predicts j, minus the teacher's share.

    labels (N,), logits (N, C). Rows add up to 0; a class without images is a row of zeros. Raises ValueError if the
    shapes do not fit.
    """
    if teacher_logits.ndim != 2 or teacher_logits.shape != student_logits.shape or len(labels) != len(teacher_logits):
        raise ValueError(f"labels {labels.shape}, logits {teacher_logits.shape} and {student_logits.shape}")
    num_classes = teacher_logits.shape[1]
    counts = np.zeros((num_classes, num_classes))
    np.add.at(counts, (labels, student_logits.argmax(1)), 1)
    np.subtract.at(counts, (labels, teacher_logits.argmax(1)), 1)
    images = np.bincount(labels, minlength=num_classes)
    return 100 * counts / np.maximum(images, 1)[:, None]


def most_changed(difference: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """The `count` classes whose rows and columns hold the largest differences in sum, in class order."""
    change = np.abs(difference).sum(0) + np.abs(difference).sum(1)
    return np.sort(np.argsort(-change, kind="stable")[:count])


def draw_confusion_difference(
    labels: NDArray[np.integer],
    teacher_logits: NDArray[np.floating],
    student_logits: NDArray[np.floating],
    class_names: Sequence[str],
    name: str,
    other: Literal["teacher", "control"] = "teacher",
) -> bytes:
    """PNG of `confusion_difference` on the images of data set `name`; class_names (C,) stand at both axes.

    The first logits are those of `other`. If there are more than MOST_CLASSES classes, the MOST_CHANGED are shown.
    """
    difference = confusion_difference(labels, teacher_logits, student_logits)
    shown = np.arange(len(class_names))
    if len(shown) > MOST_CLASSES:
        shown = most_changed(difference, MOST_CHANGED)
    side = max(3.0, 0.34 * len(shown))
    left, bottom, top, right = 1.7, 1.5, 1.2, 1.0  # inches of names, names, title and colour bar
    width, height = left + side + right, bottom + side + top
    figure = start_figure(width, height)
    axes = figure.add_axes((left / width, bottom / height, side / width, side / height))
    bar = figure.add_axes(((left + side + 0.15) / width, bottom / height, 0.15 / width, side / height))
    part = difference[np.ix_(shown, shown)]
    limit = max(1.0, float(np.abs(part).max()))
    image = axes.imshow(part, cmap=MORE_OR_LESS[other], vmin=-limit, vmax=limit)
    figure.colorbar(image, cax=bar).outline.set_visible(False)
    bar.set_ylabel("points", color=INK, fontsize=9)
    bar.tick_params(colors=INK, length=0, labelsize=8)
    _name_classes(axes, [_shorten(class_names[int(i)]) for i in shown])
    if len(shown) <= MOST_NUMBERED:
        _number_cells(axes, part, limit)
    part_of = f" · the {len(shown)} of {len(class_names)} classes that changed most"
    which = part_of if len(shown) < len(class_names) else ""
    colours = f"{NAMES_OF_COLOURS[other]}: the {other} predicts the class more often; orange: the student does"
    add_title(figure, f"{name}: confusion, student minus {other}", f"{len(labels):,} test images{which}\n{colours}")
    return write_png(figure)


def _name_classes(axes: Axes, names: Sequence[str]) -> None:
    size = 9 if len(names) <= 20 else 7.5
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor", parse_math=False)
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set_xlabel("predicted class", color=INK, fontsize=9)
    axes.set_ylabel("true class", color=INK, fontsize=9)
    axes.tick_params(colors=INK, length=0, labelsize=size)
    axes.set_xticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color=FAINT, linewidth=0.6)
    axes.tick_params(which="minor", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _number_cells(axes: Axes, part: NDArray[np.float64], limit: float) -> None:
    for (row, column), value in np.ndenumerate(part):
        if abs(value) >= LEAST_SHOWN:
            colour = "white" if abs(value) > 0.7 * limit else INK
            axes.text(column, row, f"{value:+.1f}", ha="center", va="center", color=colour, fontsize=6.5)


def _shorten(name: str) -> str:
    """Keeps the beginning and the end: long names often differ in only one of them."""
    half = (LONGEST_NAME - 1) // 2
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1 - half]}…{name[-half:]}"
