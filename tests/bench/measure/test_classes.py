"""Recall class by class, against torchmetrics and by hand, and the sentences about it."""

import numpy as np
import pytest
import torch
from report_samples import make_answers, make_classes, make_report
from torchmetrics.functional.classification import multiclass_recall

from toolkit.bench.measure.classes import compare_classes
from toolkit.bench.report.table import print_table, render_markdown
from toolkit.bench.report.words import describe_classes, render_classes, worst_classes
from toolkit.bench.schema import ClassRecall

NAMES = ("shirt", "coat", "bag", "shoe")


def test_hand_worked() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 2])
    teacher = np.eye(4)[[0, 0, 0, 1, 1, 1, 0]]
    student = np.eye(4)[[0, 0, 1, 1, 1, 0, 2]]
    assert [one.to_json() for one in compare_classes(labels, teacher, student, NAMES)] == [
        {"name": "shirt", "images": 4, "teacher_recall": 0.75, "student_recall": 0.5, "recall_difference": -0.25},
        {"name": "coat", "images": 2, "teacher_recall": 1.0, "student_recall": 0.5, "recall_difference": -0.5},
        {"name": "bag", "images": 1, "teacher_recall": 0.0, "student_recall": 1.0, "recall_difference": 1.0},
        {"name": "shoe", "images": 0, "teacher_recall": None, "student_recall": None, "recall_difference": None},
    ]


@pytest.mark.parametrize("num_classes", [2, 10, 101])
def test_against_torchmetrics(num_classes: int) -> None:
    labels, teacher, student = make_answers(num_classes, 997)
    found = compare_classes(labels, teacher, student, [str(i) for i in range(num_classes)])
    for key, logits in (("teacher_recall", teacher), ("student_recall", student)):
        expected = multiclass_recall(torch.tensor(logits), torch.tensor(labels), num_classes, average="none")
        assert [getattr(one, key) or 0.0 for one in found] == pytest.approx(expected.tolist(), abs=1e-6)
    assert [one.images for one in found] == np.bincount(labels, minlength=num_classes).tolist()


def test_recalls_weighted_by_images_are_the_accuracy() -> None:
    labels, teacher, student = make_answers(10, 500)
    found = compare_classes(labels, teacher, student, [str(i) for i in range(10)])
    total = sum(one.student_recall * one.images for one in found)
    assert total / 500 == pytest.approx(np.mean(student.argmax(1) == labels))


def test_nothing_differs_from_itself() -> None:
    labels, teacher, _ = make_answers(10, 200)
    found = compare_classes(labels, teacher, teacher, [str(i) for i in range(10)])
    assert {one.recall_difference for one in found} == {0.0}
    assert worst_classes(found) == []
    assert describe_classes(found) == "No class loses: the student's recall is at least the teacher's in every class."


@pytest.mark.parametrize(("labels", "student", "names"), [(2, 3, 4), (3, 2, 4), (3, 3, 5)])
def test_shapes_that_do_not_belong_together(labels: int, student: int, names: int) -> None:
    with pytest.raises(ValueError, match="logits"):
        compare_classes(np.zeros(labels, np.int64), np.zeros((3, 4)), np.zeros((student, 4)), ["x"] * names)


def test_worst_first_and_losers_only() -> None:
    classes = make_classes(["a", "b", "c", "d", "e", "f", "g"])
    assert [one.name for one in worst_classes(classes)] == ["g", "f", "e", "d", "c"]
    assert [one.name for one in worst_classes(classes, 99)] == ["g", "f", "e", "d", "c", "b"]  # a loses nothing


def test_a_class_without_images_is_not_worst_and_not_in_the_table() -> None:
    classes = make_classes(["a", "b"])
    nobody = ClassRecall(name="nobody", images=0, teacher_recall=None, student_recall=None, recall_difference=None)
    assert [one.name for one in worst_classes([nobody, *classes])] == ["b"]
    table = render_classes([nobody, *classes])
    assert "nobody" not in table
    assert table.endswith("1 class has no test image.")


def test_the_line_for_the_terminal() -> None:
    shirt = ClassRecall(name="shirt", images=9, teacher_recall=0.72, student_recall=0.689, recall_difference=-0.031)
    assert describe_classes([shirt]) == "Classes that lose most: shirt -3.1 points (recall 72.0 -> 68.9 %)"


def test_the_table_has_the_worst_and_counts_the_others() -> None:
    lines = render_classes(make_classes([f"class {i}" for i in range(30)]), count=4).splitlines()
    assert lines[2] == "| class 29 | 1,000 | 90.00 % | 87.10 % | -2.90 |"
    assert len(lines) == 2 + 4 + 2
    assert lines[-1] == "The other 26 classes, which lose less or gain, are in report.json."


def test_a_bar_in_a_name_starts_no_column() -> None:
    assert "a\\|b" in render_classes(make_classes(["a|b"]))


def test_terminal_and_report_have_them(capsys: pytest.CaptureFixture[str]) -> None:
    report = make_report()
    print_table(report)
    line = describe_classes(report.classes)
    assert line in capsys.readouterr().out
    assert render_classes(report.classes) in render_markdown(report)


def test_the_control_stands_for_a_teacher_that_was_not_measured() -> None:
    labels, control, student = make_answers(4, 200)
    against_teacher = compare_classes(labels, control, student, NAMES)
    found = compare_classes(labels, control, student, NAMES, "control")
    assert [one.control_recall for one in found] == [one.teacher_recall for one in against_teacher]
    assert [one.recall_difference for one in found] == [one.recall_difference for one in against_teacher]
    assert {one.teacher_recall for one in found} == {None}
    line = describe_classes(against_teacher).replace("lose most:", "lose most, against the control:")
    assert describe_classes(found) == line
    assert "| class | images | control recall | student recall | points |" in render_classes(found)
    no_loss = compare_classes(labels, control, control, NAMES, "control")
    assert describe_classes(no_loss) == "No class loses: the student's recall is at least the control's in every class."


def test_a_student_alone() -> None:
    labels, _, student = make_answers(4, 200)
    found = compare_classes(labels, None, student, NAMES)
    assert {(one.teacher_recall, one.recall_difference) for one in found} == {(None, None)}
    assert describe_classes(found) == ""
    lines = render_classes(found, count=2).splitlines()
    assert lines[0] == "| class | images | student recall |"
    least = sorted(found, key=lambda one: one.student_recall or 0)
    assert lines[2].startswith(f"| {least[0].name} |")
    assert lines[-1] == "The other 2 classes, which it recognises more often, are in report.json."
