"""Settings that follow the pictures: the choices from sizes and counts, and the settings that are left alone."""

from pathlib import Path

import numpy as np
import pytest
from conftest import make_image
from data_samples import make_dataset
from PIL import Image

from toolkit import pipeline
from toolkit.cli.preparation import data as data_command
from toolkit.data import defaults
from toolkit.data.dataset import Images
from toolkit.data.defaults import Pictures, choose_settings, follow_pictures, left_to_pictures, measure_pictures
from toolkit.networks.weights import read_info
from toolkit.recipe import FOLLOW_PICTURES, Recipe, builtin_names, load_builtin
from toolkit.stage_setup import prepare_finished, prepare_training

PHOTOGRAPHS = {"data.image_size": 160, "data.resize": 176, "data.crop_padding": 0}
QUICK = [
    *("teacher.architecture=depthwise", "teacher.base=4", "student.base=4"),
    *("training.precision=fp32", "distill.batch_size=12"),
]


def choose(side_px: int, count: int = 1000, *overrides: str) -> dict[str, int]:
    return choose_settings(Recipe().with_overrides(overrides), Pictures(count, 10, side_px))


def make_folders(root: Path, side: int, images_per_class: int = 12) -> Path:
    """root/{blue,green,red}/*.png, `side` px high and a little wider; no splits."""
    for label, name in ((2, "blue"), (1, "green"), (0, "red")):
        (root / name).mkdir(parents=True)
        for i in range(images_per_class):
            make_image(label, label * 1000 + i, (side + 4, side)).save(root / name / f"{i}.png")
    return root


@pytest.mark.parametrize(
    ("side_px", "size", "resize", "padding"),
    [
        (1, 32, 32, 4),
        (28, 32, 32, 4),
        (32, 32, 32, 4),
        (64, 64, 64, 8),
        (96, 96, 96, 12),
        (97, 80, 97, 0),
        (128, 112, 128, 0),
        (175, 144, 175, 0),
        (176, 160, 176, 0),
        (4000, 160, 176, 0),
    ],
)
def test_sizes_follow_the_median_side(side_px: int, size: int, resize: int, padding: int) -> None:
    chosen = choose(side_px)
    assert [chosen[f"data.{key}"] for key in ("image_size", "resize", "crop_padding")] == [size, resize, padding]


@pytest.mark.parametrize(
    ("count", "student", "teacher"),
    [(1, 60, 30), (10_000, 60, 30), (20_000, 30, 15), (48_000, 12, 6), (60_000, 10, 5), (10**7, 10, 5)],
)
def test_epochs_follow_the_number_of_images(count: int, student: int, teacher: int) -> None:
    chosen = choose(32, count)
    assert (chosen["distill.epochs"], chosen["teacher.epochs"]) == (student, teacher)


def test_photographs_get_the_defaults_of_the_recipe() -> None:
    recipe = Recipe()
    chosen = choose(512, 5000)
    assert {name: chosen[name] for name in PHOTOGRAPHS} == PHOTOGRAPHS
    assert {name: recipe.value_of(name) for name in chosen} == chosen


@pytest.mark.parametrize(
    ("override", "others"),
    [
        ("data.image_size=48", {"data.resize": 48, "data.crop_padding": 6}),
        ("data.image_size=256", {"data.resize": 282, "data.crop_padding": 0}),
        ("data.resize=64", {"data.image_size": 64}),
        ("data.resize=0", {"data.image_size": 40}),
        ("data.resize=500", {"data.image_size": 160}),
        ("data.crop_padding=2", {"data.image_size": 40, "data.resize": 40}),
        ("teacher.epochs=7", {"distill.epochs": 60}),
        ("distill.epochs=7", {"teacher.epochs": 30}),
        ("distill.start_image_size=96", {"data.image_size": 96, "data.resize": 96}),
        ("teacher.start_image_size=128", {"data.image_size": 128, "data.resize": 128}),
    ],
)
def test_a_stated_setting_stays_and_decides_the_other_size(override: str, others: dict[str, int]) -> None:
    recipe = Recipe().with_overrides([override])
    chosen = choose(40, 100, override)
    assert override.split("=")[0] not in chosen
    assert {name: chosen[name] for name in others} == others
    recipe.with_overrides([f"{name}={value}" for name, value in chosen.items()])  # they fit together


def test_the_sample_is_spread_over_the_split_and_broken_files_are_left_out() -> None:
    """The first 300 are small, as a class that sorts first may be: a median of the first 500 would be theirs."""
    sizes = [(20, 30)] * 300 + [(300, 200)] * 700
    dataset = make_dataset(sizes)
    assert measure_pictures(dataset.train) == Pictures(1000, 500, 200)

    def read(index: int) -> Image.Image:
        if index >= 300:
            raise OSError("broken")
        return dataset.train.read(index)

    measured = measure_pictures(Images(dataset.train.names, dataset.train.labels, read))
    assert measured is not None
    assert (measured.looked_at, measured.side_px) == (150, 20)


