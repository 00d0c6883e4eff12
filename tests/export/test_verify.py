"""The proof: each bound stands for itself, on hand-made files whose answers are known."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from export_samples import make_pixels
from onnx import TensorProto, helper
from torch import nn

from toolkit.errors import GateError
from toolkit.export.replay import Replay
from toolkit.export.samples import Samples, choose_samples, draw_images
from toolkit.export.verify import ODD_BATCH, Bounds, Proof, prove_file, refer_to_network
from toolkit.modeldir import FilePrecision
from toolkit.networks.classifier import Classifier
from toolkit.settings import ExportRecipe

SIDE, COUNT = 4, 20
MeanColours = Callable[..., Path]


def classifier() -> Classifier:
    """Logits are the mean red, green and blue of the image, in 0..1."""
    return Classifier(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), (0.0,) * 3, (1.0,) * 3).eval()


@pytest.fixture
def write(tmp_path: Path) -> MeanColours:
    """Write an ONNX file that answers like `classifier`, but for logits · scale + offset or another last operator."""

    def write(scale: float = 1.0, offset: tuple[float, ...] = (0.0, 0.0, 0.0), last: str = "Softmax") -> Path:
        nodes = [
            helper.make_node("Cast", ["image"], ["real"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["real", "axes"], ["means"], keepdims=0),
            helper.make_node("Mul", ["means", "scale"], ["scaled"]),
            helper.make_node("Add", ["scaled", "offset"], ["logits"]),
            helper.make_node(last, ["logits"], ["probabilities"]),
        ]
        constants = [
            helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2]),
            helper.make_tensor("scale", TensorProto.FLOAT, [1], [scale / 255]),
            helper.make_tensor("offset", TensorProto.FLOAT, [3], offset),
        ]
        image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", SIDE, SIDE, 3])
        outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 3]) for n in ("logits", "probabilities")]
        graph = helper.make_graph(nodes, "means", [image], outputs, constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, str(tmp_path / "means.onnx"))
        return tmp_path / "means.onnx"

    return write


def samples(labels: np.ndarray | None = None) -> Samples:
    drawn = choose_samples(None, SIDE, 3, COUNT)
    return drawn if labels is None else replace(drawn, labels=labels)


def prove(path: Path, chosen: Samples, precision: FilePrecision = "fp32", **bounds: float) -> Proof:
    reference = refer_to_network(classifier(), chosen)
    return prove_file(path, "means.onnx", reference, Bounds.of(ExportRecipe(**bounds), precision))[0]


def true_logits() -> np.ndarray:
    return draw_images(COUNT, SIDE).astype(np.float64).mean(axis=(1, 2)) / 255


def test_a_faithful_file(write: MeanColours) -> None:
    proof = prove(write(), samples(true_logits().argmax(1)))
    assert proof.images == COUNT
    assert proof.max_logit_difference < 1e-6
    assert (proof.agreement, proof.accuracy_reference, proof.accuracy_onnx) == (1.0, 1.0, 1.0)
    assert prove(write(), samples()).accuracy_reference is None


def test_the_logits_are_the_files(write: MeanColours) -> None:
    chosen = samples()
    bounds = Bounds.of(ExportRecipe(), "fp32")
    _, logits = prove_file(write(scale=1.0005), "means.onnx", refer_to_network(classifier(), chosen), bounds)
    np.testing.assert_allclose(logits, 1.0005 * true_logits(), rtol=1e-5)


def test_the_difference_is_the_largest_one(write: MeanColours) -> None:
    """Scaled by 1.0005, each logit is off by 0.0005 of itself."""
    proof = prove(write(scale=1.0005), samples())
    assert proof.max_logit_difference == pytest.approx(5e-4 * true_logits().max(), rel=1e-3)


def test_closeness(write: MeanColours) -> None:
    worst = int((true_logits() * 0.1).max(1).argmax())
    expected = rf"means\.onnx .* off by .* on synthetic image {worst} \(in batches of 64\), 0\.001 is allowed"
    with pytest.raises(GateError, match=expected):
        prove(write(scale=1.1), samples())


def prove_large(path: Path, factor: float, chosen: Samples, precision: FilePrecision = "fp32", **bounds: float) -> str:
    """The refusal of a file whose network answers `factor` times as much as `classifier`."""
    network = refer_to_network(classifier(), chosen)
    reference = replace(network, logits=(network.logits.astype(np.float64) * factor).astype(np.float32))
    with pytest.raises(GateError) as refused:
        prove_file(path, "means.onnx", reference, Bounds.of(ExportRecipe(**bounds), precision))
    assert "\n" not in str(refused.value)
    return str(refused.value)


RIGHT, WRONG = true_logits().argmax(1), true_logits().argmin(1)


class TestLargeLogits:
    """A file that is off by twice the rounding of float32, as files are."""

    @pytest.mark.parametrize("factor", [1e4, 1e6, 1e12, 1e30])
    @pytest.mark.parametrize("labels", [WRONG, None], ids=["wrong", "no labels"])
    def test_that_are_absurdly_wrong_are_a_training_that_diverged(
        self, write: MeanColours, factor: float, labels: np.ndarray | None
    ) -> None:
        message = prove_large(write(scale=factor * (1 + 3e-7)), factor, samples(labels))
        assert message.startswith("means.onnx was not written: the network's own logits reach ")
        assert "and make a loss of " in message
        assert "(a guess 1.1), so its training diverged; train it again" in message

    def test_that_are_right_are_too_large_for_the_bound(self, write: MeanColours) -> None:
        message = prove_large(write(scale=2e4 * (1 + 1e-7)), 2e4, samples(RIGHT))
        assert "does not answer as its weights do: its logits are off by 0.00" in message
        assert "0.001 is allowed (export.max_logit_difference); the file was not kept; rounding to float32" in message
        assert "moves logits of 1.4e+04 by up to 0.0085: allow more with that setting, or train the network" in message
        assert "opset" not in message
        assert "diverged" not in message

    def test_a_difference_beyond_rounding_is_the_file_s(self, write: MeanColours) -> None:
        assert "another export.opset" in prove_large(write(scale=2e4 * 1.001), 2e4, samples(RIGHT))

    def test_a_looser_bound_is_held(self, write: MeanColours) -> None:
        """The bound decides what is too large: these logits would be no reason for 0.1."""
        assert "another export.opset" in prove_large(
            write(scale=2e4 * 1.001), 2e4, samples(WRONG), max_logit_difference=0.1
        )

    def test_of_fp16_its_own_rounding_counts(self, write: MeanColours) -> None:
        message = prove_large(write(scale=300 * 1.0005), 300, samples(RIGHT), "fp16")
        assert "rounding to float16 moves logits of 2.1e+02 by up to 1: leave out fp16, or allow more" in message

    def test_a_confident_network_that_is_often_wrong_has_not_diverged(self, write: MeanColours) -> None:
        message = prove_large(write(scale=100 * 1.002), 100, samples(WRONG), "fp16")
        assert "rounding to float16 moves logits of 71" in message


def test_numbers_that_are_not_finite(write: MeanColours) -> None:
    for precision in ("fp32", "int8"):  # of int8 no closeness is asked, but numbers are
        with pytest.raises(GateError, match="off by inf"):
            prove(write(offset=(float("nan"), 0, 0)), samples(), precision)


def test_probabilities(write: MeanColours) -> None:
    with pytest.raises(
        GateError, match=r"its probabilities are off by 0\.\d+ from its own logits' softmax on synthetic"
    ):
        prove(write(last="Sigmoid"), samples())


def test_agreement(write: MeanColours) -> None:
    offset = (0.05, 0.0, 0.0)
    same = true_logits().argmax(1) == (true_logits() + offset).argmax(1)
    assert 0.6 < same.mean() < 1
    expected = rf"on {same.sum()} of 20 images, but not on synthetic image {same.argmin()}; 0\.999 is required"
    with pytest.raises(GateError, match=expected):
        prove(write(offset=offset), samples(), max_logit_difference=1.0)
    proof = prove(write(offset=offset), samples(), max_logit_difference=1.0, min_agreement=0.6)
    assert proof.agreement == pytest.approx(same.mean())


def test_accuracy(write: MeanColours) -> None:
    offset = (0.05, 0.0, 0.0)
    labels = true_logits().argmax(1)
    after = ((true_logits() + offset).argmax(1) == labels).mean()
    expected = (
        rf"its accuracy is {after:.4f}, the network's 1\.0000 on 20 validation images .* a drop of 0\.001 is allowed"
    )
    with pytest.raises(GateError, match=expected):
        prove(write(offset=offset), samples(labels), max_logit_difference=1.0, min_agreement=0.0)


def test_a_drop_of_just_the_bound_is_allowed(write: MeanColours) -> None:
    """0.90 - 0.89 is a little more than 0.01 to a computer."""
    offset = (0.05, 0.0, 0.0)
    labels = true_logits().argmax(1)
    drop = 1 - ((true_logits() + offset).argmax(1) == labels).mean()
    proof = prove(write(offset=offset), samples(labels), "int8", max_drop=round(float(drop), 9))
    assert proof.accuracy_reference == 1.0


def test_fp16_has_bounds_of_its_own(write: MeanColours) -> None:
    path = write(scale=1.02)
    with pytest.raises(GateError, match=r"0\.001 is allowed \(export\.max_logit_difference\)"):
        prove(path, samples())
    assert 0.001 < prove(path, samples(), "fp16").max_logit_difference < 0.1
    with pytest.raises(GateError, match=r"0\.005 is allowed \(export\.fp16_max_logit_difference\)"):
        prove(path, samples(), "fp16", fp16_max_logit_difference=0.005)
    path = write(offset=(0.05, 0.0, 0.0))
    with pytest.raises(GateError, match=r"0\.99 is required \(export\.fp16_min_agreement\)"):
        prove(path, samples(), "fp16")
    labelled = samples(true_logits().argmax(1))
    with pytest.raises(GateError, match=r"a drop of 0\.005 is allowed \(export\.fp16_max_accuracy_drop\)"):
        prove(path, labelled, "fp16", fp16_min_agreement=0.0)


def test_of_int8_only_accuracy_is_asked(write: MeanColours) -> None:
    path, labelled = write(offset=(0.05, 0.0, 0.0)), samples(true_logits().argmax(1))
    with pytest.raises(GateError, match=r"a drop of 0\.01 is allowed \(export\.max_drop\)"):
        prove(path, labelled, "int8")
    assert prove(path, labelled, "int8", max_drop=0.5).agreement < 1
    assert prove(write(scale=3.0), labelled, "int8").max_logit_difference > 1


def test_batches_that_are_run(write: MeanColours, monkeypatch: pytest.MonkeyPatch) -> None:
    """One image alone, an odd number, and many."""
    sizes: list[int] = []
    answer = Replay.answer

    def count(replay: Replay, images: np.ndarray) -> object:
        sizes.append(len(images))
        return answer(replay, images)

    monkeypatch.setattr(Replay, "answer", count)
    prove(write(), samples())
    assert {1, ODD_BATCH, COUNT} <= set(sizes)


def test_validation_images_are_spread_over_the_split() -> None:
    pixels = make_pixels(np.arange(100) // 25)
    chosen = choose_samples(pixels, 40, 4, limit=5)
    assert chosen.names == tuple(f"valid/{i}.jpg" for i in (0, 25, 50, 74, 99))
    assert chosen.labels is not None
    assert chosen.labels.tolist() == [0, 1, 2, 2, 3]
    np.testing.assert_array_equal(chosen.read(np.array([4, 1])), pixels.centre(np.array([99, 25])))
    assert len(choose_samples(pixels, 40, 4, limit=1000).names) == 100


def test_few_images_are_enough(write: MeanColours) -> None:
    proof = prove(write(), choose_samples(None, SIDE, 3, limit=1))
    assert proof.images == 1


def test_synthetic_images_are_seeded_and_differ() -> None:
    images = draw_images(6, 20)
    assert images.shape == (6, 20, 20, 3)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images[:4], draw_images(6, 20)[:4])
    assert np.ptp(torch.from_numpy(images).double().mean(dim=(1, 2)).numpy(), axis=0).min() > 10
