"""One paragraph on what the teacher knew beyond the labels, with one sentence of advice that its figures support."""

from toolkit.bench.report.markdown import percent
from toolkit.bench.schema import Distillation, Knowledge, KnownSplit

MEMORISED_GAP = 0.05
"""How much more accurate a teacher is on its training images than on test images, if it has memorised them..."""
MEMORISED_MASS = 0.5
"""...and by which factor it gives less probability to other classes than the label's there."""

BARELY_BETTER = 0.01
"""Of accuracy: a teacher that is no more than this ahead of the control has hardly anything to teach."""

FAR_FROM_END = 0.1
"""Of accuracy: a student that is no more than this better on training images than on test images, and that far from
its teacher on them, has not come to its end."""

SURE = 0.05
"""p of McNemar's test below which a difference is no chance"""

SPLIT_NAMES = {"train": "training images", "out_of_fold": "training images out of fold", "test": "test images"}


def describe_knowledge(distillation: Distillation) -> str:
    """The paragraph; "" if a report has no such figures."""
    known = distillation.knowledge
    if known is None:
        return ""
    advice = advise(known, has_unlabelled=bool(distillation.unlabelled_images))
    parts = [_describe_splits(known), _describe_errors(known), _describe_gain(distillation, known), advice]
    return " ".join(part for part in parts if part)


def advise(known: Knowledge, *, has_unlabelled: bool = False) -> str:
    """The sentence: what to change first, or that the teacher helped."""
    splits = {one.split: one for one in known.splits}
    test, train, outside = splits["test"], splits.get("train"), splits.get("out_of_fold")
    gain = _sure_gain(known)
    if (
        test.control_accuracy is not None
        and gain <= 0
        and test.teacher_accuracy <= test.control_accuracy + BARELY_BETTER
    ):
        if test.control_accuracy >= 1 - BARELY_BETTER:
            return (
                "Advice: the student alone has nearly all test images right, so no teacher can add much here: only"
                " harder test images would tell them apart."
            )
        return (
            "Advice: this teacher is hardly better than the student alone, so it has little to teach: use a stronger"
            " one, such as a fine-tuned network with ImageNet weights."
        )
    if train is not None and outside is None and _has_memorised(train, test):
        more = "more images without labels" if has_unlabelled else "--unlabelled"
        return (
            "Advice: this teacher has memorised its training images, and says there little that the labels do not say:"
            f" use {more}, more views or, if it is trained here, teacher.folds."
        )
    if train is not None and _is_unfinished(train, test):
        return (
            "Advice: the student is no better on its training images than on others, and far from its teacher there:"
            " train it longer (distill.epochs), or use a larger student."
        )
    if known.mcnemar_p is None:
        return (
            "Advice: no control was measured, so the gain is not known: train one (--set distill.control=true), and"
            " have torch among bench.runtimes."
        )
    if gain == 0:
        seeds = "more seeds" if known.gain_low is not None else "more seeds (toolkit distill --seeds 3)"
        return f"Advice: these figures cannot tell the difference from chance: use {seeds} or more test images."
    if gain > 0:
        return "Advice: the teacher helped, and nothing here asks for a change."
    return "Advice: the teacher did harm: use a smaller distill.alpha, or another teacher."


def _sure_gain(known: Knowledge) -> int:
    """1 if the student is better than its control and that is no chance, -1 if it is worse, 0 if that is not sure.

    The interval over seeds counts if it leaves 0 out, else McNemar's test on the first seed.
    """
    if known.gain_low is not None and known.gain_high is not None and known.gain_low * known.gain_high > 0:
        return 1 if known.gain_low > 0 else -1
    if known.mcnemar_p is None or known.mcnemar_p > SURE:
        return 0
    return 1 if (known.only_student or 0) > (known.only_control or 0) else -1


def _has_memorised(train: KnownSplit, test: KnownSplit) -> bool:
    gap = train.teacher_accuracy - test.teacher_accuracy
    return gap >= MEMORISED_GAP and train.teacher_beside_label <= MEMORISED_MASS * test.teacher_beside_label


def _is_unfinished(train: KnownSplit, test: KnownSplit) -> bool:
    behind = train.teacher_accuracy - train.student_accuracy
    return train.student_accuracy - test.student_accuracy <= FAR_FROM_END and behind >= FAR_FROM_END


def _describe_splits(known: Knowledge) -> str:
    """`The teacher is right on 99.9 % of 1,000 training images and ...`"""
    accuracies = [f"{percent(one.teacher_accuracy)} of {one.images:,} {SPLIT_NAMES[one.split]}" for one in known.splits]
    masses = [f"{100 * one.teacher_beside_label:.2f} %" for one in known.splits]
    agreements = [percent(one.student_agreement) for one in known.splits]
    order = _join([SPLIT_NAMES[one.split] for one in known.splits])
    return (
        f"The teacher is right on {_join(accuracies)}. Beside the label it puts {_join(masses)} of its probability, and"
        f" the student predicts its class on {_join(agreements)} ({order})."
    )


def _describe_errors(known: Knowledge) -> str:
    if known.inherited is None or known.spared is None:
        return ""
    return (
        f"Of the test images, {known.spared:,} that the control gets wrong are right in teacher and student;"
        f" {known.inherited:,} that the control gets right are wrong in the student as in the teacher."
    )


def _describe_gain(distillation: Distillation, known: Knowledge) -> str:
    if known.mcnemar_p is None or distillation.mean is None:
        return ""
    sentence = f"The gain is {100 * distillation.mean:+.2f} points"
    if known.gain_low is not None and known.gain_high is not None:
        low, high, seeds = 100 * known.gain_low, 100 * known.gain_high, len(distillation.per_seed)
        sentence += f" (95 % interval over {seeds} seeds: {low:+.2f} to {high:+.2f})"
    return (
        f"{sentence}; on the first seed, {known.only_student:,} test images are right in the student and wrong in the"
        f" control, {known.only_control:,} the other way round (McNemar's test: p = {_p(known.mcnemar_p)})."
    )


def _p(value: float) -> str:
    return "below 0.0001" if value < 1e-4 else f"{value:.4f}".rstrip("0") if value < 0.1 else f"{value:.2f}"


def _join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
