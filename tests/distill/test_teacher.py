"""A teacher that is there and a recipe that has changed since: `toolkit teacher` and `toolkit distill` agree."""

from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from toolkit import architectures, pipeline
from toolkit.architectures import NetworkSettings
from toolkit.cli import app
from toolkit.distill.teacher import report_changed_training, require_same_network
from toolkit.errors import ArtifactError
from toolkit.networks import registry
from toolkit.networks.depthwise import DepthwiseStudent
from toolkit.networks.weights import load_model, read_info, save_model
from toolkit.recipe import Recipe
from toolkit.stage_setup import StageSetup, prepare_training

SMALL = [
    *("data.image_size=32", "data.resize=36", "training.precision=fp32", "distill.epochs=1", "student.base=4"),
    *("teacher.architecture=depthwise", "teacher.base=4", "teacher.epochs=1", "teacher.batch_size=12"),
]
SAME = ["data.image_size=32", "data.resize=36", "training.precision=fp32", "student.base=4", "distill.epochs=1"]
"""Nothing is stated of the teacher."""


@pytest.fixture(scope="module")
def taught(class_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with a depthwise teacher and its student."""
    out = tmp_path_factory.mktemp("taught")
    pipeline.distill_student(set_up(class_folders, out))
    return out


def set_up(data: Path, out: Path, *overrides: str) -> StageSetup:
    return prepare_training(None, str(data), out, [*SMALL, *overrides], device="cpu")


def command(name: str, data: Path, out: Path, *settings: str) -> None:
    flags = ["--data", str(data), "--out", str(out), "--device", "cpu"]
    app.app([name, *flags, *(word for setting in settings for word in ("--set", setting))], standalone_mode=False)


@pytest.mark.parametrize("setting", ["teacher.base=5", "teacher.width_mult=2.0", "teacher.enlarge=2"])
def test_distill_refuses_another_network_as_teacher_does(
    setting: str, taught: Path, class_folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ArtifactError, match=r"teacher\.safetensors was made from another recipe; choose another"):
        command("teacher", class_folders, taught, *SMALL, setting)
    capsys.readouterr()
    with pytest.raises(ArtifactError) as refused:
        command("distill", class_folders, taught, *SMALL, setting)
    key = setting.partition("=")[0]
    assert str(refused.value) == (
        f"{taught / 'teacher.safetensors'} was made from another recipe ({key}); make that teacher first,"
        " with toolkit teacher --force (in Python: force=True), or choose another directory"
    )
    said = capsys.readouterr().err
    assert "plan:" not in said
    assert "up to date" not in said
    with pytest.raises(ArtifactError, match="was made from another recipe"):
        pipeline.distill_student(set_up(class_folders, taught, setting))


def test_another_architecture_is_refused(taught: Path) -> None:
    with pytest.raises(ArtifactError, match=r"another recipe \(teacher\.architecture\); make that"):
        require_same_network(taught / "teacher.safetensors", Recipe().with_overrides(["teacher.architecture=resnet18"]))


@pytest.mark.parametrize("settings", [SMALL, SAME, [*SMALL, "training.compile=off", "teacher.width_mult=1.0"]])
def test_what_is_the_same_or_left_open_stays_up_to_date(
    settings: list[str], taught: Path, class_folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setup = prepare_training(None, str(class_folders), taught, settings, device="cpu")
    require_same_network(taught / "teacher.safetensors", setup.recipe)
    if settings is not SAME:
        assert not pipeline.distill_student(setup).new
        assert "trained with other settings" not in capsys.readouterr().err


def test_another_training_is_said_in_one_line(taught: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = taught / "teacher.safetensors"
    recipe = Recipe().with_overrides([*SMALL, "teacher.epochs=2", "teacher.ema=0.5"])
    require_same_network(file, recipe)
    report_changed_training(file, recipe)
    assert capsys.readouterr().err == (
        f"teacher: {file} was trained with other settings (teacher.epochs, teacher.ema) and teaches as it is;"
        " toolkit teacher --force trains it again\n"
    )


def test_a_teacher_that_was_imported_has_no_training_to_differ(
    taught: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network, info = load_model(taught / "teacher.safetensors")
    save_model(tmp_path / "t.safetensors", network.network, replace(info, extra={"weights": "a" * 64}))
    report_changed_training(tmp_path / "t.safetensors", Recipe().with_overrides([*SMALL, "teacher.epochs=2"]))
    assert capsys.readouterr().err == ""


def test_an_imported_network_that_the_recipe_leaves_open_is_the_file_s(
    taught: Path, class_folders: Path, tmp_path: Path
) -> None:
    """Its recipe has depthwise's default width, which the file replaced; both are recognised later."""
    given = [*SAME, "teacher.architecture=depthwise", f'teacher.weights="{taught / "teacher.safetensors"}"']
    pipeline.make_teacher(prepare_training(None, str(class_folders), tmp_path, given, device="cpu"))
    file = tmp_path / "teacher.safetensors"
    info = read_info(file)
    assert (info.network.settings["base"], info.recipe["teacher"]["base"]) == (4, 16)
    require_same_network(file, Recipe.from_dict(info.recipe, str(file)))
    require_same_network(file, Recipe().with_overrides([*given, "teacher.base=4"]))
    with pytest.raises(ArtifactError, match=r"\(teacher\.base\)"):
        require_same_network(file, Recipe().with_overrides([*given, "teacher.base=5"]))


class LeakySettings(NetworkSettings):
    leak: float = 0.1


@pytest.fixture
def _leaky(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registered network with a setting that changes no weight's shape."""
    for module, name in ((registry, "_builders"), (registry, "_modules"), (architectures, "_settings")):
        monkeypatch.setattr(module, name, dict(getattr(module, name)))

    @registry.register("leaky", LeakySettings)
    def build(num_classes: int, leak: float) -> nn.Module:
        return nn.Sequential(DepthwiseStudent(num_classes, base=4), nn.LeakyReLU(leak))


@pytest.mark.usefixtures("_leaky")
def test_a_changed_setting_of_an_imported_network_is_seen(class_folders: Path, tmp_path: Path) -> None:
    own = [*SAME, "teacher.architecture=leaky", "teacher.epochs=1", "teacher.batch_size=12"]

    def make(out: str, *overrides: str) -> bool:
        setup = prepare_training(None, str(class_folders), tmp_path / out, [*own, *overrides], device="cpu")
        return pipeline.make_teacher(setup).new

    assert make("trained")
    given = f'teacher.weights="{tmp_path / "trained" / "teacher.safetensors"}"'
    assert make("imported", given)
    assert not make("imported", given, "teacher.leak=0.1")
    with pytest.raises(ArtifactError, match=r"teacher\.safetensors was made from another network; choose another"):
        make("imported", given, "teacher.leak=0.2")