def test_arrays_of_pixels_are_measured_too() -> None:
    """Idx sets are like that: no file has a header there."""
    images = Images.from_array("train", np.zeros((7, 28, 30), np.uint8), np.arange(7) % 2)
    recipe, _ = follow_pictures(Recipe(), images)
    assert (recipe.data.image_size, recipe.data.resize, recipe.data.crop_padding) == (32, 32, 4)


def test_if_no_image_can_be_read_nothing_is_chosen_or_said() -> None:
    def read(_: int) -> Image.Image:
        raise OSError("broken")

    images = Images(("a.png", "b.png"), np.array([0, 1]), read)
    assert follow_pictures(Recipe(), images) == (Recipe(), "")


@pytest.mark.parametrize("name", builtin_names())
def test_the_recipes_that_ship_leave_nothing_to_the_pictures(name: str) -> None:
    assert left_to_pictures(load_builtin(name)) == []


def test_padding_alone_is_no_reason_to_look_at_pictures() -> None:
    stated = [f"{name}=40" for name in FOLLOW_PICTURES if name != "data.crop_padding"]
    assert left_to_pictures(Recipe().with_overrides(stated)) == []
    assert left_to_pictures(Recipe()) == list(FOLLOW_PICTURES)


class TestJobs:
    @pytest.fixture(autouse=True)
    def _few_epochs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(defaults, "STUDENT_EPOCHS", (1, 2))
        monkeypatch.setattr(defaults, "TEACHER_EPOCHS", (1, 1))

    def test_small_pictures_stay_small_from_the_first_stage_to_the_last(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder, out = make_folders(tmp_path / "tiny", 32), tmp_path / "m"
        setup = prepare_training(None, str(folder), out, QUICK, device="cpu")
        said = capsys.readouterr().err
        assert "dataset" in vars(setup), "read once"
        assert said.count("settings that follow the pictures") == 1
        chosen = "data.image_size=32 data.resize=32 data.crop_padding=4 teacher.epochs=1 distill.epochs=2"
        assert f"{chosen} (27 of 27 training images sampled: median shorter side 32 px" in said
        assert left_to_pictures(setup.recipe) == []
        pipeline.distill_student(setup)
        for role in ("teacher", "student"):
            info = read_info(out / f"{role}.safetensors")
            assert (info.preprocess.image_size, info.preprocess.resize) == (32, 32)
            assert info.recipe["data"]["crop_padding"] == 4
            assert (info.recipe["teacher"]["epochs"], info.recipe["distill"]["epochs"]) == (1, 2)
        capsys.readouterr()
        finished = prepare_finished(
            out, None, None, ["bench.samples=10", "bench.seconds=0.2", "bench.batch_sizes=[1]"], device="cpu"
        )
        assert finished.recipe.data == setup.recipe.data
        pipeline.export_models(finished)
        report = pipeline.bench_models(finished)
        assert report.recipe["data"]["image_size"] == 32
        again = prepare_training(None, None, out, [], device="cpu")
        assert again.recipe.data == setup.recipe.data
        assert "follow the pictures" not in capsys.readouterr().err, "everything is stated by now"

    def test_a_recipe_given_again_to_a_later_stage_follows_the_same_pictures(self, tmp_path: Path) -> None:
        folder = make_folders(tmp_path / "tiny", 40)
        recipe = tmp_path / "mine.toml"
        recipe.write_text(f'[data]\nsource = "{folder}"\n[student]\nbase = 4\n')
        (tmp_path / "m").mkdir()
        setup = prepare_finished(tmp_path / "m", str(recipe), None, [], device="cpu")
        assert (setup.recipe.data.image_size, setup.recipe.data.resize) == (40, 40)

    def test_set_comes_before_the_file_and_the_file_before_the_pictures(self, tmp_path: Path) -> None:
        folder = make_folders(tmp_path / "tiny", 32)
        recipe = tmp_path / "mine.toml"
        recipe.write_text("[data]\nimage_size = 48\ncrop_padding = 1\n[teacher]\nepochs = 9\n")
        out, overrides = tmp_path / "m", ["data.image_size=40"]
        setup = prepare_training(str(recipe), str(folder), out, overrides, device="cpu")
        assert (setup.recipe.data.image_size, setup.recipe.data.resize, setup.recipe.data.crop_padding) == (40, 40, 1)
        assert (setup.recipe.teacher.epochs, setup.recipe.distill.epochs) == (9, 2)

    def test_nothing_is_read_if_the_recipe_states_it_all(self, tmp_path: Path) -> None:
        setup = prepare_training(None, "fashion-mnist", tmp_path / "m", [], device="cpu")
        assert "dataset" not in vars(setup)

    def test_toolkit_data_says_what_would_be_chosen(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        folder = make_folders(tmp_path / "tiny", 64)
        data_command(str(folder))
        assert capsys.readouterr().out.count("data.image_size=64 data.resize=64 data.crop_padding=8") == 1
        stated = [f"{name}=64" for name in FOLLOW_PICTURES]
        data_command(str(folder), overrides=stated)
        assert "follow the pictures" not in capsys.readouterr().out
