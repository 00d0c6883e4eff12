"""Class by class: which ones the student recognises less often than the teacher.

N images, C classes. Recall is the share of a class's images that are called by its name.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.bench.markdown import markdown_table, percent

ClassRow = dict[str, Any]
"""name, images, teacher_recall, student_recall, recall_difference: one class of the report's `classes`."""


def compare_classes(
    labels: NDArray[np.integer],
    teacher_logits: NDArray[np.floating],
    student_logits: NDArray[np.floating],
    class_names: Sequence[str],
) -> list[ClassRow]:
    """The report's `classes`, in class order, from labels (N,), logits (N, C) and names (C,).

    Recalls are fractions, `recall_difference` is the student's less the teacher's; all three are None for a class
    without images. Raises ValueError where the shapes do not belong together.
    """
    expected = (len(labels), len(class_names))
    if labels.ndim != 1 or not teacher_logits.shape == student_logits.shape == expected:
        raise ValueError(
            f"labels {labels.shape}, logits {teacher_logits.shape} and {student_logits.shape}, {len(class_names)} names"
        )
    images = np.bincount(labels, minlength=len(class_names))
    teacher, student = (
        np.bincount(labels[logits.argmax(1) == labels], minlength=len(class_names))
        for logits in (teacher_logits, student_logits)
    )
    return [
        {
            "name": name,
            "images": int(images[i]),
            "teacher_recall": int(teacher[i]) / int(images[i]) if images[i] else None,
            "student_recall": int(student[i]) / int(images[i]) if images[i] else None,
            "recall_difference": int(student[i] - teacher[i]) / int(images[i]) if images[i] else None,
        }
        for i, name in enumerate(class_names)
    ]


def worst_classes(classes: Sequence[ClassRow], count: int = 5) -> list[ClassRow]:
    """Those that lose most, `count` at most, the worst first; classes that lose nothing are not among them."""
    losing = [one for one in classes if one["images"] and one["recall_difference"] < 0]
    return sorted(losing, key=lambda one: one["recall_difference"])[:count]


def describe_classes(classes: Sequence[ClassRow], count: int = 5) -> str:
    """`Classes that lose most: shirt -3.1 points (recall 72.0 -> 68.9 %), ...` in one line."""
    told = [
        f"{one['name']} {100 * one['recall_difference']:+.1f} points "
        f"(recall {100 * one['teacher_recall']:.1f} -> {100 * one['student_recall']:.1f} %)"
        for one in worst_classes(classes, count)
    ]
    none = "No class loses: the student's recall is the teacher's or better."
    return f"Classes that lose most: {', '.join(told)}" if told else none


def render_classes(classes: Sequence[ClassRow], count: int = 20) -> str:
    """A Markdown table of the `count` classes that lose most or gain least, and how many there are besides."""
    seen = sorted((one for one in classes if one["images"]), key=lambda one: one["recall_difference"])
    cells = [
        [
            one["name"],
            f"{one['images']:,}",
            percent(one["teacher_recall"]),
            percent(one["student_recall"]),
            f"{100 * one['recall_difference']:+.2f}",
        ]
        for one in seen[:count]
    ]
    table = markdown_table(["class", "images", "teacher recall", "student recall", "points"], cells, left=(0,))
    notes = []
    if len(seen) > count:
        notes.append(f"The other {len(seen) - count} classes, which lose less or gain, are in report.json.")
    if missing := len(classes) - len(seen):
        notes.append(f"{missing} {'class has' if missing == 1 else 'classes have'} no test image.")
    return "\n\n".join([table, " ".join(notes)] if notes else [table])
