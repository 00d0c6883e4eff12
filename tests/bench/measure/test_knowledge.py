"""What the teacher knew beyond the labels: figures worked out by hand, and the advice that planted cases lead to."""

import math
import re

import numpy as np
import pytest

from toolkit.bench.measure.knowledge import SplitAnswers, beside_label, gain_interval, mcnemar, measure_knowledge
from toolkit.bench.report.advice import advise, describe_knowledge
from toolkit.bench.schema import Distillation, Knowledge, KnownSplit, SeedGain

LABELS = np.array([0, 1, 2, 0, 1, 2])


def say(*classes: int, sure: float = 0.9) -> np.ndarray:
    """Logits of three classes: `sure` for those named, the rest shared out."""
    probabilities = np.full((len(classes), 3), (1 - sure) / 2)
    probabilities[np.arange(len(classes)), classes] = sure
    return np.log(probabilities).astype(np.float32)


def seeds(*gains: float) -> list[SeedGain]:
    return [
        SeedGain(seed=i, student_accuracy_top1=0.5 + gain, control_accuracy_top1=0.5, gain_top1=gain)
        for i, gain in enumerate(gains)
    ]


def test_mass_beside_the_label() -> None:
    assert beside_label(say(0, 1, 2, 0, 1, 2), LABELS) == pytest.approx(0.1)
    # half of them wrong: 0.95 beside the label for those
    assert beside_label(say(1, 2, 0, 0, 1, 2), LABELS) == pytest.approx((0.95 + 0.1) / 2)


@pytest.mark.parametrize(("first", "second", "p"), [(0, 0, 1.0), (5, 5, 1.0), (0, 5, 2 / 32), (1, 9, 2 * 11 / 1024)])
def test_mcnemars_exact_test(first: int, second: int, p: float) -> None:
    assert mcnemar(first, second) == pytest.approx(p)
    assert mcnemar(second, first) == pytest.approx(p)


def test_mcnemar_of_many_is_near_the_normal_law() -> None:
    z = (600 - 500) / math.sqrt(600 + 500)
    assert mcnemar(600, 500) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.1)


def test_interval_over_seeds() -> None:
    assert gain_interval([0.01]) is None
    low, high = gain_interval([0.01, 0.02, 0.03])  # type: ignore[misc]
    half = 4.303 * 0.01 / math.sqrt(3)
    assert (low, high) == pytest.approx((0.02 - half, 0.02 + half))
    low, high = gain_interval([0.01, 0.03] * 20)  # type: ignore[misc]
    assert (high - low) / 2 == pytest.approx(1.96 * np.std([0.01, 0.03] * 20, ddof=1) / math.sqrt(40))


def test_inherited_and_spared() -> None:
    """Image 0: spared. 1: inherited. 2: wrong in another way than the teacher. 3: all right. 4: only the student."""
    test = SplitAnswers(
        "test",
        LABELS,
        teacher=say(0, 2, 0, 0, 0, 2),
        student=say(0, 2, 1, 0, 1, 2),
        control=say(1, 1, 2, 0, 2, 2),
    )
    known = measure_knowledge([test], seeds(0.1))
    assert (known.spared, known.inherited, known.only_student, known.only_control) == (1, 1, 2, 2)
    assert known.mcnemar_p == 1.0
    (split,) = known.splits
    assert (split.teacher_accuracy, split.student_accuracy, split.control_accuracy) == (0.5, 4 / 6, 4 / 6)
    assert split.student_agreement == pytest.approx(4 / 6)
    assert (known.gain_low, known.gain_high) == (None, None)


def test_without_a_control_nothing_is_paired() -> None:
    test = SplitAnswers("test", LABELS, say(*LABELS), say(*LABELS))
    known = measure_knowledge([test], [])
    assert (known.spared, known.inherited, known.mcnemar_p, known.splits[0].control_accuracy) == (None,) * 4


def split(kind: str, teacher: float, beside: float, student: float, control: float | None) -> KnownSplit:
    return KnownSplit.model_validate(
        {
            "split": kind,
            "images": 1000,
            "teacher_accuracy": teacher,
            "teacher_beside_label": beside,
            "student_accuracy": student,
            "control_accuracy": control,
            "student_agreement": 0.8,
        }
    )


def known(*splits: KnownSplit, gained: int = 90, lost: int = 20, p: float | None = 0.001) -> Knowledge:
    counts = {} if p is None else {"inherited": 7, "spared": 60, "only_student": gained, "only_control": lost}
    return Knowledge(splits=splits, mcnemar_p=p, gain_low=None, gain_high=None, **counts)


