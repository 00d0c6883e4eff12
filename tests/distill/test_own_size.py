"""A teacher of its own size: it sees the same part of each picture as the student, with more or fewer pixels."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_class_folders
from distill_samples import make_student
from torch.nn import functional as F

import toolkit
from toolkit.data.batches import TrainingViews
from toolkit.data.pixels import Pixels, load_pixels
from toolkit.data.preprocess import Preprocess
from toolkit.data.sources import load_dataset
from toolkit.distill.teachers import LiveTeacher
from toolkit.errors import RecipeError
from toolkit.recipe import Recipe
from toolkit.settings import DataRecipe, Mix

SMALL = {
    "data.image_size": 32,
    "data.resize": 36,
    "data.rotation_degrees": 10.0,
    "data.crop_padding": 2,
    "teacher.image_size": 64,
}
INDICES = np.array([5, 30, 0, 17])


@pytest.fixture(scope="module")
def smooth_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_class_folders(tmp_path_factory.mktemp("own size"), (12, 4, 4))


def views_of(data: DataRecipe, source: Path, mixup: float = 0.0) -> TrainingViews:
    dataset = load_dataset(data.model_copy(update={"source": str(source)}))
    pixels = load_pixels(dataset, "train", Preprocess.from_recipe(data))
    return TrainingViews(pixels, data, 3, seed=0, mix=Mix(mixup, 0.0), device="cpu")


def test_the_settings_in_px_grow_with_the_size() -> None:
    recipe = Recipe().with_overrides(SMALL)
    data = recipe.data_of("teacher")
    assert (data.image_size, data.resize, data.crop_padding) == (64, 72, 4)
    assert data.rotation_degrees == 10
    for role in ("student", "control"):
        assert recipe.data_of(role) is recipe.data
    for size in (None, 32):
        assert Recipe().with_overrides(SMALL | {"teacher.image_size": size}).data_of("teacher").image_size == 32


@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_it_sees_the_same_part_of_each_picture(smooth_folders: Path, mixup: float) -> None:
    recipe = Recipe().with_overrides(SMALL)
    small = views_of(recipe.data, smooth_folders, mixup)
    large = views_of(recipe.data_of("teacher"), smooth_folders, mixup)
    for view in range(3):
        ours, theirs = small.render(INDICES, view), large.render(INDICES, view)
        assert theirs.shape == (4, 3, 64, 64)
        apart = (F.avg_pool2d(theirs, 2) - ours).abs().mean().item()
        others = (F.avg_pool2d(large.render(INDICES, view + 1), 2) - ours).abs().mean().item()
        assert apart < 0.4 * others
        if mixup:
            assert torch.equal(small.targets(INDICES, view), large.targets(INDICES, view))


def test_a_live_teacher_renders_its_own_views(smooth_folders: Path) -> None:
    recipe = Recipe().with_overrides(SMALL)
    small, large = (views_of(recipe.data_of(role), smooth_folders) for role in ("student", "teacher"))
    valid = _valid(recipe.data_of("teacher"), smooth_folders)
    live = LiveTeacher(make_student(seed=5), large, valid, "fp32", own_views=True)
    network = make_student(seed=5).eval()
    with torch.no_grad():
        expected = network(large.render(INDICES, 1))[0]
    torch.testing.assert_close(live.answer(INDICES, 1, small.render(INDICES, 1)).logits, expected)


def _valid(data: DataRecipe, source: Path) -> Pixels:
    dataset = load_dataset(data.model_copy(update={"source": str(source)}))
    return load_pixels(dataset, "valid", Preprocess.from_recipe(data))


def test_pictures_that_are_not_resized_have_one_size() -> None:
    with pytest.raises(RecipeError, match=r"teacher\.image_size needs pictures that are resized: set data\.resize"):
        Recipe().with_overrides(SMALL | {"data.resize": 0})


def test_images_grow_to_the_teachers_own_size() -> None:
    Recipe().with_overrides(SMALL | {"teacher.start_image_size": 48})
    with pytest.raises(RecipeError, match=r"teacher\.start_image_size = 72 must not exceed teacher\.image_size = 64"):
        Recipe().with_overrides(SMALL | {"teacher.start_image_size": 72})
    with pytest.raises(RecipeError, match=r"distill\.start_image_size = 48 must not exceed data\.image_size = 32"):
        Recipe().with_overrides(SMALL | {"distill.start_image_size": 48})


@pytest.mark.parametrize("views", [0, 2])
def test_all_stages_with_a_larger_teacher(smooth_folders: Path, tmp_path: Path, views: int) -> None:
    """Training, live and stored answers, proof, benchmark: each network has its own size everywhere."""
    settings = SMALL | {
        "training.precision": "fp32",
        "teacher": {"architecture": "depthwise", "base": 4, "epochs": 1, "batch_size": 12, "image_size": 64},
        "student": {"architecture": "depthwise", "base": 4},
        "distill": {"epochs": 2, "batch_size": 12, "teacher_views": views, "control": True},
        "export": {"max_drop": 1.0},
        "bench": {"samples": 10, "seconds": 0.1, "batch_sizes": [1]},
    }
    settings.pop("teacher.image_size")
    workspace = toolkit.open(tmp_path / "m", data=smooth_folders, settings=settings, quiet=True)
    assert workspace.teacher().info.preprocess.image_size == 64
    assert workspace.distill().info.preprocess.image_size == 32
    exported = workspace.export("int8") if views else workspace.export()
    assert len(exported) == (4 if views else 2)
    report = workspace.bench()
    macs = {row.model: row.macs for row in report.rows}
    assert 3 < macs["teacher"] / macs["student"] < 5
    assert toolkit.load(workspace.path / "teacher.onnx").image_size == 64
