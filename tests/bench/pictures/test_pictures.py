"""Pictures: the figures in them against independent ones, and nothing that is clipped or covered."""

import io
import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from report_samples import four_rows, make_answers, make_report, make_row
from torchmetrics.functional.classification import multiclass_confusion_matrix

from toolkit import plotting
from toolkit.bench.measure.fidelity import CALIBRATION_BINS, measure_fidelity
from toolkit.bench.pictures import accuracy_latency, confusion, reliability
from toolkit.bench.pictures.accuracy_latency import draw_accuracy_latency, find_front, place_numbers
from toolkit.bench.pictures.confusion import confusion_difference, draw_confusion_difference, most_changed
from toolkit.bench.pictures.reliability import Bins, draw_reliability, interval_95
from toolkit.bench.report.verdict import name_runtime
from toolkit.bench.schema import ReportRow

Drawn = list[Figure]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """The figures that were turned into PNG."""
    figures: Drawn = []

    def write_png(one: Figure) -> bytes:
        figures.append(one)
        return plotting.write_png(one)

    for module in (confusion, accuracy_latency, reliability):
        monkeypatch.setattr(module, "write_png", write_png)
    return figures


def texts(one: Figure) -> list[Text]:
    return [text for text in one.findobj(Text) if text.get_visible() and text.get_text().strip()]


def read_size(png: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.format == "PNG"
        return picture.size


def assert_nothing_is_clipped(one: Figure) -> None:
    box = one.get_tightbbox(one.canvas.get_renderer())  # type: ignore[attr-defined]
    width, height = one.get_size_inches()
    assert min(box.x0, box.y0) >= 0, f"{box} sticks out of the picture"
    assert box.x1 <= width, f"{box} sticks out of the picture"
    assert box.y1 <= height, f"{box} sticks out of the picture"


def many_rows() -> list[ReportRow]:
    """14 rows: three models, three precisions, four runtimes and one nobody has heard of."""
    rows = []
    for model, size, accuracy in (("teacher", 44_800_000, 0.9079), ("student", 1_040_000, 0.9031)):
        for i, runtime in enumerate(("torch", "torch.compile", "onnxruntime", "openvino")):
            p50 = (6.75 if model == "teacher" else 1.17) * 0.4**i
            rows.append(make_row(model, p50, accuracy, size, runtime))
        for precision, factor in (("fp16", 0.5), ("int8", 0.26)):
            p50 = (0.9 if model == "teacher" else 0.16) * (1 + factor)
            rows.append(make_row(model, p50, accuracy - 0.002, round(size * factor), precision=precision))
    rows.append(make_row("control", 1.15, 0.8976, 1_040_000, "torch"))
    rows.append(make_row("student", 0.2, 0.9, 500_000, "tvm", precision="fp8"))
    return rows


# ---- accuracy against latency ----------------------------------------------------------------------------------------


def test_the_front_holds_what_nothing_beats() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        places = rng.integers(1, 8, (9, 2))
        rows = [make_row("student", float(p50), accuracy / 10, 1) for p50, accuracy in places]
        beaten = [
            any(
                (other[0] <= one[0] and other[1] >= one[1]) and ((other != one).any() or j < i)
                for j, other in enumerate(places)
                if j != i
            )
            for i, one in enumerate(places)
        ]
        expected = [i for i, lost in enumerate(beaten) if not lost]
        assert sorted(find_front(rows)) == expected


def test_the_front_has_the_fastest_first() -> None:
    rows = [make_row("teacher", 5, 0.9, 1), make_row("student", 1, 0.8, 1), make_row("control", 6, 0.7, 1)]
    assert find_front(rows) == [1, 0]


def test_numbers_do_not_cover_each_other_or_other_bubbles() -> None:
    rng = np.random.default_rng(0)
    centres = [(float(x), float(y)) for x, y in rng.uniform(0, 200, (14, 2))]
    radii = [3.0] * 14
    spots = np.add(centres, place_numbers(centres, radii))
    gaps = [np.abs(a - b) for a, b in itertools.combinations(spots, 2)]
    assert all(
        gap[0] >= 1.5 * accuracy_latency.NUMBER_POINTS or gap[1] >= 1.2 * accuracy_latency.NUMBER_POINTS for gap in gaps
    )
    assert place_numbers([(0, 0)], [20.0]) == [(0.0, 0.0)]  # inside, if there is room


def rows_on_two_devices() -> list[ReportRow]:
    """28 rows: those 14, and each on a GPU too."""
    faster = [row.latency_ms.model_copy(update={"p50": row.latency_ms.p50 / 7}) for row in many_rows()]
    on_gpu = [
        row.model_copy(update={"provider": "CUDAExecutionProvider", "latency_ms": latency})
        for row, latency in zip(many_rows(), faster, strict=True)
    ]
    return many_rows() + on_gpu


@pytest.mark.parametrize("rows", [lambda: four_rows()[::3], four_rows, many_rows, rows_on_two_devices])
def test_any_number_of_rows_keeps_readable(rows: Callable[[], list[ReportRow]], drawn: Drawn) -> None:
    report = make_report(rows())
    png = draw_accuracy_latency(report)
    (one,) = drawn
    assert read_size(png) == {2: (1280, 800), 4: (1280, 800), 14: (1664, 896), 28: (1664, 1306)}[len(report.rows)]
    assert_nothing_is_clipped(one)
    words = [text.get_text() for text in texts(one)]
    for number in range(1, len(report.rows) + 1):
        assert words.count(str(number)) >= 2  # at its bubble and in the list
    for row in report.rows:
        assert name_runtime(row, report.rows) in words
        assert f"{100 * row.accuracy_top1:.2f}" in words
    listed = one.axes[1].texts
    renderer = one.canvas.get_renderer()  # type: ignore[attr-defined]
    boxes = [text.get_window_extent(renderer) for text in listed if text.get_text().strip()]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_the_rows_of_the_front_are_bold(drawn: Drawn) -> None:
    draw_accuracy_latency(make_report())
    bold = [text.get_text() for text in drawn[0].axes[1].texts if text.get_weight() == "bold"]
    assert bold[::6] == ["1", "2"]  # student and teacher in onnxruntime, of 6 columns each
    assert bold[1::6] == ["student", "teacher"]


def test_equal_rows_and_one_gpu_are_drawn(drawn: Drawn) -> None:
    rows = [make_row("teacher", 1.0, 0.9, 10), make_row("student", 1.0, 0.9, 10)]
    report = make_report(rows, name="$x_1$ & <b>")
    report = report.model_copy(update={"hardware": report.hardware.model_copy(update={"gpu": "NVIDIA H100"})})
    draw_accuracy_latency(report)
    assert_nothing_is_clipped(drawn[0])
    assert any("$x_1$" in text.get_text() for text in texts(drawn[0]))
    assert any("NVIDIA H100" in text.get_text() for text in texts(drawn[0]))


def test_the_same_report_makes_the_same_picture() -> None:
    assert draw_accuracy_latency(make_report()) == draw_accuracy_latency(make_report())


# ---- reliability -----------------------------------------------------------------------------------------------------


def test_bins_hand_worked() -> None:
    probabilities = np.array([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1], [0.1, 0.9, 0.0], [0.3, 0.3, 0.4]])
    bins = Bins.of(np.log(np.maximum(probabilities, 1e-30)), np.array([0, 1, 1, 2]))
    assert dict(enumerate(bins.images)) == dict.fromkeys(range(16), 0) | {10: 2, 13: 1, 6: 1}
    np.testing.assert_allclose(bins.confidence[[6, 10, 13]], [0.4, 0.7, 0.9])
    np.testing.assert_allclose(bins.accuracy[[6, 10, 13]], [1, 0.5, 1])
    assert bins.ece == pytest.approx(0.1 + 0.025 + 0.15)
    assert bins.overconfidence == pytest.approx((0.7 + 0.7 + 0.9 + 0.4) / 4 - 0.75)


