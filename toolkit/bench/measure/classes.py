"""Recall by class: which classes the student recognises less often than the teacher, or than the control without one.

N images, C classes. Recall is the share of a class's images whose predicted class it is.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from toolkit.bench.schema import ClassRecall


def compare_classes(
    labels: NDArray[np.integer],
    other_logits: NDArray[np.floating] | None,
    student_logits: NDArray[np.floating],
    class_names: Sequence[str],
    other: Literal["teacher", "control"] = "teacher",
) -> list[ClassRecall]:
    """The report's `classes`, in class order, from labels (N,), logits (N, C) and names (C,).

    The first logits are those of `other`, None if there is no such network. Recalls are fractions, `recall_difference`
    is the student's less the other's. What cannot be known (a class without images, no other network) is None. Raises
    ValueError if the shapes do not fit.
    """
    role = None if other_logits is None else other
    other_logits = student_logits if other_logits is None else other_logits
    expected = (len(labels), len(class_names))
    if labels.ndim != 1 or not other_logits.shape == student_logits.shape == expected:
        raise ValueError(
            f"labels {labels.shape}, logits {other_logits.shape} and {student_logits.shape}, {len(class_names)} names"
        )
    images = np.bincount(labels, minlength=len(class_names))
    others, student = (
        np.bincount(labels[logits.argmax(1) == labels], minlength=len(class_names))
        for logits in (other_logits, student_logits)
    )
    found = []
    for i, name in enumerate(class_names):
        count = int(images[i])
        recalls = [int(hits[i]) / count if count else None for hits in (others, student)]
        found.append(
            ClassRecall(
                name=name,
                images=count,
                teacher_recall=recalls[0] if role == "teacher" else None,
                student_recall=recalls[1],
                recall_difference=int(student[i] - others[i]) / count if count and role else None,
                **({"control_recall": recalls[0]} if role == "control" else {}),
            )
        )
    return found
