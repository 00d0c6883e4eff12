"""Int8 exports: within the bound, with as few float layers as that takes, and honest about their speed."""

import itertools
import json
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from export_samples import CLASSES, MEAN, SIDE, STD, make_pixels, save_weights, settled_network
from tiny_onnx import save_colour_model
from torch import nn

from toolkit.errors import DataError, GateError
from toolkit.export import export as stage
from toolkit.export import int8 as search
from toolkit.export.export import ExportOptions, ExportResult, at_precision, export_onnx
from toolkit.export.int8 import quantize_within, times_faster
from toolkit.export.samples import Samples
from toolkit.export.verify import Reference
from toolkit.graphs.build import build_graph
from toolkit.networks.classifier import Classifier
from toolkit.recipe import Recipe
from toolkit.settings import ExportRecipe

COUNT = 32
RECIPE = Recipe().with_overrides(["export.images=32", "export.max_drop=0.2", "export.calibration_images=16"])


def own_labels(network: nn.Module) -> np.ndarray:
    """The network's answers to the pictures of `make_pixels`."""
    images = torch.from_numpy(make_pixels(np.zeros(COUNT)).centre(np.arange(COUNT))).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        return Classifier(network, MEAN, STD).eval()(images).argmax(1).numpy()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_weights(tmp_path_factory.mktemp("int8") / "student.safetensors", "depthwise")


@pytest.fixture(scope="module")
def wanted() -> ExportOptions:
    pixels = make_pixels(own_labels(settled_network("depthwise")))
    return ExportOptions(RECIPE, valid=pixels, train=pixels, smaller=("fp16", "int8"))


@pytest.fixture(scope="module")
def results(weights: Path, wanted: ExportOptions) -> list[ExportResult]:
    return export_onnx(weights, weights.with_suffix(".onnx"), wanted)