@pytest.mark.parametrize("num_classes", [2, 3, 10, 101])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_error_is_the_reports(num_classes: int, seed: int) -> None:
    labels, teacher, student = make_answers(num_classes, 997, seed)
    for logits in (teacher, student, 50 * student):  # the last is certain: confidence 1
        assert Bins.of(logits, labels).ece == pytest.approx(measure_fidelity(logits, labels, teacher).ece, abs=1e-6)


def test_certain_and_right_is_perfect() -> None:
    labels = np.array([0, 1, 2])
    bins = Bins.of(1000 * np.eye(3), labels)
    assert (bins.ece, bins.overconfidence) == (0, 0)
    assert bins.images[CALIBRATION_BINS] == 3


@pytest.mark.parametrize(("logits", "labels"), [((0, 3), 0), ((4, 3), 3), ((4,), 4)])
def test_bins_of_shapes_that_do_not_belong_together(logits: tuple[int, ...], labels: int) -> None:
    with pytest.raises(ValueError, match="logits"):
        Bins.of(np.zeros(logits), np.zeros(labels, np.int64))


def test_the_interval_is_wilsons() -> None:
    low, high = interval_95(np.array([0.5, 1.0, 0.0]), np.array([10, 10, 10]))
    np.testing.assert_allclose(low, [0.2366, 0.7225, 0.0], atol=1e-4)  # as textbooks print them
    np.testing.assert_allclose(high, [0.7634, 1.0, 0.2775], atol=1e-4)


