"""The graph: its form is checked, and a network that cannot be exported is refused."""

import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import onnx
import onnxruntime
import pytest
import torch
from small_networks import MEAN, STD, settled_network
from torch import nn

from toolkit.errors import ArtifactError, GateError
from toolkit.graphs import build
from toolkit.graphs.build import build_graph, check_graph, set_metadata
from toolkit.networks.classifier import Classifier
from toolkit.networks.registry import Enlarge

SIDE = 16


@pytest.fixture(scope="module")
def built() -> onnx.ModelProto:
    return build_graph(Classifier(settled_network("depthwise"), MEAN, STD).eval(), SIDE, opset=18)


@pytest.fixture
def model(built: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(built)
    return copy


def test_the_opset_is_the_one_asked_for(model: onnx.ModelProto) -> None:
    check_graph(model, SIDE, 4)
    assert model.opset_import[0].version == 18
    assert model.ir_version == 8, "the first that has opset 18"


def test_what_depends_on_constants_alone_is_worked_out_once() -> None:
    class Table(nn.Module):
        """A table of 8 numbers, which two layers compute from coordinates, is added to the features."""

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.coordinates = nn.Parameter(torch.linspace(-1, 1, 8)[:, None])
            self.table = nn.Sequential(nn.Linear(1, 16), nn.ReLU(), nn.Linear(16, 1))
            self.body, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 4)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            bias = self.table(self.coordinates).flatten()
            logits: torch.Tensor = self.head(self.body(images).mean((2, 3)) + bias)
            return logits

    graph = build_graph(Classifier(Table(), MEAN, STD).eval(), SIDE, opset=20).graph
    assert [node.op_type for node in graph.node if node.op_type in ("MatMul", "Gemm", "Conv")] == ["Conv", "Gemm"]


def test_a_network_that_enlarges_its_images_takes_them_as_they_are() -> None:
    network = settled_network("depthwise")
    network.register_forward_pre_hook(Enlarge(2))
    classifier = Classifier(network, MEAN, STD).eval()
    model = build_graph(classifier, SIDE, opset=20)
    check_graph(model, SIDE, 4)
    pixels = torch.randint(256, (3, SIDE, SIDE, 3), dtype=torch.uint8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"image": pixels.numpy()})
    with torch.no_grad():
        wanted = classifier(pixels.permute(0, 3, 1, 2) / 255)
    torch.testing.assert_close(torch.from_numpy(logits), wanted, rtol=1e-4, atol=1e-4)


def test_metadata_replaces_what_was_there(model: onnx.ModelProto) -> None:
    set_metadata(model, {"b": "old"})
    set_metadata(model, {"b": "1", "a": "crème"})
    assert [(entry.key, entry.value) for entry in model.metadata_props] == [("a", "crème"), ("b", "1")]


class TestFaultyGraphs:
    def fails(self, model: onnx.ModelProto) -> str:
        with pytest.raises(GateError) as info:
            check_graph(model, SIDE, 4)
        assert "\n" not in str(info.value)
        return str(info.value)

    def test_a_fixed_batch(self, model: onnx.ModelProto) -> None:
        batch = model.graph.input[0].type.tensor_type.shape.dim[0]
        batch.Clear()
        batch.dim_value = 2
        self.fails(model)

    def test_another_class_count(self, model: onnx.ModelProto) -> None:
        with pytest.raises(GateError, match=r"has inputs and outputs .*\['N', 4\].* instead of .*\['N', 5\]"):
            check_graph(model, SIDE, 5)

    def test_a_missing_node(self, model: onnx.ModelProto) -> None:
        del model.graph.node[3]
        assert "the exported graph is not valid: " in self.fails(model)

    def test_external_data(self, model: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        onnx.save(model, "m.onnx", save_as_external_data=True, location="weights", size_threshold=0)
        external = onnx.load("m.onnx", load_external_data=False)
        assert "keeps weights outside of itself" in self.fails(external)


def test_networks_that_cannot_be_exported(capfd: pytest.CaptureFixture[str]) -> None:
    class Choosy(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1) if images.sum() > 0 else images.flatten(1) * 2

    with pytest.raises(ArtifactError, match=r"cannot export this network to ONNX opset 18: \S") as info:
        build_graph(Classifier(Choosy(), MEAN, STD).eval(), 2, opset=18)
    assert "\n" not in str(info.value)
    assert capfd.readouterr() == ("", "")


def test_an_opset_that_the_exporter_does_not_reach(model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxscript.optimizer.fold_constants", lambda *_, **__: None)
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: SimpleNamespace(model=None, model_proto=model))
    with pytest.raises(ArtifactError, match=r"wrote this network in ONNX opset 18, not 23; use export\.opset=18"):
        build_graph(Classifier(nn.Identity(), MEAN, STD), 2, opset=23)


def test_networks_too_large_for_one_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "LARGEST_BYTES", 1000)
    with pytest.raises(ArtifactError, match="do not fit into one ONNX file"):
        build_graph(Classifier(nn.Linear(300, 2), MEAN, STD), 2, opset=18)


def test_the_exporters_chatter_is_kept_away(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    loggers = [logging.getLogger(name) for name in ("torch", "torch.onnx", "onnxscript.optimizer", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with build._silence():
        sys.stderr.write("trouble")
        for logger in [*loggers, logging.getLogger("onnx_ir.first_used_now")]:
            logger.critical("trouble")
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
    assert [logger.level for logger in loggers] == levels


def test_the_caller_s_stdout_and_log_records_pass(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with build._silence():
        sys.stdout.write("a result")
        logging.getLogger("torchlike").error("mine")
    assert capfd.readouterr().out == "a result"
    assert [record.message for record in caplog.records] == ["mine"]
