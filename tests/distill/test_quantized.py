"""The int8 teacher: near the float one, the same each time, and taken only if it is worth it."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from distill_samples import Splits, load_splits, make_views
from small_networks import settled_network
from torch import Tensor

from toolkit.data.batches import TrainingViews
from toolkit.distill import precision, quantized
from toolkit.distill.precision import FloatArithmetic
from toolkit.distill.quantized import QuantizedClassifier, choose_teacher, mean_distance, teacher_in
from toolkit.errors import DeviceError, RecipeError
from toolkit.networks.classifier import Classifier
from toolkit.recipe import Recipe
from toolkit.settings import DistillRecipe

NORMALISATION = ((0.45, 0.4, 0.35), (0.2, 0.25, 0.3))


@pytest.fixture(scope="module")
def splits(class_folders: Path) -> Splits:
    return load_splits(class_folders)


@pytest.fixture(scope="module")
def views(splits: Splits) -> TrainingViews:
    return make_views(splits[0])


@pytest.fixture(scope="module")
def teacher() -> Classifier:
    return Classifier(settled_network("depthwise"), *NORMALISATION).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def int8(teacher: Classifier, views: TrainingViews) -> QuantizedClassifier:
    return QuantizedClassifier(teacher, views)


def images_of(views: TrainingViews, view: int = 5) -> Tensor:
    return views.render(np.arange(len(views)), view)


def test_answers_nearly_as_the_float_network(
    teacher: Classifier, int8: QuantizedClassifier, views: TrainingViews
) -> None:
    images = images_of(views)
    expected, logits = teacher(images), int8(images)
    assert logits.shape == expected.shape
    assert logits.dtype == torch.float32
    assert 0 < (logits - expected).abs().max() < 0.15 * (expected.max() - expected.min())
    assert mean_distance(logits, expected) < 0.05


def test_takes_any_layout_in_memory(int8: QuantizedClassifier, views: TrainingViews) -> None:
    images = images_of(views)
    assert torch.equal(int8(images.contiguous()), int8(images.contiguous(memory_format=torch.channels_last)))


def test_made_again_it_answers_to_the_same_bit(
    teacher: Classifier, int8: QuantizedClassifier, views: TrainingViews, splits: Splits
) -> None:
    """So that an interrupted run can go on with it."""
    again = QuantizedClassifier(teacher, make_views(splits[0]))
    assert torch.equal(again(images_of(views)), int8(images_of(views)))


def test_pixels_are_rounded_to_the_nearest() -> None:
    exact = torch.arange(256).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    pixels = quantized._as_pixels(exact / 255 + 0.4 / 255 * (exact % 2 * 2 - 1))
    assert np.array_equal(pixels, exact.permute(0, 2, 3, 1).numpy())


def test_mean_distance_against_numbers_by_hand() -> None:
    one = torch.log(torch.tensor([[0.5, 0.3, 0.2], [0.9, 0.05, 0.05]]))
    other = torch.log(torch.tensor([[0.4, 0.3, 0.3], [0.9, 0.05, 0.05]]))
    assert mean_distance(one, other) == pytest.approx(0.05)
    assert mean_distance(one, one + 7) == pytest.approx(0, abs=1e-6)


class Chooser:
    """choose_teacher with a clock on which a second passes for every float image, and less or more for int8 ones."""

    def __init__(self, teacher: Classifier, views: TrainingViews, monkeypatch: pytest.MonkeyPatch) -> None:
        self.teacher, self.views, self.now = teacher, views, 0.0
        self.int8_s = 0.5
        answer = quantized._answer

        def slowly(network: Classifier, images: Tensor, precision: FloatArithmetic) -> Tensor:
            self.now += len(images) * (self.int8_s if isinstance(network, QuantizedClassifier) else 1.0)
            return answer(network, images, precision)

        monkeypatch.setattr(quantized, "_answer", slowly)

    def __call__(self, **settings: Any) -> tuple[Classifier, str]:
        recipe = Recipe.model_validate({"distill": {"epochs": 10} | settings})
        return choose_teacher(recipe, lambda: "bf16", self.teacher, self.views, clock=lambda: self.now)


@pytest.fixture(scope="module")
def graph(teacher: Classifier, views: TrainingViews) -> onnx.ModelProto:
    """The teacher's, which every choice would build again, in seconds."""
    return quantized.build_graph(teacher, views.data.image_size, quantized.OPSET)


@pytest.fixture
def choose(
    teacher: Classifier, graph: onnx.ModelProto, views: TrainingViews, monkeypatch: pytest.MonkeyPatch
) -> Chooser:
    monkeypatch.setattr(quantized, "build_graph", lambda *_: onnx.ModelProto.FromString(graph.SerializeToString()))
    monkeypatch.setattr(quantized, "FARTHEST", 0.06)
    monkeypatch.setattr(precision, "CHOICE_S", 1000.0)
    quantized.forget()
    return Chooser(teacher, views, monkeypatch)


