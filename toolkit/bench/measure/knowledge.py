"""What the teacher knew beyond the labels, and what became of it in the student.

A teacher is worth something where it is right, and where its probabilities say more than the label. On images that it
has memorised it says little. N images, C classes, K folds.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toolkit.bench.schema import Knowledge, KnownSplit, SeedGain
from toolkit.binomial import tail
from toolkit.runtimes.base import Logits, softmax

T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093,
)  # fmt: skip
"""Student's t for a 95 % interval, by degrees of freedom from 1 on; beyond them 1.96 is near enough."""


@dataclass(frozen=True)
class SplitAnswers:
    """The logits (N, C) of teacher, student and control for the same images, and their labels (N,).

    `split` is `train`, `out_of_fold` (training images, the teacher's answers from the fold that left them out) or
    `test`. `control` is None if there is none.
    """

    split: str
    labels: NDArray[np.integer]
    teacher: Logits
    student: Logits
    control: Logits | None = None


def measure_knowledge(splits: Sequence[SplitAnswers], per_seed: Sequence[SeedGain]) -> Knowledge:
    """The figures of all `splits`, the last of which is `test`; the paired ones are of the test images."""
    test = splits[-1]
    interval = gain_interval([one.gain_top1 for one in per_seed])
    paired = {} if test.control is None else _compare_pairs(test, test.control)
    return Knowledge(
        splits=tuple(_describe(one) for one in splits),
        gain_low=interval[0] if interval else None,
        gain_high=interval[1] if interval else None,
        **paired,
    )


def beside_label(logits: Logits, labels: NDArray[np.integer]) -> float:
    """The mean probability, a fraction, that a network gives to other classes than the label's."""
    probabilities = softmax(logits)
    return float(1 - probabilities[np.arange(len(labels)), labels].mean())


def gain_interval(gains: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of the mean gain over seeds (Student's t); None for fewer than two."""
    if len(gains) < 2:
        return None
    freedom = len(gains) - 1
    t = T_975[freedom - 1] if freedom <= len(T_975) else 1.96
    half = t * statistics.stdev(gains) / math.sqrt(len(gains))
    mean = statistics.fmean(gains)
    return mean - half, mean + half


def mcnemar(only_first: int, only_second: int) -> float:
    """The two-sided exact p of McNemar's test (1947): how likely so uneven a split is if both are equally good.

    `only_first` images were right in the first network alone, `only_second` in the second alone.
    """
    return min(1.0, 2 * tail(max(only_first, only_second), only_first + only_second, 0.5))


def _describe(answers: SplitAnswers) -> KnownSplit:
    labels, teacher, student = answers.labels, answers.teacher.argmax(1), answers.student.argmax(1)
    control = None if answers.control is None else float(np.mean(answers.control.argmax(1) == labels))
    return KnownSplit(
        split=answers.split,
        images=len(labels),
        teacher_accuracy=float(np.mean(teacher == labels)),
        teacher_beside_label=beside_label(answers.teacher, labels),
        student_accuracy=float(np.mean(student == labels)),
        control_accuracy=control,
        student_agreement=float(np.mean(student == teacher)),
    )


def _compare_pairs(test: SplitAnswers, control_logits: Logits) -> dict[str, float]:
    labels = test.labels
    teacher, student, control = (logits.argmax(1) for logits in (test.teacher, test.student, control_logits))
    gained = (student == labels) & (control != labels)
    lost = (student != labels) & (control == labels)
    return {
        "inherited": int(np.sum(lost & (student == teacher))),
        "spared": int(np.sum(gained & (teacher == labels))),
        "only_student": int(gained.sum()),
        "only_control": int(lost.sum()),
        "mcnemar_p": mcnemar(int(gained.sum()), int(lost.sum())),
    }
