"""Refusals of every training stage before it begins."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from distill_samples import load_splits
from torch import nn

from toolkit.data.sources import load_dataset
from toolkit.distill import distributed
from toolkit.distill.job import TrainingData, TrainingOptions, WeightsFile
from toolkit.distill.student import _require_same_size, train_control
from toolkit.distill.teacher import make_teacher
from toolkit.errors import ArtifactError, RecipeError, TrainingError
from toolkit.modeldir import ModelDir
from toolkit.networks.classifier import Classifier
from toolkit.networks.registry import NetworkSpec
from toolkit.recipe import Recipe

SMALL = [
    *("data.image_size=32", "data.resize=0", "teacher.architecture=depthwise", "teacher.base=4", "student.base=4"),
    "distill.epochs=4",
]


@pytest.fixture(scope="module")
def images(class_folders: Path) -> TrainingData:
    recipe = Recipe().with_overrides([*SMALL, f"data.source={class_folders}"])
    return TrainingData(load_dataset(recipe.data), *load_splits(class_folders))


@pytest.mark.parametrize(("make", "section"), [(make_teacher, "teacher"), (train_control, "distill")])
def test_a_first_size_that_the_network_cannot_take_is_one_line(
    images: TrainingData, tmp_path: Path, make: object, section: str
) -> None:
    """The depthwise network halves its images four times."""
    recipe = Recipe().with_overrides([*SMALL, f"{section}.start_image_size=8", "training.precision=fp32"])
    message = rf"cannot take images of 8 px \({section}.start_image_size\): .*; use a larger {section}.start_image_size"
    with pytest.raises(RecipeError, match=message) as caught:
        make(recipe, ModelDir(tmp_path), images, TrainingOptions())  # type: ignore[operator]
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_batch_smaller_than_the_number_of_processes_is_refused(
    images: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    monkeypatch.setattr(distributed, "synchronize_batch_norms", lambda network, device: network)
    recipe = Recipe().with_overrides([*SMALL, "distill.batch_size=2", "training.precision=fp32"])
    message = (
        "2 images per step cannot be shared out to 3 processes; use a larger distill.batch_size or fewer processes"
    )
    with pytest.raises(TrainingError, match=message):
        train_control(recipe, ModelDir(tmp_path), images, TrainingOptions())


def test_a_depthwise_teacher_has_its_own_settings_and_a_change_of_them_is_seen(
    images: TrainingData, tmp_path: Path
) -> None:
    def make(*overrides: str) -> WeightsFile:
        quick = ["teacher.epochs=1", "teacher.batch_size=12", "training.precision=fp32"]
        return make_teacher(
            Recipe().with_overrides([*SMALL, *quick, *overrides]), ModelDir(tmp_path), images, TrainingOptions()
        )

    made = make()
    assert made.info.network == NetworkSpec("depthwise", {"base": 4, "width_mult": 1.0})
    assert not make("student.base=8").new, "the student's settings are not the teacher's"
    with pytest.raises(ArtifactError, match=r"teacher\.safetensors was made from another recipe; choose another"):
        make("teacher.base=5")


class Picky(nn.Module):
    """Takes images of 64 px only."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if images.shape[-1] != 64:
            raise RuntimeError("Output size is too small\nand more")
        return images.mean((2, 3))


def test_a_teacher_that_cannot_take_the_images_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    teacher = Classifier(Picky(), (0.5,) * 3, (0.5,) * 3)
    info = SimpleNamespace(preprocess=SimpleNamespace(image_size=64))
    _require_same_size(teacher, info, 64, "teacher.safetensors")  # type: ignore[arg-type]
    expected = (
        r"teacher\.safetensors, trained at 64 px, cannot take images of 32 px: Output size is too small; use teacher"
    )
    with pytest.raises(RecipeError, match=expected):
        _require_same_size(teacher, info, 32, "teacher.safetensors")  # type: ignore[arg-type]
    easy = Classifier(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), (0.5,) * 3, (0.5,) * 3)
    assert capsys.readouterr().err == ""
    _require_same_size(easy, info, 32, "teacher.safetensors")  # type: ignore[arg-type]
    assert "warning: teacher.safetensors was trained at 64 px and teaches at 32 px" in capsys.readouterr().err