class TestExport:
    def test_all_three_files_answer(self, weights: Path, results: list[ExportResult], wanted: ExportOptions) -> None:
        assert [result.precision for result in results] == ["fp32", "fp16", "int8"]
        assert [result.path.name for result in results] == ["student.onnx", "student.fp16.onnx", "student.int8.onnx"]
        assert wanted.valid is not None
        images = wanted.valid.centre(np.arange(COUNT))
        answers = []
        for result in results:
            session = onnxruntime.InferenceSession(result.path, providers=["CPUExecutionProvider"])
            logits = session.run(["logits"], {"image": images})[0]
            assert float((logits.argmax(1) == wanted.valid.labels).mean()) == pytest.approx(result.accuracy_onnx)
            answers.append(logits)
        for result, logits, other in zip(results[1:], answers[1:], (answers[0], answers[0]), strict=True):
            assert result.agreement == pytest.approx((logits.argmax(1) == other.argmax(1)).mean())
        assert results[2].max_logit_difference == pytest.approx(np.abs(answers[2] - answers[0]).max(), rel=1e-3)

    def test_the_int8_file_says_how_it_was_made(self, results: list[ExportResult]) -> None:
        session = onnxruntime.InferenceSession(results[2].path, providers=["CPUExecutionProvider"])
        metadata = session.get_modelmeta().custom_metadata_map
        assert metadata["precision"] == "int8"
        assert metadata["calibration"] == "minmax, 16 training images"
        assert tuple(json.loads(metadata["float_layers"])) == results[2].float_layers
        assert json.loads(metadata["classes"]) == list(CLASSES)

    def test_speed_is_reported(self, results: list[ExportResult]) -> None:
        assert results[0].times_faster is None
        for result in results[1:]:
            assert result.times_faster is not None
            assert f"{result.times_faster:.2f} times as fast as fp32 on this CPU" in result.summary()
        slow = replace(results[2], times_faster=0.7)
        assert slow.summary().endswith("0.70 times as fast as fp32 on this CPU: slower")
        assert "accuracy" in slow.summary()
        assert "(fp32 " in slow.summary()

    def test_images_are_needed_before_any_work(self, weights: Path, wanted: ExportOptions) -> None:
        for lacking in (replace(wanted, valid=None), replace(wanted, train=None)):
            with pytest.raises(
                DataError, match=r"int8 is calibrated on training images .* were trained on, or leave out"
            ):
                export_onnx(weights, weights.with_suffix(".onnx"), lacking)

    def test_a_refused_file_is_not_kept(
        self, weights: Path, wanted: ExportOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The proven fp32 file stays; an int8 file of other weights that --force was to replace does not."""
        monkeypatch.setattr(search._Search, "drop", lambda *_: 0.5)
        monkeypatch.setattr(search._Search, "rank", lambda self: list(self._quantizer.layers))
        stale = at_precision(tmp_path / "student.onnx", "int8")
        stale.write_bytes(b"of other weights")
        wanted = replace(wanted, smaller=("int8",), force=True)
        with pytest.raises(GateError) as refused:
            export_onnx(weights, tmp_path / "student.onnx", wanted)
        assert refused.value.exit_code == 3
        assert str(refused.value).startswith("student.int8.onnx cannot keep its accuracy: in int8 throughout it loses")
        assert "0.2 is allowed (export.max_drop); nothing was kept; try export.calibration=" in str(refused.value)
        assert [path.name for path in tmp_path.iterdir()] == ["student.onnx"]


@pytest.mark.parametrize(
    ("precision", "reason"),
    [("int8", "no layer to quantize; nothing was kept; "), ("fp16", "no layer in half precision: there is none, ")],
)
def test_a_network_without_layers(
    weights: Path, wanted: ExportOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, reason: str
) -> None:
    """Of means and maxima alone, say: its float32 file stays."""
    monkeypatch.setattr(stage, "find_layers", lambda _: ())
    options = replace(wanted, smaller=(precision,))  # type: ignore[arg-type]
    with pytest.raises(GateError, match=rf"student\.{precision}\.onnx.* {reason}.*leave out {precision}"):
        export_onnx(weights, tmp_path / "student.onnx", options)
    assert [path.name for path in tmp_path.iterdir()] == ["student.onnx"]


def plain_network(images: torch.Tensor, *, ruined: bool) -> nn.Module:
    """Three convolutions and a head; `ruined` computes the same, but a channel between the first two is so large that
    no int8 scale fits the others."""
    torch.manual_seed(3)
    layers = OrderedDict(
        conv1=nn.Conv2d(3, 8, 3, 2), relu1=nn.ReLU(), conv2=nn.Conv2d(8, 8, 3), relu2=nn.ReLU(),
        conv3=nn.Conv2d(8, 16, 3), relu3=nn.ReLU(), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(),
        head=nn.Linear(16, len(CLASSES)),
    )  # fmt: skip
    network: Any = nn.Sequential(layers)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    with torch.no_grad():
        network.head.bias -= Classifier(network, MEAN, STD)(images).mean(0)  # so that answers differ between images
        if ruined:
            network.conv1.weight[0] *= 3000
            network.conv1.bias[0] *= 3000
            network.conv2.weight[:, 0] /= 3000
    return network.eval()


def test_layers_that_int8_ruins_stay_float_and_no_others(capsys: pytest.CaptureFixture[str]) -> None:
    images = make_pixels(np.zeros(COUNT)).centre(np.arange(COUNT))
    planes = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    found = {}
    for ruined in (False, True):
        classifier = Classifier(plain_network(planes, ruined=ruined), MEAN, STD).eval()
        with torch.no_grad():
            logits = classifier(planes).numpy()
        labels = logits.argmax(1)
        assert len(set(labels.tolist())) > 2
        samples = Samples(tuple(map(str, range(COUNT))), labels, lambda chosen: images[chosen])
        recipe = ExportRecipe(max_drop=0.13, calibration_images=COUNT)
        reference = Reference(samples, logits, "the fp32 file's")
        model = build_graph(classifier, SIDE, opset=20)
        quantized = quantize_within(model, images, reference, recipe, "plain.int8.onnx")
        session = onnxruntime.InferenceSession(quantized.model.SerializeToString(), providers=["CPUExecutionProvider"])
        assert (session.run(["logits"], {"image": images})[0].argmax(1) == labels).mean() >= 0.87
        found[ruined] = set(quantized.float_layers)
    assert found == {False: set(), True: {"conv1", "conv2"}}
    assert "plain.int8.onnx: in int8 throughout it loses 0." in capsys.readouterr().err


class Layers:
    """A quantizer of layers "0", "1", ..., whose graphs are just the sets of layers that stay float."""

    def __init__(self, count: int) -> None:
        self.layers = tuple(str(number) for number in range(count))
        self.made = 0

    def quantize(self, keep_float: Collection[str] = ()) -> frozenset[str]:
        self.made += 1
        return frozenset(keep_float)


@pytest.mark.parametrize(("count", "needed"), list(itertools.product([2, 3, 16, 53], [1, 2, 7, 15, 52, 53])))
def test_fewest_is_the_least_number_that_passes(count: int, needed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search._Search, "drop", lambda _, kept: 0.0 if len(kept) >= needed else 0.5)
    layers = Layers(count)
    samples = Samples(("a",), np.zeros(1, np.int64), lambda _: np.zeros((1, 4, 4, 3), np.uint8))
    looking = search._Search(layers, Reference(samples, np.zeros((1, 2), np.float32), "x"), 0.1)  # type: ignore[arg-type]
    found = looking.fewest(list(layers.layers))
    if needed >= count:  # all layers float is no int8 file
        assert found is None
    else:
        assert found == (needed, frozenset(layers.layers[:needed]))
    assert layers.made <= 1 + int(np.ceil(np.log2(count)))


class MadeUpTime:
    """Stands for the time module: moved by pauses and by the sessions that it opens, which do answer."""

    def __init__(self, cost_ms: dict[str, float]) -> None:
        self.cost_ms, self.now, self.pauses = cost_ms, 0.0, 0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.pauses += 1

    def open_session(self, path: Path, threads: int) -> Any:
        session, runs = onnxruntime.InferenceSession(str(path)), itertools.count(1)

        def run(outputs: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            """The first three runs of a turn are ten times as slow, and so is the last."""
            slow = next(runs) % search.RUNS < 4
            self.now += self.cost_ms[path.stem] / 1e3 * (10 if slow else 1)
            return session.run(outputs, inputs)

        return SimpleNamespace(run=run)


def test_times_faster_compares_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By medians, without the first runs of a turn, and each after a pause."""
    paths = [save_colour_model(tmp_path / f"{name}.onnx", image_size=SIDE) for name in ("quick", "slow")]
    images = make_pixels(np.zeros(3)).centre(np.arange(3))
    assert times_faster(paths[0], paths[1], images) > 0
    clock = MadeUpTime({"quick": 2.0, "slow": 7.0})
    monkeypatch.setattr(search, "time", clock)
    monkeypatch.setattr(search, "open_session", clock.open_session)
    assert times_faster(paths[0], paths[1], images) == pytest.approx(3.5)
    assert times_faster(paths[1], paths[0], images) == pytest.approx(1 / 3.5)
    assert times_faster(paths[0], paths[0], images) == pytest.approx(1)
    assert clock.pauses == 3 * 2 * search.TURNS
