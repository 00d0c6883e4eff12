"""What a report says of the gain and of single classes, in sentences and tables."""

import statistics
from collections.abc import Sequence
from typing import Any

from toolkit.bench.measure.classes import ClassRow
from toolkit.bench.report.markdown import markdown_table, percent


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


def describe_gain(distillation: dict[str, Any]) -> str:
    """One sentence on what the teacher was worth, or on what is missing to say it."""
    per_seed = distillation.get("per_seed") or []
    if not per_seed:
        return (
            "What the teacher was worth is not measured: no control, the same student trained without it, is among the"
            " rows; make one with toolkit distill --set distill.control=true"
        )
    students, controls = ([100 * one[f"{role}_accuracy_top1"] for one in per_seed] for role in ("student", "control"))
    gains = [student - control for student, control in zip(students, controls, strict=True)]
    if len(gains) == 1:
        return (
            f"The teacher was worth {gains[0]:+.2f} points: top-1 {students[0]:.2f} % with it, {controls[0]:.2f} %"
            " without (one seed: toolkit distill --seeds 3 tells how much of that is luck)."
        )
    return (
        f"The teacher was worth {statistics.fmean(gains):+.2f} ± {statistics.stdev(gains):.2f} points"
        f" (mean ± standard deviation over {len(gains)} seeds): top-1 {_spread(students)} % with it,"
        f" {_spread(controls)} % without."
    )


def _spread(values: list[float]) -> str:
    return f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f}"