SOUND_TRAIN, SOUND_TEST = split("train", 0.93, 0.15, 0.9, 0.85), split("test", 0.9, 0.18, 0.8, 0.75)


@pytest.mark.parametrize(
    ("case", "advice"),
    [
        (known(SOUND_TRAIN, SOUND_TEST), "the teacher helped, and nothing here asks for a change"),
        (
            known(split("train", 0.9998, 0.0015, 0.9, 0.85), split("test", 0.87, 0.15, 0.8, 0.75)),
            "memorised its training images, .* use --unlabelled, more views or, if it is trained here, teacher.folds",
        ),
        (
            known(
                split("train", 0.9998, 0.0015, 0.9, 0.85),
                split("out_of_fold", 0.87, 0.14, 0.9, 0.85),
                split("test", 0.87, 0.15, 0.8, 0.75),
            ),
            "the teacher helped",  # it was not memorised answers that taught
        ),
        (
            known(SOUND_TRAIN, split("test", 0.76, 0.3, 0.75, 0.755), gained=12, lost=17, p=0.46),
            "hardly better than the student alone, .* use a stronger one",
        ),
        (
            known(split("train", 0.95, 0.1, 0.72, 0.7), split("test", 0.9, 0.18, 0.7, 0.65)),
            r"far from its teacher there: train it longer \(distill.epochs\)",
        ),
        (
            known(SOUND_TRAIN, SOUND_TEST, gained=40, lost=35, p=0.64),
            "cannot tell the difference from chance: use more",
        ),
        (known(SOUND_TRAIN, SOUND_TEST, gained=20, lost=90), "the teacher did harm: use a smaller distill.alpha"),
        (
            known(split("train", 0.93, 0.15, 0.9, None), split("test", 0.9, 0.18, 0.8, None), p=None),
            r"no control was measured, .* train one \(--set distill.control=true\), and have torch among bench",
        ),
        (  # a weak teacher may help all the same
            known(split("train", 0.78, 0.28, 0.9, 0.85), split("test", 0.755, 0.3, 0.8, 0.755)),
            "the teacher helped",
        ),
        (
            known(split("train", 1.0, 0.0, 1.0, 1.0), split("test", 1.0, 0.0, 0.995, 0.995), gained=1, lost=1, p=1.0),
            "the student alone has nearly all test images right, so no teacher can add much",
        ),
        (
            known(SOUND_TRAIN, SOUND_TEST, gained=40, lost=35, p=0.64).model_copy(
                update={"gain_low": 0.01, "gain_high": 0.03}
            ),
            "the teacher helped",  # in all seeds, though the first one alone is not sure
        ),
        (
            known(SOUND_TRAIN, SOUND_TEST, gained=40, lost=35, p=0.64).model_copy(
                update={"gain_low": -0.01, "gain_high": 0.03}
            ),
            "use more seeds or more test images",
        ),
    ],
)
def test_advice(case: Knowledge, advice: str) -> None:
    assert re.search(advice, advise(case))


def test_advice_does_not_name_what_is_done_already() -> None:
    memorised = known(split("train", 0.9998, 0.0015, 0.9, 0.85), split("test", 0.87, 0.15, 0.8, 0.75))
    assert "use more images without labels, more views" in advise(memorised, has_unlabelled=True)


def test_the_paragraph() -> None:
    figures = known(SOUND_TRAIN, SOUND_TEST).model_copy(update={"gain_low": 0.031, "gain_high": 0.069})
    gains = seeds(0.04, 0.05, 0.06)
    text = describe_knowledge(Distillation(mean=0.05, per_seed=tuple(gains), knowledge=figures))
    assert text.startswith(
        "The teacher is right on 93.00 % of 1,000 training images and 90.00 % of 1,000 test images. Beside the label it"
        " puts 15.00 % and 18.00 % of its probability, and the student predicts its class on 80.00 % and 80.00 %"
        " (training images and test images). Of the test images, 60 that the control gets wrong are right in teacher"
        " and student; 7 that the control gets right are wrong in the student as in the teacher. The gain is +5.00"
        " points (95 % interval over 3 seeds: +3.10 to +6.90); on the first seed, 90 test images are right in the"
        " student and wrong in the control, 20 the other way round (McNemar's test: p = 0.001). Advice: "
    )
    assert describe_knowledge(Distillation()) == ""
