"""Sentences and tables about the gain and about single classes."""

import statistics
from collections.abc import Sequence

from toolkit.bench.report.markdown import markdown_table, percent
from toolkit.bench.schema import ClassRecall, Distillation


def worst_classes(classes: Sequence[ClassRecall], count: int = 5) -> list[ClassRecall]:
    """The classes that lose most, `count` at most, the worst first; classes that lose nothing are left out."""
    return sorted((one for one in classes if _difference(one) < 0), key=_difference)[:count]


def compared_with(classes: Sequence[ClassRecall]) -> str:
    """`teacher`; `control` if no teacher was measured; "" if there was no control either."""
    if any(one.control_recall is not None for one in classes):
        return "control"
    alone = any(one.images for one in classes) and all(one.recall_difference is None for one in classes)
    return "" if alone else "teacher"


def describe_classes(classes: Sequence[ClassRecall], count: int = 5) -> str:
    """`Classes that lose most: shirt -3.1 points (recall 72.0 -> 68.9 %), ...` in one line.

    Where the control stands for the teacher, the line says so; "" if the student is alone.
    """
    other = compared_with(classes)
    if not other:
        return ""
    texts = [
        f"{one.name} {100 * _difference(one):+.1f} points "
        f"(recall {100 * (_other_recall(one) or 0):.1f} -> {100 * (one.student_recall or 0):.1f} %)"
        for one in worst_classes(classes, count)
    ]
    none = f"No class loses: the student's recall is at least the {other}'s in every class."
    against = "" if other == "teacher" else f", against the {other}"
    return f"Classes that lose most{against}: {', '.join(texts)}" if texts else none


def render_classes(classes: Sequence[ClassRecall], count: int = 20) -> str:
    """A Markdown table of the `count` classes that lose most or gain least; a note counts the others.

    If the student is alone, the classes with the least recall come first.
    """
    other = compared_with(classes)
    seen = sorted((one for one in classes if one.images), key=_difference if other else _student_recall)
    headings = ["class", "images", *([f"{other} recall"] if other else []), "student recall"]
    cells = [
        [
            one.name,
            f"{one.images:,}",
            *([percent(_other_recall(one))] if other else []),
            percent(one.student_recall),
            *([f"{100 * _difference(one):+.2f}"] if other else []),
        ]
        for one in seen[:count]
    ]
    table = markdown_table([*headings, *(["points"] if other else [])], cells, left=(0,))
    notes = []
    if len(seen) > count:
        which = "which lose less or gain" if other else "which it recognises more often"
        notes.append(f"The other {len(seen) - count} classes, {which}, are in report.json.")
    if missing := len(classes) - len(seen):
        notes.append(f"{missing} {'class has' if missing == 1 else 'classes have'} no test image.")
    return "\n\n".join([table, " ".join(notes)] if notes else [table])


def describe_gain(distillation: Distillation) -> str:
    """What the teacher was worth, or what is missing to know it; and how many images without labels it answered."""
    if not distillation.unlabelled_images:
        return _describe_worth(distillation)
    shown = f"The student also learned from the teacher's answers on {distillation.unlabelled_images:,} images without"
    control = " labels; the control saw none of them." if distillation.per_seed else " labels."
    return f"{_describe_worth(distillation)} {shown}{control}"


def _describe_worth(distillation: Distillation) -> str:
    if not distillation.per_seed:
        return (
            "What the teacher was worth is not measured: the report has no row of a control, the same student trained"
            " without it; train one with toolkit distill --set distill.control=true, and have torch among"
            " bench.runtimes"
        )
    students = [100 * one.student_accuracy_top1 for one in distillation.per_seed]
    controls = [100 * one.control_accuracy_top1 for one in distillation.per_seed]
    gains = [student - control for student, control in zip(students, controls, strict=True)]
    if len(gains) == 1:
        return (
            f"The teacher was worth {gains[0]:+.2f} points: top-1 {students[0]:.2f} % with it, {controls[0]:.2f} %"
            " without (one seed: toolkit distill --seeds 3 shows how much of that is chance)."
        )
    return (
        f"The teacher was worth {statistics.fmean(gains):+.2f} ± {statistics.stdev(gains):.2f} points"
        f" (mean ± standard deviation over {len(gains)} seeds): top-1 {_spread(students)} % with it,"
        f" {_spread(controls)} % without."
    )


def _student_recall(one: ClassRecall) -> float:
    return one.student_recall or 0.0


def _other_recall(one: ClassRecall) -> float | None:
    return one.control_recall if one.teacher_recall is None else one.teacher_recall


def _difference(one: ClassRecall) -> float:
    """The student's recall less the teacher's, or the control's; 0 for a class without images."""
    return one.recall_difference or 0.0


def _spread(values: list[float]) -> str:
    return f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f}"
