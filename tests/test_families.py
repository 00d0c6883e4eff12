"""A network of every family of torchvision, as teacher and as student, all the way to the report."""

import os
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from conftest import make_class_folders
from torch import nn
from torchvision import models

import toolkit
from toolkit.networks.registry import build

FAMILIES = {
    "alexnet": 64,
    "convnext_tiny": 32,
    "densenet121": 32,
    "efficientnet_b0": 32,
    "efficientnet_v2_s": 32,
    "googlenet": 32,
    "inception_v3": 75,
    "maxvit_t": 224,
    "mnasnet0_5": 32,
    "mobilenet_v2": 32,
    "mobilenet_v3_small": 32,
    "regnet_x_400mf": 32,
    "regnet_y_400mf": 32,
    "resnet18": 32,
    "resnext50_32x4d": 32,
    "shufflenet_v2_x0_5": 32,
    "squeezenet1_1": 32,
    "swin_t": 32,
    "swin_v2_t": 32,
    "vgg11": 32,
    "vit_b_32": 32,
    "wide_resnet50_2": 32,
}
"""The smallest of each family → the smallest side of an image, px, with which all of it works."""

DEEP = {
    "densenet121",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "googlenet",
    "inception_v3",
    "mnasnet0_5",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "resnext50_32x4d",
    "wide_resnet50_2",
}
"""So many batch norms in a row that a student of few steps has logits of 1e5 to 1e35, and is refused for it: each
running variance is a little behind weights that still move fast, and the errors multiply. These take 30 steps, so small
that the weights hardly move."""

ALWAYS = ("squeezenet1_1", "shufflenet_v2_x0_5")
"""A minute each. All take an hour: KD_TOOLKIT_FAMILIES=all, or the names of some, with spaces between."""

LOOSE = {"fp16_max_logit_difference": 10.0, "fp16_min_agreement": 0.0, "fp16_max_accuracy_drop": 1.0}
"""Bounds of the fp16 file: rounding moves the answers of a deep network more if it has learnt nothing."""

SETTLING_BATCHES = 40
"""of coloured noise, after which running statistics are no longer the initial ones"""

CHOSEN = os.environ.get("KD_TOOLKIT_FAMILIES", " ".join(ALWAYS)).split()


def test_no_family_is_left_out() -> None:
    """A family is a module of torchvision.models."""

    def families(names: Iterable[str]) -> set[str]:
        return {models.get_model_builder(name).__module__ for name in names}

    assert families(FAMILIES) == families(models.list_models(module=models))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 training images: ten steps of 12, or 30 of 4."""
    return make_class_folders(tmp_path_factory.mktemp("pictures"), (40, 2, 2))


def save_weights(architecture: str, side: int, path: Path) -> Path:
    """A state dict as people bring it: its head tells images apart (torchvision begins some with zeros), and its batch
    norms have statistics of images."""
    torch.manual_seed(0)
    network = build(architecture, 3, image_size=side)
    heads = [module for module in network.modules() if isinstance(module, nn.Linear)]
    for head in heads[-1:]:
        nn.init.normal_(head.weight, std=0.05)
    network.train()
    with torch.no_grad():
        for _ in range(SETTLING_BATCHES):
            colours, noise = torch.rand(8, 3, 1, 1), torch.rand(8, 3, side, side)
            network((0.8 * colours + 0.2 * noise - 0.45) / 0.225)
    torch.save(network.state_dict(), path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("architecture", FAMILIES if CHOSEN == ["all"] else CHOSEN)
def test_import_distillation_export_and_report(architecture: str, pictures: Path, tmp_path: Path) -> None:
    """It works as teacher and as student; each file is proven; or one line says why not."""
    side = FAMILIES[architecture]
    weights = save_weights(architecture, side, tmp_path / "weights.pth")
    batch_size, learning_rate = (4, 1e-5) if architecture in DEEP else (12, 0.01)
    settings = {
        "data": {"image_size": side, "resize": side},
        "training.precision": "fp32",
        "teacher": {"architecture": architecture, "weights": str(weights)},
        "student.architecture": architecture,
        "distill": {"epochs": 1, "batch_size": batch_size, "learning_rate": learning_rate},
        "export": {"max_drop": 1.0, "calibration_images": 4, **(LOOSE if architecture in DEEP else {})},
        "bench": {"samples": 10, "seconds": 0.1, "batch_sizes": [1]},
    }
    workspace = toolkit.open(tmp_path / "model", data=pictures, settings=settings, quiet=True)
    assert workspace.teacher().info.architecture == architecture
    assert workspace.distill().info.architecture == architecture
    exported = workspace.export("fp16", "int8")
    assert [one.precision for one in exported] == ["fp32", "fp16", "int8"] * 2
    assert {row.precision for row in workspace.bench().rows} == {"fp32", "fp16", "int8"}
