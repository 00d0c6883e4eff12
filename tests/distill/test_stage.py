"""What every training stage refuses before it begins."""

from pathlib import Path

import pytest
from distill_samples import load_splits

from toolkit.data.sources import load_dataset
from toolkit.distill import distributed
from toolkit.distill.stage import Images, Options
from toolkit.distill.student import train_control
from toolkit.distill.teacher import make_teacher
from toolkit.errors import RecipeError, TrainingError
from toolkit.modeldir import ModelDir
from toolkit.recipe import Recipe

SMALL = ["data.image_size=32", "data.resize=0", "teacher.architecture=depthwise", "student.base=4", "distill.epochs=4"]


@pytest.fixture(scope="module")
def images(class_folders: Path) -> Images:
    recipe = Recipe().with_overrides([*SMALL, f"data.source={class_folders}"])
    return Images(load_dataset(recipe.data), *load_splits(class_folders))


@pytest.mark.parametrize(("make", "section"), [(make_teacher, "teacher"), (train_control, "distill")])
def test_a_first_size_that_the_network_cannot_take_is_one_line(
    images: Images, tmp_path: Path, make: object, section: str
) -> None:
    """The depthwise network halves its images four times."""
    recipe = Recipe().with_overrides([*SMALL, f"{section}.start_image_size=8", "distill.precision=fp32"])
    message = rf"cannot take images of 8 px \({section}.start_image_size\): .*; use a larger {section}.start_image_size"
    with pytest.raises(RecipeError, match=message) as caught:
        make(recipe, ModelDir(tmp_path), images, Options())  # type: ignore[operator]
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_batch_smaller_than_the_number_of_processes_is_refused(
    images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    monkeypatch.setattr(distributed, "synchronize_batch_norms", lambda network, device: network)
    recipe = Recipe().with_overrides([*SMALL, "distill.batch_size=2", "distill.precision=fp32"])
    message = "2 images a step cannot be shared out to 3 processes; use a larger distill.batch_size or fewer processes"
    with pytest.raises(TrainingError, match=message):
        train_control(recipe, ModelDir(tmp_path), images, Options())