class TestAuto:
    def test_takes_int8_if_it_is_faster_and_near(self, choose: Chooser, capsys: pytest.CaptureFixture[str]) -> None:
        network, precision = choose()
        assert isinstance(network, QuantizedClassifier)
        assert precision == "int8"
        assert (
            "teacher in int8: an image takes 1000 ms in bf16, 500 ms in int8; in int8 its prob"
            in capsys.readouterr().err
        )

    def test_the_choice_is_remembered_for_the_same_teacher_and_work(
        self, choose: Chooser, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert choose()[1] == "int8"
        now = choose.now
        network, precision = choose()
        assert isinstance(network, QuantizedClassifier)
        assert precision == "int8"
        assert choose.now == now
        assert capsys.readouterr().err.count("teacher in int8") == 1
        choose(epochs=9)
        assert choose.now > now

    def test_and_so_is_one_against_it(self, choose: Chooser, monkeypatch: pytest.MonkeyPatch) -> None:
        choose.int8_s = 1.5
        assert choose()[1] == "bf16"
        monkeypatch.setattr(quantized, "QuantizedClassifier", never)
        assert choose()[1] == "bf16"

    def test_not_if_it_is_slower(self, choose: Chooser, capsys: pytest.CaptureFixture[str]) -> None:
        choose.int8_s = 1.5
        assert choose() == (choose.teacher, "bf16")
        assert "teacher in bf16" in capsys.readouterr().err

    def test_not_if_it_is_far_off(self, choose: Chooser, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(quantized, "FARTHEST", 1e-4)
        assert choose() == (choose.teacher, "bf16")

    @pytest.mark.parametrize(
        "settings",
        [
            {"epochs": 1},
            {"teacher_views": 1},
            {"precision": "bf16"},
            {"method": "kd+attention"},
            {"method": "similarity"},
        ],
    )
    def test_not_tried_if_there_is_little_work_or_another_wish(
        self, choose: Chooser, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
    ) -> None:
        monkeypatch.setattr(quantized, "QuantizedClassifier", never)
        monkeypatch.setattr(quantized, "WORTH_S", 40.0)
        assert choose(**settings) == (choose.teacher, "bf16")


def never(*arguments: object) -> None:
    raise AssertionError("not to be called")


class TestWish:
    def test_int8(self, choose: Chooser) -> None:
        network, precision = choose(teacher_precision="int8", epochs=1)
        assert isinstance(network, QuantizedClassifier)
        assert precision == "int8"

    def test_float(self, choose: Chooser) -> None:
        assert choose(teacher_precision="fp32") == (choose.teacher, "fp32")

    @pytest.mark.parametrize(("chosen", "kind"), [("int8", QuantizedClassifier), ("fp32", Classifier)])
    def test_an_interrupted_run_keeps_what_it_had(self, choose: Chooser, chosen: str, kind: type) -> None:
        network = teacher_in(chosen, choose.teacher, choose.views)
        assert type(network) is kind
        assert (network is choose.teacher) == (chosen == "fp32")

    def test_not_on_a_gpu(self, choose: Chooser, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(choose.views, "device", "cuda:0")
        with pytest.raises(DeviceError, match="an int8 teacher runs on the CPU, not on cuda:0"):
            choose(teacher_precision="int8")

    def test_not_with_layers(self) -> None:
        with pytest.raises(RecipeError, match="a method of layers cannot read an int8 teacher"):
            Recipe().with_overrides(["distill.teacher_precision=int8", "distill.method=fitnets"])


def test_it_does_not_change_what_a_control_is() -> None:
    one, other = Recipe(), Recipe().with_overrides(["distill.teacher_precision=int8"])
    assert one.control_fingerprint() == other.control_fingerprint()


def test_the_work_is_that_of_all_epochs_or_of_the_stored_views(choose: Chooser) -> None:
    def work(**settings: Any) -> float:
        section = DistillRecipe.model_validate(settings)
        return quantized._work_s(section, choose.teacher, choose.views, "fp32", lambda: choose.now)

    assert work(epochs=10) == pytest.approx(360)
    assert work(epochs=10, teacher_views=2) == pytest.approx(72)
    assert work(epochs=2, teacher_views=10) == pytest.approx(72)


def test_processes_agree_on_whether_int8_is_worth_a_try(choose: Chooser, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has a clock of its own: the main one's counts, or one would wait for the other for ever."""
    monkeypatch.setattr(quantized.distributed, "agree", lambda value: False)
    monkeypatch.setattr(quantized, "QuantizedClassifier", never)
    assert choose() == (choose.teacher, "bf16")


def test_auto_stays_in_float_if_int8_cannot_be_made(
    choose: Chooser, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("no such operator\nand much more")

    monkeypatch.setattr(quantized, "QuantizedClassifier", fail)
    assert choose() == (choose.teacher, "bf16")
    assert "answers in float, because it cannot be made in int8: no such operator\n" in capsys.readouterr().err


def test_the_distance_of_a_requested_int8_is_reported(choose: Chooser, capsys: pytest.CaptureFixture[str]) -> None:
    choose(teacher_precision="int8")
    assert "teacher in int8: its probabilities are " in capsys.readouterr().err