@pytest.mark.parametrize(("num_classes", "images"), [(2, 1), (3, 60), (10, 2000), (101, 2000)])
def test_the_reliability_diagram(num_classes: int, images: int, drawn: Drawn) -> None:
    labels, teacher, student = make_answers(num_classes, images)
    png = draw_reliability(labels, teacher, student, "fashion-mnist")
    assert read_size(png) == (1120, 1120)
    (one,) = drawn
    assert_nothing_is_clipped(one)
    (curve, _) = one.axes
    legend = [text.get_text() for text in curve.get_legend().get_texts()]  # type: ignore[union-attr]
    for role, logits in (("teacher", teacher), ("student", student)):
        ece = measure_fidelity(logits, labels, teacher).ece
        assert any(line.startswith(f"{role}: ECE {ece:.4f}") for line in legend)
    sides = {text.get_text(): text.get_position() for text in curve.texts}
    assert sides["underconfident"][0] < sides["underconfident"][1], "confidence below accuracy"
    assert sides["overconfident"][0] > sides["overconfident"][1]


# ---- confusion -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_classes", [3, 10, 101])
def test_the_difference_against_torchmetrics(num_classes: int) -> None:
    labels, teacher, student = make_answers(num_classes, 3000)
    expected = [
        multiclass_confusion_matrix(
            torch.tensor(logits.argmax(1)), torch.tensor(labels), num_classes, normalize="true"
        ).numpy()
        for logits in (student, teacher)
    ]
    got = confusion_difference(labels, teacher, student)
    np.testing.assert_allclose(got, 100 * (expected[0] - expected[1]), atol=1e-4)
    np.testing.assert_allclose(got.sum(1), 0, atol=1e-9)


def test_nothing_differs_from_itself() -> None:
    labels, teacher, _ = make_answers(10, 300)
    assert not confusion_difference(labels, teacher, teacher).any()


def test_the_diagonal_is_the_difference_of_recalls() -> None:
    labels = np.array([0, 0, 1, 1])
    teacher, student = np.eye(3)[[0, 0, 1, 2]], np.eye(3)[[0, 1, 1, 1]]
    np.testing.assert_allclose(confusion_difference(labels, teacher, student), [[-50, 50, 0], [0, 50, -50], [0, 0, 0]])


@pytest.mark.parametrize(("labels", "student"), [(3, 4), (4, 3)])
def test_confusion_of_shapes_that_do_not_belong_together(labels: int, student: int) -> None:
    with pytest.raises(ValueError, match="logits"):
        confusion_difference(np.zeros(labels, np.int64), np.zeros((4, 3)), np.zeros((student, 3)))


def test_the_classes_that_changed_most() -> None:
    difference = np.zeros((5, 5))
    difference[3, 1], difference[0, 0] = -4, 3
    assert most_changed(difference, 3).tolist() == [0, 1, 3]
    assert most_changed(difference, 9).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("num_classes", "shown"), [(2, 2), (3, 3), (10, 10), (30, 30), (31, 20), (101, 20)])
def test_the_confusion_picture(num_classes: int, shown: int, drawn: Drawn) -> None:
    labels, teacher, student = make_answers(num_classes, 3000)
    names = [f"class {i} with a long name" for i in range(num_classes)]
    draw_confusion_difference(labels, teacher, student, names, "fashion-mnist")
    (one,) = drawn
    assert_nothing_is_clipped(one)
    axes = one.axes[0]
    assert len(axes.get_xticklabels()) == len(axes.get_yticklabels()) == shown
    assert axes.images[0].get_array().shape == (shown, shown)  # type: ignore[union-attr]
    low, high = axes.images[0].get_clim()
    assert low == -high  # 0 is white
    expected = f"the 20 of {num_classes} classes that changed most"
    assert any(expected in text.get_text() for text in texts(one)) == (num_classes > 30)


def test_names_of_any_letters_are_drawn_as_they_are(drawn: Drawn) -> None:
    labels, teacher, student = make_answers(4, 100)
    names = ["$\\frac$", "a_{b}^c", "寿司", "🍕"]
    draw_confusion_difference(labels, teacher, student, names, "寿司 $")
    assert [text.get_text() for text in drawn[0].axes[0].get_yticklabels()] == names


def test_equal_networks_make_a_white_picture(drawn: Drawn) -> None:
    labels, teacher, _ = make_answers(3, 100)
    draw_confusion_difference(labels, teacher, teacher, ["a", "b", "c"], "colours")
    assert drawn[0].axes[0].images[0].get_clim() == (-1, 1)
    assert not drawn[0].axes[0].texts
