"""Given teachers: the places of their files, the data that they are refused for, and the images that they have seen."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from conftest import make_class_folders, make_image
from small_networks import settled_network

from toolkit import pipeline, shipped
from toolkit.cli import app
from toolkit.data import food11
from toolkit.data.dataset import Dataset
from toolkit.data.preprocess import Preprocess
from toolkit.data.sources import load_dataset
from toolkit.distill import teacher
from toolkit.distill.job import WeightsFile
from toolkit.distill.provenance import (
    SHIPPED_ACCURACY,
    find_training_images,
    find_weights,
    follow_fine_tuning,
    known_accuracy,
    require_fitting,
    warn_of_seen_images,
)
from toolkit.errors import WeightsError
from toolkit.forecast.facts import find_facts
from toolkit.networks.registry import NetworkSpec
from toolkit.networks.weights import ModelInfo, read_info, save_model
from toolkit.recipe import Recipe
from toolkit.settings import DataRecipe
from toolkit.stage_setup import StageSetup, prepare_training

ARCHITECTURE = ("teacher.architecture=depthwise", "student.base=4")
SMALL = [*ARCHITECTURE, "data.image_size=32", "data.resize=36", "training.precision=fp32", "distill.epochs=1"]
WAY_OUT = "train a teacher here: --set 'teacher.weights=\"\"', or give the data that this one was trained on"


def make_unsplit(root: Path) -> Path:
    """root/{blue,green,red}/*.png, 20 each, without splits."""
    for label, name in ((2, "blue"), (1, "green"), (0, "red")):
        (root / name).mkdir(parents=True)
        for i in range(20):
            make_image(label, label * 1000 + i).save(root / name / f"{i}.png")
    return root


def save_teacher(
    path: Path, dataset: Dataset, recipe: Recipe, halved: bool = False, extra: dict[str, Any] | None = None
) -> Path:
    """A teacher that says it was trained on `dataset` by `recipe`."""
    info = ModelInfo(
        role="teacher",
        network=NetworkSpec("depthwise", {"base": 4}),
        classes=dataset.classes,
        preprocess=Preprocess.from_recipe(recipe.data),
        recipe=recipe.model_dump(mode="json"),
        recipe_sha256="a" * 64,
        dataset_sha256=dataset.sha256,
        teacher_sha256=None,
        toolkit_version="0.0",
        extra=extra or {},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    save_model(path, settled_network("depthwise", num_classes=len(dataset.classes)), info, halved=halved)
    return path


@pytest.fixture
def folders(class_folders: Path) -> tuple[Dataset, Recipe]:
    recipe = Recipe().with_overrides([*SMALL, f"data.source={class_folders}"])
    return load_dataset(recipe.data), recipe


@pytest.fixture
def shipped_teacher(folders: tuple[Dataset, Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A half-precision teacher of the three colours, which ships as `colours`."""
    path = save_teacher(tmp_path / "models" / "colours" / "teacher-depthwise.safetensors", *folders, halved=True)
    monkeypatch.setattr(shipped, "PACKAGE", tmp_path / "toolkit")
    return path


def no_download() -> NoReturn:
    raise AssertionError("a download was tried")


def no_measuring(*_: object) -> NoReturn:
    raise AssertionError("it was measured")


def named(*classes: str) -> Dataset:
    """A data set of which only names are looked at."""
    return Dataset("other", classes, *[None] * 3, "0" * 64)  # type: ignore[arg-type]


class TestFindWeights:
    def test_by_name_by_path_and_none_to_train_one(self, shipped_teacher: Path) -> None:
        def find(weights: str) -> Path | None:
            return find_weights(Recipe().with_overrides([f'teacher.weights="{weights}"']))

        assert find("") is None
        assert find("imagenet") is None
        assert find("colours") == shipped_teacher
        assert find(str(shipped_teacher)) == shipped_teacher

    @pytest.mark.usefixtures("shipped_teacher")
    def test_a_file_that_is_not_there_names_what_is(self) -> None:
        expected = (
            r"there is no file colors; did you mean colours\? give a .* file, one of colours, food-11, imagenet, or"
        )
        with pytest.raises(WeightsError, match=expected):
            find_weights(Recipe().with_overrides(["teacher.weights=colors"]))

    def test_the_notebooks_is_fetched(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(food11, "teacher_weights", lambda: Path("fetched.bin"))
        assert find_weights(Recipe().with_overrides(["teacher.weights=food-11"])) == Path("fetched.bin")

    @pytest.mark.parametrize("where", [".", "sub/folder"])
    def test_beside_the_recipe(self, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        Path(where).mkdir(parents=True, exist_ok=True)
        (Path(where) / "mine.safetensors").touch()
        recipe = Path(where) / "recipe.toml"
        recipe.write_text('[teacher]\nweights = "mine.safetensors"\n')
        found = find_weights(Recipe.from_toml(recipe))
        assert found is not None
        assert found.samefile(Path(where) / "mine.safetensors")
        recipe.write_text('[teacher]\nweights = "other.safetensors"\n')
        Path("other.safetensors").touch()
        assert find_weights(Recipe.from_toml(recipe)) == Path("other.safetensors"), "from where the command runs"

    def test_a_name_is_no_file_beside_the_recipe(self, tmp_path: Path) -> None:
        (tmp_path / "imagenet").touch()
        (tmp_path / "recipe.toml").write_text('[teacher]\nweights = "imagenet"\n')
        assert Recipe.from_toml(tmp_path / "recipe.toml").teacher.weights == "imagenet"


class TestRequireFitting:
    def require(self, weights: Path | str, *classes: str) -> None:
        require_fitting(Recipe().with_overrides([f'teacher.weights="{weights}"']), named(*classes))

    @pytest.fixture(autouse=True)
    def _offline(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(food11, "teacher_weights", no_download)

    def test_the_notebooks_teacher_knows_its_eleven_classes(self) -> None:
        self.require("food-11", *food11.CLASSES)
        self.require("food-11", *map(str, range(11)))
        self.require("food-11", *(name.replace("/", "-") for name in food11.CLASSES))
        expected = 'teacher.weights = "food-11" has 11 classes, other has 2; '
        with pytest.raises(WeightsError) as caught:
            self.require("food-11", "cat", "dog")
        assert str(caught.value) == expected + WAY_OUT
        with pytest.raises(WeightsError, match=r"class 1 of .* is 'Dairy product', of other 'Rose'"):
            self.require("food-11", "Bread", "Rose", *food11.CLASSES[2:])

    def test_a_shipped_one_and_a_file_name_theirs(self, shipped_teacher: Path) -> None:
        for weights in ("colours", str(shipped_teacher)):
            self.require(weights, "blue", "green", "red")
            with pytest.raises(WeightsError) as caught:
                self.require(weights, "blue", "green", "scarlet")
            assert str(caught.value).startswith(
                f'teacher.weights = "{weights}" has the classes blue, green, red; the data has blue, green, scarlet,'
                " and scarlet is not among them; give a teacher of these classes or train one here"
            )

    def test_a_teacher_without_class_names_or_with_a_new_head_is_not_refused(self, tmp_path: Path) -> None:
        torch.save(settled_network("depthwise").state_dict(), tmp_path / "bare.bin")
        for weights in ("", "imagenet", tmp_path / "bare.bin"):
            self.require(weights, "a", "b", "c")

    def test_the_command_refuses_before_it_downloads_or_decodes(self, class_folders: Path, tmp_path: Path) -> None:
        setup = prepare_training("food11-fast", str(class_folders), tmp_path / "m", [], device="cpu")
        with pytest.raises(WeightsError, match=r"has 11 classes, .* has 3; train a teacher here: --set"):
            pipeline.distill_student(setup)
        assert "_decoded" not in vars(setup)
        assert list((tmp_path / "m").iterdir()) == []


class TestImport:
    @pytest.fixture(autouse=True)
    def _untrained_teachers_will_do(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """That they are no better than chance is test_doubts.py's affair."""
        monkeypatch.setattr(teacher, "is_near_chance", lambda hits, labels: False)

    def test_a_shipped_teacher_teaches_in_half_precision(
        self, shipped_teacher: Path, class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        settings = [*SMALL, "teacher.weights=colours"]
        setup = prepare_training(None, str(class_folders), tmp_path / "m", settings, device="cpu")
        pipeline.distill_student(setup)
        said = capsys.readouterr().err
        assert f"teacher: imported {shipped_teacher}\n" in said
        accuracy = read_info(tmp_path / "m" / "teacher.safetensors").extra["valid_accuracy"]
        assert said.count(f"teacher: validation accuracy {accuracy:.4f}\n") == said.count("validation accuracy") == 1
        assert "warning" not in said
        info = read_info(tmp_path / "m" / "teacher.safetensors")
        assert info.extra["trained_on"] == find_training_images(read_info(shipped_teacher))
        assert info.recipe["teacher"]["weights"] == "colours"

    def test_settings_that_do_not_decide_an_imported_teacher_make_no_other_one(
        self, shipped_teacher: Path, class_folders: Path, tmp_path: Path
    ) -> None:
        def make(*overrides: str) -> bool:
            settings = [*SMALL, *overrides]
            setup = prepare_training(None, str(class_folders), tmp_path / "m", settings, device="cpu")
            return pipeline.make_teacher(setup).new

        copy = tmp_path / "copy.safetensors"
        copy.write_bytes(shipped_teacher.read_bytes())
        assert make("teacher.weights=colours")
        assert not make("teacher.weights=colours", "training.seed=5", "teacher.epochs=3")
        assert not make(f'teacher.weights="{copy}"'), "the same bytes"

    def test_another_size_is_said(
        self, shipped_teacher: Path, class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        settings = [*SMALL, f'teacher.weights="{shipped_teacher}"', "data.image_size=40", "data.resize=45"]
        stated = [*settings, "teacher.image_size=40"]
        pipeline.make_teacher(prepare_training(None, str(class_folders), tmp_path / "stated", stated, device="cpu"))
        expected = (
            "warning: teacher-depthwise.safetensors was trained at 32 px (resize 36) and teaches at 40 px (resize 45)"
        )
        assert expected in capsys.readouterr().err

    def test_its_own_size_is_kept(
        self, shipped_teacher: Path, class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        settings = [*SMALL, f'teacher.weights="{shipped_teacher}"', "data.image_size=40", "data.resize=45"]
        setup = prepare_training(None, str(class_folders), tmp_path / "m", settings, device="cpu")
        assert setup.recipe.teacher.image_size == 32
        pipeline.make_teacher(setup)
        said = capsys.readouterr().err
        assert "the teacher sees each picture at 32 px" in said
        assert "warning" not in said

    def test_a_plan_warns_as_the_import_does_but_not_if_the_teacher_is_there(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source = f"data.source={make_unsplit(tmp_path / 'data')}"
        then = Recipe().with_overrides([*SMALL, source])
        weights = save_teacher(tmp_path / "teacher.safetensors", load_dataset(then.data), then)
        now = (f'teacher.weights="{weights}"', "data.image_size=40", "data.resize=40", "data.split_seed=3")
        flags = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "m"), "--device", "cpu"]
        flags += [word for setting in (*SMALL, *now) for word in ("--set", setting)]

        def warnings_of(command: str) -> list[str]:
            monkeypatch.setattr("sys.argv", ["toolkit", command, *flags])
            app.app([command, *flags], standalone_mode=False)
            return [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]

        planned = warnings_of("plan")
        assert len(planned) == 2
        assert planned[0].endswith("was trained at 32 px (resize 36) and teaches at 32 px (resize 32)")
        assert "was trained on" in planned[1]
        assert warnings_of("teacher") == planned
        assert warnings_of("plan") == []


class TestKnownAccuracy:
    """A file that ships is not measured again on the same images with the same settings."""

    @pytest.fixture
    def telling(self, folders: tuple[Dataset, Recipe], tmp_path: Path) -> Path:
        extra = {SHIPPED_ACCURACY: 0.123}
        return save_teacher(tmp_path / "telling.safetensors", *folders, halved=True, extra=extra)

    def test_on_its_own_images_it_is_taken_over(
        self, telling: Path, class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.setattr(teacher, "compute_logits", no_measuring)
        made = self.make(telling, class_folders, tmp_path)
        assert made.info.extra["valid_accuracy"] == 0.123
        assert SHIPPED_ACCURACY not in made.info.extra, "what is imported is not what ships"
        expected = f"teacher: imported {telling}; its file has its accuracy on the same validation images\n"
        said = capsys.readouterr().err
        assert expected in said
        assert "0.1230" not in said, "the command ends with it"
        assert find_facts(self.make_setup(telling, class_folders, tmp_path / "other"), "run").known_accuracy

    @pytest.mark.parametrize(
        "changed",
        [
            *("data.image_size=40", "data.resize=40", "data.split_seed=1", "data.validation_fraction=0.3"),
            *("teacher.mean=[0.1,0.2,0.3]", "teacher.std=[0.1,0.2,0.3]", "teacher.enlarge=2"),
        ],
    )
    def test_if_a_setting_could_change_it_it_is_measured(
        self, changed: str, telling: Path, class_folders: Path, tmp_path: Path
    ) -> None:
        made = self.make(telling, class_folders, tmp_path, changed)
        assert made.info.extra["valid_accuracy"] != 0.123, "no share of a dozen images"
        assert not find_facts(
            self.make_setup(telling, class_folders, tmp_path / "other", changed), "run"
        ).known_accuracy

    def test_other_images_have_it_measured(self, telling: Path, tmp_path: Path) -> None:
        recipe = Recipe().with_overrides(SMALL)
        other = load_dataset(DataRecipe(source=str(make_class_folders(tmp_path / "other", (5, 3, 3)))))
        assert known_accuracy(telling, recipe, other) is None

    def test_a_file_without_one_is_measured(self, folders: tuple[Dataset, Recipe], tmp_path: Path) -> None:
        dataset, recipe = folders
        assert known_accuracy(save_teacher(tmp_path / "silent.safetensors", *folders), recipe, dataset) is None
        torch.save(settled_network("depthwise").state_dict(), tmp_path / "bare.bin")
        assert known_accuracy(tmp_path / "bare.bin", recipe, dataset) is None

    def make_setup(self, weights: Path, data: Path, out: Path, *overrides: str) -> StageSetup:
        settings = [*SMALL, f'teacher.weights="{weights}"', *overrides]
        return prepare_training(None, str(data), out, settings, device="cpu")

    def make(self, weights: Path, data: Path, out: Path, *overrides: str) -> WeightsFile:
        return pipeline.make_teacher(self.make_setup(weights, data, out / "m", *overrides))


class TestSeenImages:
    def warn(self, teacher: Path, recipe: Recipe, dataset: Dataset) -> None:
        trained_on = find_training_images(read_info(teacher))
        assert trained_on is not None
        warn_of_seen_images("it", trained_on, recipe, dataset)

    @pytest.mark.parametrize(
        "changed", ["data.split_seed=3", "data.validation_fraction=0.3", "data.test_fraction=0.4", ""]
    )
    @pytest.mark.parametrize("share", [1.0, 0.4], ids="of {} now".format)
    @pytest.mark.parametrize("share_then", [1.0, 0.4], ids="of {} then".format)
    def test_another_split_is_counted(
        self, changed: str, share: float, share_then: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        source = f"data.source={make_unsplit(tmp_path / 'data')}"
        then = Recipe().with_overrides([*SMALL, source, f"data.share={share_then}"])
        before = load_dataset(then.data)
        teacher = save_teacher(tmp_path / "teacher.safetensors", before, then)
        now = then.with_overrides([f"data.share={share}", *([changed] if changed else [])])
        dataset = load_dataset(now.data)
        self.warn(teacher, now, dataset)
        said = capsys.readouterr().err
        seen = set(before.train.names)
        for split, images in (("validation", dataset.valid), ("test", dataset.test)):
            count = sum(name in seen for name in images.names)
            assert (f"{count} of these {len(images)} {split} images" in said) == bool(count), said
        assert bool(changed) == said.startswith("warning: it was trained on "), said
        assert len(said.splitlines()) == bool(changed)

    def test_other_splits_of_a_set_with_its_own_do_not_matter(
        self, folders: tuple[Dataset, Recipe], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        dataset, recipe = folders
        teacher = save_teacher(tmp_path / "teacher.safetensors", dataset, recipe)
        self.warn(teacher, recipe.with_overrides(["data.split_seed=1"]), dataset)
        assert capsys.readouterr().err == ""

    def test_other_images_are_said(
        self, folders: tuple[Dataset, Recipe], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        dataset, recipe = folders
        teacher = save_teacher(tmp_path / "teacher.safetensors", dataset, recipe)
        data = DataRecipe(source=str(make_class_folders(tmp_path / "other", (5, 3, 3))))
        self.warn(teacher, recipe, load_dataset(data))
        expected = "warning: it was trained on other images; it is not known whether it has seen any of these\n"
        assert capsys.readouterr().err == expected

    def test_an_import_of_an_import_knows_what_the_first_knew(
        self, folders: tuple[Dataset, Recipe], tmp_path: Path
    ) -> None:
        info = read_info(save_teacher(tmp_path / "teacher.safetensors", *folders))
        first = find_training_images(info)
        imported = replace(info, dataset_sha256="f" * 64, extra={"trained_on": first})
        assert find_training_images(imported) == first
        assert first is not None
        assert first["dataset_sha256"] == folders[0].sha256
        assert find_training_images(replace(imported, extra={"trained_on": None})) is None, "a bare state dict's import"
        assert find_training_images(replace(info, recipe={})) is None


class TestFineTuning:
    LITE0 = ("teacher.architecture=efficientnet_lite0", "teacher.weights=imagenet")

    def test_its_settings_are_stated_if_all_are_open(self) -> None:
        recipe, line = follow_fine_tuning(Recipe().with_overrides(self.LITE0))
        assert (recipe.teacher.optimizer, recipe.teacher.learning_rate) == ("adamw", 0.001)
        assert recipe.distill == Recipe().distill
        assert line.startswith("settings of fine-tuning: teacher.optimizer=adamw teacher.learning_rate=0.001 ")
        assert follow_fine_tuning(recipe) == (recipe, "")

    @pytest.mark.parametrize(
        "overrides",
        [
            ("teacher.weights=imagenet",),
            LITE0[:1],
            (*LITE0, "teacher.learning_rate=0.01"),
            (*LITE0, "teacher.label_smoothing=0.0"),
            ("teacher.architecture=timm:test_vit",),
        ],
    )
    def test_nothing_changes_otherwise(self, overrides: tuple[str, ...]) -> None:
        """torchvision's networks are fine-tuned as they were."""
        recipe = Recipe().with_overrides(overrides)
        assert follow_fine_tuning(recipe) == (recipe, "")
