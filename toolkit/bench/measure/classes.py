"""Recall by class: which classes the student recognises less often than the teacher.

N images, C classes. Recall is the share of a class's images whose predicted class it is.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from toolkit.bench.schema import ClassRecall


def compare_classes(
    labels: NDArray[np.integer],
    teacher_logits: NDArray[np.floating],
    student_logits: NDArray[np.floating],
    class_names: Sequence[str],
) -> list[ClassRecall]:
    """The report's `classes`, in class order, from labels (N,), logits (N, C) and names (C,).

    Recalls are fractions, `recall_difference` is the student's less the teacher's; all three are None for a class
    without images. Raises ValueError if the shapes do not fit.
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
        ClassRecall(
            name=name,
            images=int(images[i]),
            teacher_recall=int(teacher[i]) / int(images[i]) if images[i] else None,
            student_recall=int(student[i]) / int(images[i]) if images[i] else None,
            recall_difference=int(student[i] - teacher[i]) / int(images[i]) if images[i] else None,
        )
        for i, name in enumerate(class_names)
    ]
