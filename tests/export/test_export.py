"""The export stage, and its files seen by onnxruntime alone."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import make_image, shared
from export_samples import CLASSES, MEAN, PREPROCESS, SIDE, STD, make_pixels, save_weights, settled_network
from PIL import Image

from toolkit import __version__
from toolkit.data.preprocess import Preprocess
from toolkit.errors import ArtifactError, DataError, GateError, WeightsError
from toolkit.export import export as stage
from toolkit.export.export import ExportOptions, ExportResult, export_model_dir, export_onnx, export_weights_file
from toolkit.modeldir import ModelDir
from toolkit.networks.depthwise import DepthwiseStudent
from toolkit.networks.weights import load_model
from toolkit.recipe import Recipe, load_builtin
from toolkit.runtimes.pytorch import TorchPredictor

ARCHITECTURES = ("depthwise", "resnet18", "mobilenet_v3_small")
RECIPE = Recipe().with_overrides(["export.license=CC0-1.0", "export.images=24"])
RIGHT_OF_FOUR = 3


class Exported(NamedTuple):
    weights: Path
    result: ExportResult


def labels_mostly_right(weights: Path, count: int = 24) -> np.ndarray:
    """Labels of which the network gets three out of four right."""
    pixels = make_pixels(np.zeros(count))
    labels = TorchPredictor(weights).logits(pixels.centre(np.arange(count))).argmax(1)
    return np.where(np.arange(count) % 4 < RIGHT_OF_FOUR, labels, (labels + 1) % len(CLASSES))


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    folder = tmp_path_factory.mktemp("exports")
    made = {}
    for architecture in ARCHITECTURES:
        weights = save_weights(folder / f"{architecture}.safetensors", architecture)
        pixels = make_pixels(labels_mostly_right(weights))
        (result,) = export_onnx(weights, folder / f"{architecture}.onnx", ExportOptions(RECIPE, pixels))
        made[architecture] = Exported(weights, result)
    return made


@pytest.fixture
def student(exports: dict[str, Exported]) -> Exported:
    return exports["depthwise"]


def open_session(path: Path) -> Any:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
class TestFile:
    @pytest.mark.parametrize("batch", [1, 3, 8])
    def test_answers_as_a_float64_network_with_normalisation_by_hand(
        self, exports: dict[str, Exported], architecture: str, batch: int
    ) -> None:
        images = np.random.default_rng(batch).integers(0, 256, (batch, SIDE, SIDE, 3), dtype=np.uint8)
        logits, probabilities = open_session(exports[architecture].result.path).run(None, {"image": images})
        network = settled_network(architecture).double()
        normalised = (images / 255 - np.array(MEAN)) / np.array(STD)
        with torch.no_grad():
            expected = network(torch.from_numpy(normalised.transpose(0, 3, 1, 2))).numpy()
        assert logits.dtype == probabilities.dtype == np.float32
        assert np.ptp(expected, axis=1).min() > 0.01  # there is something to compare
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
        powers = np.exp(expected)
        np.testing.assert_allclose(probabilities, powers / powers.sum(1, keepdims=True), rtol=0, atol=1e-4)

    def test_metadata_is_enough_to_repeat_the_preprocessing(
        self, exports: dict[str, Exported], architecture: str, tmp_path: Path
    ) -> None:
        """A picture prepared by hand, from the metadata alone, gets the logits that the weights give in torch."""
        weights, result = exports[architecture]
        make_image(1, seed=5, size=(90, 61)).save(tmp_path / "picture.png")
        session = open_session(result.path)
        steps = json.loads(session.get_modelmeta().custom_metadata_map["preprocess"])
        with Image.open(tmp_path / "picture.png") as image:
            short = steps["resize"]["shorter_side_px"]
            image = image.resize((90 * short // 61, short), Image.Resampling.BILINEAR)
        side = steps["centre_crop"]["side_px"]
        left, top = round((image.width - side) / 2), round((image.height - side) / 2)
        by_hand = np.asarray(image.crop((left, top, left + side, top + side)))[None]
        predictor = TorchPredictor(weights)
        with Image.open(tmp_path / "picture.png") as image:
            expected = predictor.logits(predictor.preprocess(image)[None])
        np.testing.assert_allclose(session.run(["logits"], {"image": by_hand})[0], expected, rtol=0, atol=1e-5)

    def test_metadata_is_complete(self, exports: dict[str, Exported], architecture: str) -> None:
        weights, result = exports[architecture]
        metadata = open_session(result.path).get_modelmeta().custom_metadata_map
        assert Preprocess.from_json(metadata.pop("preprocess")) == PREPROCESS
        assert json.loads(metadata.pop("classes")) == list(CLASSES)
        assert metadata == {
            "role": "student",
            "architecture": architecture,
            "recipe_sha256": "a" * 64,
            "dataset_sha256": "b" * 64,
            "teacher_sha256": "c" * 64,
            "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
            "toolkit_version": __version__,
            "license": "CC0-1.0",
            "precision": "fp32",
        }

    def test_is_one_plain_file(self, exports: dict[str, Exported], architecture: str) -> None:
        path = exports[architecture].result.path
        assert sorted(p.name for p in path.parent.iterdir()) == sorted(
            f"{name}.{suffix}" for name in ARCHITECTURES for suffix in ("onnx", "safetensors")
        )
        model = onnx.load(str(path), load_external_data=False)
        assert not any(tensor.external_data for tensor in model.graph.initializer)
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
        assert not model.functions
        content = path.read_bytes()
        assert b"stack_trace" not in content
        assert b"site-packages" not in content  # no paths of the machine that made it
        assert b"toolkit/export" not in content

    def test_result_has_the_measurements(self, exports: dict[str, Exported], architecture: str) -> None:
        result = exports[architecture].result
        assert result.size_bytes == result.path.stat().st_size
        assert result.images == 24
        assert 0 < result.max_logit_difference < 1e-4
        assert result.agreement == 1.0
        assert result.accuracy_reference == result.accuracy_onnx == RIGHT_OF_FOUR / 4
        assert result.seconds > 0
        assert result.to_json()["path"] == str(result.path)
        assert "accuracy 0.7500 (torch 0.7500)" in result.summary()


def test_graph_is_as_plain_as_the_network(student: Exported) -> None:
    """Pooling is no chain of gathers, and batch norms are folded into convolutions."""
    operators = [node.op_type for node in onnx.load(str(student.result.path)).graph.node]
    assert operators[:3] == ["Transpose", "Cast", "BatchNormalization"]
    assert operators[-4:] == ["ReduceMean", "Reshape", "Gemm", "Softmax"]
    assert (operators.count("Conv"), operators.count("MaxPool"), operators.count("Clip")) == (15, 4, 8)
    assert "Gather" not in operators
    assert operators.count("BatchNormalization") == 1  # the normalisation of the picture


def test_same_weights_are_exported_again_to_the_same_bytes_without_a_sound(
    student: Exported, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    destination = tmp_path / "student.onnx"
    shutil.copy(student.result.path, destination)
    export_onnx(student.weights, destination, ExportOptions(RECIPE, make_pixels(labels_mostly_right(student.weights))))
    assert destination.read_bytes() == student.result.path.read_bytes()
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines() == [f"export: {student.weights} → {destination}, proof on 24 images"]


class TestBareWeights:
    def export(self, path: Path, recipe: Recipe = RECIPE, classes: tuple[str, ...] | None = None) -> ExportResult:
        recipe = recipe.with_overrides(["export.images=3", "data.image_size=32", "data.resize=0"])
        (result,) = export_weights_file(path, path.parent / "out", ExportOptions(recipe), classes)
        return result

    def test_the_published_student(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        path = shared("data", "notebook", "student_custom_small.bin")
        recipe = load_builtin("food11").with_overrides(["export.images=4"])
        (result,) = export_weights_file(path, tmp_path, ExportOptions(recipe))
        assert result.path == tmp_path / "student_custom_small.onnx"
        network = DepthwiseStudent(11).double().eval()
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        images = np.random.default_rng(0).integers(0, 256, (5, 256, 256, 3), dtype=np.uint8)
        with torch.no_grad():
            expected = network(torch.from_numpy(images.transpose(0, 3, 1, 2) / 255)).numpy()
        logits = open_session(result.path).run(["logits"], {"image": images})[0]
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
        out, err = capfd.readouterr()
        assert out == ""
        assert "taken for the depthwise student with 11 classes, 256 px images, resize 0, mean (0.0, 0.0, 0.0)" in err
        assert "4 synthetic images; accuracy was not checked" in err
        assert result.accuracy_onnx is None
        assert "accuracy not checked" in result.summary()

    def test_a_narrow_student_with_class_names(self, tmp_path: Path) -> None:
        torch.manual_seed(1)
        torch.save(DepthwiseStudent(3, base=4, width_mult=0.5).state_dict(), tmp_path / "narrow.v2.bin")
        with pytest.raises(WeightsError, match=r"narrow\.v2\.bin has 3 classes, the data has 2"):
            self.export(tmp_path / "narrow.v2.bin", classes=("a", "b"))
        result = self.export(tmp_path / "narrow.v2.bin", classes=("a", "b", "c"))
        assert result.path.name == "narrow.v2.onnx"
        metadata = open_session(result.path).get_modelmeta().custom_metadata_map
        assert json.loads(metadata["classes"]) == ["a", "b", "c"]
        assert metadata["recipe_sha256"] == metadata["dataset_sha256"] == metadata["teacher_sha256"] == ""

    def test_a_bare_teacher(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        torch.save(settled_network("resnet18").state_dict(), tmp_path / "teacher_resnet18.bin")
        result = self.export(tmp_path / "teacher_resnet18.bin")
        assert "taken for the recipe's teacher (resnet18) with 4 classes, 32 px images" in capfd.readouterr().err
        metadata = open_session(result.path).get_modelmeta().custom_metadata_map
        assert (metadata["role"], json.loads(metadata["classes"])) == ("teacher", ["0", "1", "2", "3"])

    def test_wrapped_ones_are_found(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        for architecture in ("depthwise", "resnet18"):
            state = settled_network(architecture).state_dict()
            path = tmp_path / f"{architecture}.pth"
            torch.save({"net": {f"module.{name}": value for name, value in state.items()}, "epoch": 3}, path)
            self.export(path)
            assert f"{path}: took the weights under net.module\n" in capfd.readouterr().err

    def test_weights_of_another_network(self, tmp_path: Path) -> None:
        torch.save({"a.weight": torch.zeros(3, 2), "a.bias": torch.zeros(3)}, tmp_path / "odd.bin")
        with pytest.raises(WeightsError, match="does not fit ResNet"):
            self.export(tmp_path / "odd.bin")
        torch.save({"a.weight": torch.zeros(3, 2)}, tmp_path / "odd.bin")
        with pytest.raises(WeightsError, match=r"does not fit ResNet: conv1\.weight is missing"):
            self.export(tmp_path / "odd.bin")

    def test_files_that_describe_themselves_keep_their_description(
        self, student: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(stage, "make_graph", lambda *_: onnx.load(str(student.result.path)))
        (result,) = export_weights_file(student.weights, tmp_path, ExportOptions(RECIPE))
        assert result.path == tmp_path / "depthwise.onnx"
        assert result.path.read_bytes() == student.result.path.read_bytes()


class TestExistingFiles:
    def test_other_weights_are_not_overwritten(
        self, exports: dict[str, Exported], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        destination = tmp_path / "student.onnx"
        shutil.copy(exports["resnet18"].result.path, destination)
        before = destination.read_bytes()
        student = exports["depthwise"]
        with pytest.raises(
            ArtifactError, match=r"student\.onnx exists and was not exported from .*; replace it with --force"
        ):
            export_onnx(student.weights, destination, ExportOptions(RECIPE))
        assert destination.read_bytes() == before
        monkeypatch.setattr(stage, "make_graph", lambda *_: onnx.load(str(student.result.path)))
        export_onnx(student.weights, destination, ExportOptions(RECIPE, force=True))
        assert destination.read_bytes() == student.result.path.read_bytes()

    @pytest.mark.parametrize("content", [b"", b"not a model"])
    def test_foreign_files_are_not_overwritten(self, student: Exported, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "student.onnx").write_bytes(content)
        with pytest.raises(ArtifactError, match="was not exported from"):
            export_onnx(student.weights, tmp_path / "student.onnx", ExportOptions(RECIPE))
        assert (tmp_path / "student.onnx").read_bytes() == content


class TestModelDir:
    def test_exports_both_roles(
        self, exports: dict[str, Exported], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model_dir = ModelDir(tmp_path)
        shutil.copy(exports["depthwise"].weights, model_dir.weights("student"))
        with pytest.raises(ArtifactError, match=r"has no teacher\.safetensors; make it with: toolkit "):
            export_model_dir(model_dir, dict.fromkeys(("teacher", "student"), ExportOptions(RECIPE)))
        assert not model_dir.onnx("student").exists()
        save_weights(model_dir.weights("teacher"), "depthwise", "teacher", seed=1)
        teacher, student = export_model_dir(model_dir, dict.fromkeys(("teacher", "student"), ExportOptions(RECIPE)))
        assert (teacher.path, student.path) == (model_dir.onnx("teacher"), model_dir.onnx("student"))
        metadata = open_session(teacher.path).get_modelmeta().custom_metadata_map
        assert (metadata["role"], metadata["teacher_sha256"]) == ("teacher", "")
        monkeypatch.setattr(stage, "make_graph", lambda *_: pytest.fail("a file was made before all were checked"))
        save_weights(model_dir.weights("student"), "depthwise", seed=2)
        with pytest.raises(ArtifactError, match=r"student\.onnx exists and was not exported from"):
            export_model_dir(model_dir, dict.fromkeys(("teacher", "student"), ExportOptions(RECIPE)))


class TestFaults:
    """Faults planted in the graph: the gate fails, and no file is left."""

    def plant(self, student: Exported, monkeypatch: pytest.MonkeyPatch, *, factor: float) -> None:
        def build_faulty(*_: object) -> onnx.ModelProto:
            model = onnx.load(str(student.result.path))
            gemm = next(node for node in model.graph.node if node.op_type == "Gemm")
            head = next(tensor for tensor in model.graph.initializer if tensor.name == gemm.input[1])
            values = onnx.numpy_helper.to_array(head) * factor
            head.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), head.name))
            return model

        monkeypatch.setattr(stage, "make_graph", build_faulty)

    @pytest.mark.parametrize("zero", [True, False], ids=["zeroed head", "scaled head"])
    def test_no_file_stays(
        self, student: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zero: bool
    ) -> None:
        self.plant(student, monkeypatch, factor=0.0 if zero else 1.05)
        pixels = make_pixels(labels_mostly_right(student.weights))
        with pytest.raises(GateError) as info:
            export_onnx(student.weights, tmp_path / "out" / "student.onnx", ExportOptions(RECIPE, pixels))
        assert info.value.exit_code == 3
        logits = TorchPredictor(student.weights).logits(pixels.centre(np.arange(24)))
        bias = load_model(student.weights)[0].network.state_dict()["fc.0.bias"].numpy()
        worst = np.abs((logits - bias) * (1.0 if zero else 0.05)).max(1).argmax()
        message = str(info.value)
        assert message.startswith("student.onnx does not answer as its weights do: its logits are off by ")
        assert f"on valid/{worst}.jpg (in batches of 64), 0.001 is allowed (export.max_logit_difference)" in message
        assert list((tmp_path / "out").iterdir()) == []

    def test_the_accuracy_gate_alone_catches_a_ruined_network(
        self, student: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A file that can no longer classify is not written, even if any closeness and agreement are allowed."""
        self.plant(student, monkeypatch, factor=-1.0)
        loose = RECIPE.with_overrides(["export.max_logit_difference=1e9", "export.min_agreement=0.0"])
        pixels = make_pixels(labels_mostly_right(student.weights))
        expected = r"its accuracy is 0\.\d+, the network's 0\.7500 on 24 validation images \(wrong on valid"
        with pytest.raises(GateError, match=expected):
            export_onnx(student.weights, tmp_path / "student.onnx", ExportOptions(loose, pixels))
        assert list(tmp_path.iterdir()) == []

    def test_an_earlier_file_does_not_stay_either(
        self, student: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        destination = tmp_path / "student.onnx"
        shutil.copy(student.result.path, destination)
        self.plant(student, monkeypatch, factor=0.0)
        with pytest.raises(GateError):
            export_onnx(student.weights, destination, ExportOptions(RECIPE))
        assert list(tmp_path.iterdir()) == []

    def test_synthetic_images_find_it_too(
        self, student: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.plant(student, monkeypatch, factor=1.05)
        with pytest.raises(GateError, match="on synthetic image"):
            export_onnx(student.weights, tmp_path / "student.onnx", ExportOptions(RECIPE))
        assert list(tmp_path.iterdir()) == []


class TestWrongImages:
    def test_of_another_size(self, student: Exported, tmp_path: Path) -> None:
        pixels = make_pixels(np.zeros(4), replace(PREPROCESS, image_size=32))
        with pytest.raises(ArtifactError, match="prepared at 32 px, but the weights need 40 px"):
            export_onnx(student.weights, tmp_path / "student.onnx", ExportOptions(RECIPE, pixels))

    def test_of_more_classes(self, student: Exported, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="the validation images have 10 classes, the weights 4"):
            export_onnx(student.weights, tmp_path / "student.onnx", ExportOptions(RECIPE, make_pixels(np.arange(10))))
