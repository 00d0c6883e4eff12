"""Answers in a file as the teacher: import, distillation without a network, answers that are saved, the report."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_class_folders, make_image
from distill_samples import flatten, load_splits
from tiny_onnx import save_colour_model

import toolkit
from toolkit.api.workspace import Workspace
from toolkit.bench.schema import read_report
from toolkit.data.answer_file import read_answers, write_answers
from toolkit.data.sources import load_dataset
from toolkit.distill.answering import replay_answers
from toolkit.distill.metrics import read_metrics
from toolkit.errors import ArtifactError, GateError, RecipeError, UsageError, WeightsError
from toolkit.export.export import ExportOptions, export_onnx
from toolkit.files import sha256_file
from toolkit.networks.of_answers import Answers
from toolkit.networks.registry import NEVER, build, has_file, spec_of
from toolkit.networks.weights import load_model
from toolkit.recipe import Recipe
from toolkit.settings import DataRecipe
from toolkit.stage_setup import Choice, training_recipe

SMALL: dict[str, Any] = {
    "data.image_size": 32,
    "data.resize": 36,
    "training.precision": "fp32",
    "student.base": 4,
    "distill.epochs": 2,
    "distill.batch_size": 12,
    "bench.samples": 10,
    "bench.seconds": 0.1,
    "bench.batch_sizes": [1],
}
OF_TEACHER = {"teacher.architecture": "depthwise", "teacher.base": 4, "teacher.epochs": 2, "teacher.batch_size": 12}
CLASSES = ("blue", "green", "red")

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_class_folders(tmp_path_factory.mktemp("answers"), (12, 4, 4))


@pytest.fixture(scope="module")
def trained(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with a small trained teacher, and its answers in both formats."""
    path = tmp_path_factory.mktemp("trained") / "m"
    workspace = toolkit.open(path, data=folders, settings=SMALL | OF_TEACHER, quiet=True)
    workspace.teacher(save_answers=path / "soft.npz")
    return path


def names_and_labels(folders: Path) -> tuple[list[str], np.ndarray]:
    data = load_dataset(DataRecipe(source=str(folders)))
    return [*data.train.names, *data.valid.names], np.concatenate([data.train.labels, data.valid.labels])


def save_right(
    path: Path, folders: Path, classes: tuple[str, ...] | None = CLASSES, *, skip: int = 0, order: Any = None
) -> Path:
    """Answers that are right, 4 above the rest, in the order of `classes`; without the first `skip` images."""
    names, labels = names_and_labels(folders)
    logits = 4 * np.eye(3, dtype=np.float32)[labels]
    logits = logits[:, [CLASSES.index(name) for name in classes if name in CLASSES]] if classes else logits
    write_answers(path, {"name": names[skip:]}, (logits if order is None else logits[:, order])[skip:], classes)
    return path


def open_with(path: Path, folders: Path, answers: Path | str, **settings: Any) -> Workspace:
    given = {"teacher.weights": str(answers)} | {name.replace("__", "."): value for name, value in settings.items()}
    return toolkit.open(path, data=folders, settings=SMALL | given)


def assert_error(result: subprocess.CompletedProcess[str], part: str, code: int = 1) -> None:
    assert result.returncode == code, result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert part in last


class TestImport:
    def test_right_answers(self, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        workspace = open_with(tmp_path / "m", folders, save_right(tmp_path / "soft.npz", folders))
        made = workspace.teacher()
        assert (made.info.architecture, made.valid_accuracy) == ("answers", 1.0)
        said = capsys.readouterr().err
        assert "teacher: answers for 36 of 36 training and 12 of 12 validation images\n" in said
        assert "warning" not in said
        assert not workspace.teacher().new
        network = load_model(made.path)[0].network
        assert isinstance(network, Answers)
        place = names_and_labels(folders)[0].index("train/red/3.png")
        assert network.find(["train/red/3.png", "test/red/3.png"]).tolist() == [place, -1]
        with pytest.raises(RecipeError, match="answers is no network, but a teacher's answers in a file; give such a"):
            network(torch.zeros(1, 3, 32, 32))

    def test_classes_in_another_order_and_more_of_them(self, folders: Path, tmp_path: Path) -> None:
        names, labels = names_and_labels(folders)
        classes = ("Red", "violet", "green", "blue")
        logits = np.full((len(names), 4), 9, np.float32)
        logits[:, [3, 2, 0]] = 4 * np.eye(3, dtype=np.float32)[labels]
        write_answers(tmp_path / "soft.npz", {"name": names}, logits, classes)
        workspace = open_with(tmp_path / "m", folders, tmp_path / "soft.npz")
        assert workspace.teacher().valid_accuracy == 1.0
        network = load_model(tmp_path / "m" / "teacher.safetensors")[0].network
        assert (spec_of(network).outputs, spec_of(network).columns) == (4, (3, 2, 0))

    def test_classes_from_a_file_of_names(self, folders: Path, tmp_path: Path) -> None:
        path = save_right(tmp_path / "soft.npz", folders, None, order=[2, 0, 1])
        (tmp_path / "names.txt").write_text("red\nblue\ngreen\n")
        workspace = open_with(tmp_path / "m", folders, path, teacher__classes=str(tmp_path / "names.txt"))
        assert workspace.teacher().valid_accuracy == 1.0

    def test_an_order_that_seems_to_be_another(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        folders = make_class_folders(tmp_path / "data", (12, 40, 4))
        path = save_right(tmp_path / "soft.npz", folders, None, order=[2, 0, 1])
        assert open_with(tmp_path / "m", folders, path).teacher().valid_accuracy == 0.0
        assert "its outputs seem to stand in another order: red, blue, green; in that order it has 1.0000 of the" in (
            capsys.readouterr().err
        )

    def test_answers_of_other_images(self, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        names, _ = names_and_labels(folders)
        logits = np.random.default_rng(1).normal(size=(len(names), 3)).astype(np.float32)
        write_answers(tmp_path / "soft.npz", {"name": names}, logits, CLASSES)
        open_with(tmp_path / "m", folders, tmp_path / "soft.npz").teacher()
        assert "of its answers for validation images are right, no better than chance" in capsys.readouterr().err

    def test_no_answer_for_validation_images(
        self, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        names, labels = names_and_labels(folders)
        write_answers(tmp_path / "soft.npz", {"name": names[:36]}, 4 * np.eye(3)[labels[:36]], CLASSES)
        workspace = open_with(tmp_path / "m", folders, tmp_path / "soft.npz")
        assert workspace.teacher().valid_accuracy is None
        assert "its accuracy is not known, because no validation image has an answer" in capsys.readouterr().err
        assert len(workspace.distill().epochs) == 2

    @pytest.mark.parametrize(
        ("classes", "message"),
        [
            (("blue", "green", "pink"), r"has the classes blue, green, pink; the data has blue, green, red"),
            (("blue", "green"), "has 3 outputs, and 2 names are given for them"),
        ],
    )
    def test_classes_that_do_not_fit(
        self, folders: Path, tmp_path: Path, classes: tuple[str, ...], message: str
    ) -> None:
        names, labels = names_and_labels(folders)
        write_answers(tmp_path / "soft.npz", {"name": names}, np.eye(3)[labels], classes)
        with pytest.raises(WeightsError, match=message):
            open_with(tmp_path / "m", folders, tmp_path / "soft.npz").teacher()

    def test_too_many_images_without_an_answer(self, folders: Path, tmp_path: Path) -> None:
        path = save_right(tmp_path / "soft.npz", folders, skip=4)
        for stage in ("teacher", "distill"):
            with pytest.raises(WeightsError, match="has no answer for 4 of 36 training images, such as train/blue"):
                getattr(open_with(tmp_path / "m", folders, path), stage)()
        assert not (tmp_path / "m" / "teacher.safetensors").exists()

    def test_it_cannot_be_one_of_several(self, folders: Path, tmp_path: Path, trained: Path) -> None:
        path = save_right(tmp_path / "soft.npz", folders)
        settings = SMALL | {"teacher.weights": [str(path), str(trained / "teacher.safetensors")]}
        with pytest.raises(WeightsError, match="is a file of answers, which cannot be one of several teachers; give"):
            toolkit.open(tmp_path / "m", data=folders, settings=settings).teacher()

    @pytest.mark.parametrize("recipe", ["food11", "food11-fast", "photographs"])
    def test_the_network_of_a_recipe_that_ships_stays_behind(self, recipe: str) -> None:
        """Who gives answers cannot leave it out."""
        found, _ = training_recipe(Choice(recipe, overrides=['teacher.weights="soft.npz"']))
        assert found.teacher.architecture == "answers"

    def test_another_architecture_beside_it(self, folders: Path, tmp_path: Path) -> None:
        path = save_right(tmp_path / "soft.npz", folders)
        with pytest.raises(WeightsError, match=r"soft\.npz: its architecture is answers, and the recipe's teacher"):
            open_with(tmp_path / "m", folders, path, teacher__architecture="resnet18").teacher()

    def test_a_teacher_that_was_made_of_answers_is_a_file_of_them(
        self, folders: Path, tmp_path: Path, trained: Path
    ) -> None:
        path = save_right(tmp_path / "soft.npz", folders)
        first = Path(open_with(tmp_path / "m", folders, path).teacher().path)
        again = open_with(tmp_path / "n", folders, first, teacher__architecture="answers").teacher()
        logits = [load_model(Path(one))[0].network.logits for one in (first, again.path)]
        assert torch.equal(*logits)
        with pytest.raises(WeightsError, match="is a depthwise, the recipe's teacher a file of answers; use teacher"):
            open_with(
                tmp_path / "o", folders, trained / "teacher.safetensors", teacher__architecture="answers"
            ).teacher()

    @pytest.mark.parametrize("section", ["student", "teacher"])
    def test_it_is_no_network_to_be_trained(self, folders: Path, tmp_path: Path, section: str) -> None:
        settings = SMALL | {f"{section}.architecture": "answers"}
        settings = {name: value for name, value in settings.items() if name != "student.base" or section != "student"}
        with pytest.raises(RecipeError, match="answers is no network, but a teacher's answers in a file"):
            toolkit.open(tmp_path / "m", data=folders, settings=settings).teacher()

    def test_the_architecture_alone_has_no_answers(self) -> None:
        network = build("answers", 3, image_size=32)
        assert isinstance(network, Answers)
        assert not has_file(network)
        assert (network.image_names, len(network.logits)) == ([""], 0)


class TestDistillation:
    def test_without_any_network(self, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = save_right(tmp_path / "soft.npz", folders, skip=2)
        workspace = open_with(tmp_path / "m", folders, path, distill__control=True)
        made = workspace.distill()
        said = capsys.readouterr().err
        line = (
            "teacher: a file has one answer per image, whatever the view, for 34 of 36 training images; labels answer"
            " the other 2\n"
        )
        assert said.count(line) == 1
        assert made.info.extra["teacher_precision"] == "fp32"
        assert (tmp_path / "m" / "control.safetensors").is_file()
        path.unlink()
        assert not toolkit.open(tmp_path / "m", settings=SMALL, data=folders).distill().new

    @pytest.mark.parametrize(("alpha", "temperature"), [(1.0, 4.0), (1.0, 1.0), (0.5, 4.0)])
    def test_saved_answers_teach_as_their_teacher_does(self, tmp_path: Path, alpha: float, temperature: float) -> None:
        """One view, no augmentation: the student's losses are the same, up to rounding."""
        for split in ("train", "val", "test"):
            for label, name in enumerate(("red", "green", "blue")):
                (tmp_path / "data" / split / name).mkdir(parents=True)
                for number in range(4):
                    image = make_image(label, 100 * len(split) + 10 * label + number, (32, 32))
                    image.save(tmp_path / "data" / split / name / f"{number}.png")
        settings = SMALL | OF_TEACHER | {"data.resize": 32, "data.flip": False, "data.crop_padding": 0}
        settings |= {"distill.alpha": alpha, "distill.temperature": temperature, "distill.teacher_precision": "fp32"}
        live = toolkit.open(tmp_path / "live", data=tmp_path / "data", settings=settings, quiet=True)
        teacher = live.teacher(save_answers=tmp_path / "soft.parquet" if alpha == 1 else tmp_path / "soft.npz")
        expected = live.distill().epochs
        given = {name: value for name, value in settings.items() if name not in OF_TEACHER}
        given["teacher.weights"] = str(next(tmp_path.glob("soft.*")))
        stored = toolkit.open(tmp_path / "stored", data=tmp_path / "data", settings=given, quiet=True)
        assert stored.teacher().valid_accuracy == teacher.valid_accuracy
        for one, other in zip(stored.distill().epochs, expected, strict=True):
            assert one.train_loss == pytest.approx(other.train_loss, rel=1e-5)
            assert one.valid_loss == pytest.approx(other.valid_loss, rel=1e-5)

    def test_images_without_an_answer_and_of_unknown_classes_are_answered_by_their_labels(
        self, folders: Path, tmp_path: Path
    ) -> None:
        names, _ = names_and_labels(folders)
        write_answers(
            tmp_path / "soft.npz", {"name": names[1:]}, np.tile([[3.0, 1.0]], (len(names) - 1, 1)), ("red", "green")
        )
        workspace = open_with(tmp_path / "m", folders, tmp_path / "soft.npz", distill__temperature=2.0)
        workspace.distill()
        network = load_model(tmp_path / "m" / "teacher.safetensors")[0].network
        train, valid = load_splits(folders)
        job = _Job(train, valid)
        teacher = replay_answers(job, network)  # type: ignore[arg-type]
        answers = teacher.answer(np.arange(36), 5, torch.empty(0)).logits
        assert torch.equal(answers, teacher.answer(np.arange(36), 0, torch.empty(0)).logits), "whatever the view"
        by_label = (answers[:12] / 2).softmax(1)  # blue, which it does not know, and the first has no answer
        torch.testing.assert_close(by_label[:, 0], torch.full((12,), 1 / 1.0002))
        assert answers[12:].tolist() == [[NEVER, 1.0, 3.0]] * 24
        assert teacher.valid_logits().shape == (12, 3)

    def test_standardized_logits_need_all_classes(self, folders: Path, tmp_path: Path) -> None:
        names, _ = names_and_labels(folders)
        write_answers(tmp_path / "soft.npz", {"name": names}, np.ones((len(names), 2)), ("red", "green"))
        with pytest.raises(RecipeError, match=r"distill\.standardize needs a teacher that knows all classes"):
            open_with(tmp_path / "m", folders, tmp_path / "soft.npz", distill__standardize=True).distill()

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            (
                {"distill__mixup": 0.2},
                r"distill\.mixup makes one image of two, and a file of answers has one answer per",
            ),
            ({"distill__cutmix": 1.0}, r"distill\.cutmix makes one image of two, and a file of answers has one"),
            ({"data__unlabelled": ["more"]}, r"data\.unlabelled needs a network as the teacher, and a file of answers"),
            (
                {"distill__method": "kd+attention"},
                "attention reads the teacher's layers, and a file of answers has none",
            ),
        ],
    )
    def test_what_no_file_can_answer(
        self, folders: Path, tmp_path: Path, settings: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        make_class_folders(tmp_path / "more", (1, 1, 1))
        path = save_right(tmp_path / "soft.npz", folders)
        for made in (False, True):
            if made:
                open_with(tmp_path / "m", folders, path).teacher()
            with pytest.raises(RecipeError, match=message):
                open_with(tmp_path / "m", folders, path, **settings).distill()
        plain = {name.replace("__", "."): value for name, value in settings.items()}
        with pytest.raises(RecipeError, match=message):  # the directory alone says what its teacher is
            toolkit.open(tmp_path / "m", data=folders, settings=SMALL | plain).distill()

    def test_images_that_came_later(self, tmp_path: Path) -> None:
        folders = make_class_folders(tmp_path / "data", (4, 2, 2))
        path = save_right(tmp_path / "soft.npz", folders)
        open_with(tmp_path / "m", folders, path).teacher()
        make_class_folders(tmp_path / "data", (6, 2, 2))
        with pytest.raises(
            WeightsError, match=r"teacher\.safetensors has no answer for 6 of 18 training images, such as"
        ):
            toolkit.open(tmp_path / "m", data=folders, settings=SMALL).distill()

    def test_other_answers_than_those_of_the_directory(self, folders: Path, tmp_path: Path) -> None:
        first, second = (save_right(tmp_path / f"{i}.npz", folders, skip=i) for i in range(2))
        open_with(tmp_path / "m", folders, first).teacher()
        with pytest.raises(ArtifactError, match=r"was made from another recipe \(teacher\.weights\)"):
            open_with(tmp_path / "m", folders, second).distill()

    def test_several_seeds(self, folders: Path, tmp_path: Path) -> None:
        path = save_right(tmp_path / "soft.npz", folders)
        workspace = toolkit.open(
            tmp_path / "m", data=folders, settings=SMALL | {"teacher.weights": str(path)}, seeds=2, quiet=True
        )
        workspace.distill()
        assert (tmp_path / "m" / "seeds" / "1" / "control.safetensors").is_file()

    def test_an_interrupted_training_goes_on(self, folders: Path, tmp_path: Path) -> None:
        path = save_right(tmp_path / "soft.npz", folders)

        def stop(metrics: Any) -> None:
            if metrics.epoch == 0:
                raise KeyError("stop")

        whole = open_with(tmp_path / "whole", folders, path)
        whole.distill()
        with pytest.raises(KeyError):
            open_with(tmp_path / "parts", folders, path).distill(on_epoch=stop)
        settings = SMALL | {"teacher.weights": str(path)}
        toolkit.open(tmp_path / "parts", data=folders, settings=settings, resume=True).distill()
        states = [load_model(tmp_path / name / "student.safetensors")[0].state_dict() for name in ("whole", "parts")]
        assert torch.equal(*map(flatten, states))
        losses = [[one.train_loss for one in read_metrics(tmp_path / n / "metrics.jsonl")] for n in ("whole", "parts")]
        assert losses[0] == losses[1]


class _Job:
    """What replay_answers needs of a job."""

    def __init__(self, train: Any, valid: Any) -> None:
        self.data = type("Data", (), {"train": train, "valid": valid, "num_classes": 3})()
        self.recipe = Recipe().with_overrides({"distill.temperature": 2.0})
        self.options = type("Options", (), {"device": "cpu"})()


class TestSaving:
    @pytest.mark.parametrize("ending", ["npz", "parquet"])
    def test_the_round_trip(self, folders: Path, tmp_path: Path, trained: Path, ending: str) -> None:
        if ending == "parquet":
            pytest.importorskip("pyarrow")
        path = tmp_path / f"soft.{ending}"
        workspace = toolkit.open(trained, data=folders, settings=SMALL | OF_TEACHER, quiet=True)
        teacher = workspace.teacher(save_answers=path)
        saved = read_answers(path)
        names, _ = names_and_labels(folders)
        assert saved.names == tuple(names)
        assert saved.classes == CLASSES
        assert saved.sha256 is not None
        assert saved.sha256[0] == sha256_file(folders / names[0])
        assert open_with(tmp_path / "m", folders, path).teacher().valid_accuracy == teacher.valid_accuracy
        again = open_with(tmp_path / "m", folders, path).teacher(save_answers=tmp_path / "again.npz")
        assert not again.new
        np.testing.assert_array_equal(read_answers(tmp_path / "again.npz").logits, saved.logits)

    def test_of_a_teacher_of_some_classes_only_those_are_saved(self, folders: Path, tmp_path: Path) -> None:
        save_colour_model(tmp_path / "given.onnx", ("red", "green"))
        workspace = open_with(tmp_path / "m", folders, tmp_path / "given.onnx", teacher__image_size=32)
        accuracy = workspace.teacher(save_answers=tmp_path / "soft.npz").valid_accuracy
        saved = read_answers(tmp_path / "soft.npz")
        assert (saved.classes, saved.logits.shape) == (("green", "red"), (48, 2))
        assert abs(saved.logits).max() < 100
        assert open_with(tmp_path / "n", folders, tmp_path / "soft.npz").teacher().valid_accuracy == accuracy

    def test_a_teacher_of_folds_answers_out_of_fold(self, folders: Path, tmp_path: Path) -> None:
        settings = SMALL | OF_TEACHER | {"teacher.folds": 2}
        workspace = toolkit.open(tmp_path / "m", data=folders, settings=settings, quiet=True)
        made = workspace.teacher(save_answers=tmp_path / "soft.npz")
        saved, (_, labels) = read_answers(tmp_path / "soft.npz"), names_and_labels(folders)
        hits = saved.logits.argmax(1) == labels
        assert hits[:36].mean() == pytest.approx(made.info.extra["out_of_fold_accuracy"])
        assert hits[36:].mean() == pytest.approx(made.valid_accuracy)

    def test_of_a_data_set_without_files_there_are_names(self, tmp_path: Path, fashion_mnist: None) -> None:
        settings = SMALL | OF_TEACHER | {"data.share": 0.002, "teacher.epochs": 1, "teacher.weights": ""}
        workspace = toolkit.open(tmp_path / "m", data="fashion-mnist", settings=settings, quiet=True)
        workspace.teacher(save_answers=tmp_path / "soft.npz")
        saved = read_answers(tmp_path / "soft.npz")
        assert saved.sha256 is None
        assert saved.names is not None
        assert saved.names[0].startswith("train/")

    def test_another_ending_is_refused_before_any_work(self, folders: Path, tmp_path: Path) -> None:
        workspace = toolkit.open(tmp_path / "m", data=folders, settings=SMALL | OF_TEACHER)
        with pytest.raises(UsageError, match=r"save_answers soft\.csv is not one of \.npz, \.parquet"):
            workspace.teacher(save_answers="soft.csv")
        assert not (tmp_path / "m").exists()


def flags_of(settings: dict[str, Any]) -> list[str]:
    return [part for key, value in settings.items() for part in ("--set", f"{key}={json.dumps(value)}")]


class TestCommands:
    def test_answers_are_saved_without_training_again(
        self,
        folders: Path,
        trained: Path,
        tmp_path: Path,
        toolkit_here: Command,
    ) -> None:
        before = sha256_file(trained / "teacher.safetensors")
        flags = ["--data", str(folders), "--out", str(trained), "--device", "cpu"]
        path = tmp_path / "soft.npz"
        run = toolkit_here("teacher", *flags, "--save-answers", str(path), *flags_of(SMALL | OF_TEACHER))
        assert run.returncode == 0, run.stderr
        assert f"wrote {path}" in run.stdout
        assert f"kept {trained / 'teacher.safetensors'}" in run.stdout
        assert sha256_file(trained / "teacher.safetensors") == before
        assert len(read_answers(path).logits) == 48
        run = toolkit_here("teacher", *flags, "--save-answers", str(path), "--json", *flags_of(SMALL | OF_TEACHER))
        assert json.loads(run.stdout)["answers"] == str(path)

    def test_the_source_of_an_imported_teacher_need_not_be_there(
        self,
        folders: Path,
        tmp_path: Path,
        toolkit_here: Command,
    ) -> None:
        source = save_right(tmp_path / "soft.npz", folders)
        open_with(tmp_path / "m", folders, source).teacher()
        source.unlink()
        run = toolkit_here("teacher", "--out", str(tmp_path / "m"), "--save-answers", str(tmp_path / "again.npz"))
        assert run.returncode == 0, run.stderr
        assert len(read_answers(tmp_path / "again.npz").logits) == 48

    def test_wrong_usage(self, tmp_path: Path, toolkit_here: Command) -> None:
        assert_error(
            toolkit_here("teacher", "--weights", "a.onnx", "--answers", "a.npz"),
            "--weights and --answers exclude each other; give one of them",
            code=2,
        )
        for flag in ("--answers", "--save-answers"):
            assert_error(toolkit_here("teacher", flag, "a.csv"), "a.csv is not one of .npz, .parquet", code=2)

    def test_a_plan_has_no_time_for_the_teacher(
        self,
        folders: Path,
        tmp_path: Path,
        toolkit_here: Command,
    ) -> None:
        path = save_right(tmp_path / "soft.npz", folders)
        flags = ["--data", str(folders), "--out", str(tmp_path / "m"), "--device", "cpu", "--json"]
        flags += flags_of(SMALL | {"distill.teacher_views": 2})
        run = toolkit_here("plan", "--answers", str(path), *flags)
        assert run.returncode == 0, run.stderr
        stages = {stage["name"]: stage for stage in json.loads(run.stdout)["stages"]}
        assert list(stages) == ["decode", "teacher", "student", "control", "export", "bench"]
        assert stages["teacher"]["note"] == "given"
        assert stages["bench"]["note"] == "3 rows"
        refused = toolkit_here("plan", "--answers", str(path), *flags, "--set", "distill.mixup=0.2")
        assert_error(refused, "distill.mixup makes one image of two")
        save_right(path, folders, skip=9)
        assert_error(toolkit_here("plan", "--answers", str(path), *flags), "has no answer for 9 of 36")

    @pytest.mark.slow
    def test_a_student_from_answers_all_the_way(
        self,
        folders: Path,
        tmp_path: Path,
        toolkit_here: Command,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        path, out = save_right(tmp_path / "soft.npz", folders), tmp_path / "m"
        flags = ["--data", str(folders), "--device", "cpu", "--provider", "cpu", *flags_of(SMALL)]
        run = toolkit_here("run", "--answers", str(path), "--out", str(out), *flags)
        assert run.returncode == 0, run.stderr
        assert f"next: toolkit predict {out} IMAGE" in run.stdout
        assert "export: the student alone; the teacher is left out, because its answers came from a file" in run.stderr
        sentence = "There is no teacher to measure, because its answers came from a file."
        assert sentence in " ".join(run.stdout.split())
        assert not (out / "teacher.onnx").exists()
        report = read_report(out / "report.json")
        assert {row.model for row in report.rows} == {"student", "control"}
        assert {row.teacher_agreement for row in report.rows} == {None}
        assert all(row.vs_teacher is None for row in report.rows)
        assert report.no_teacher == sentence
        assert report.verdict.endswith(sentence)
        assert report.distillation.gain_top1 is not None
        assert report.distillation.knowledge is None
        assert all(one.teacher_recall is None and one.control_recall is not None for one in report.classes)
        for name in ("report.md", "README.md"):
            assert sentence in (out / name).read_text(encoding="utf-8")
        assert (out / "confusion_difference.png").is_file()
        assert_error(
            toolkit_here("demo", str(out)),
            f"{out}: the demo shows teacher and student, and there is no teacher to measure, because its answers came"
            f" from a file; ask the student with: toolkit predict {out} IMAGE",
        )
        compared = toolkit_here("compare", str(out), str(out))
        assert compared.returncode == 0
        bench = ["bench", str(out), "--data", str(folders), "--device", "cpu", "--provider", "cpu"]
        (tmp_path / "before.json").write_bytes((out / "report.json").read_bytes())
        (out / "control.safetensors").unlink()
        fewer = ("--runtimes", "onnxruntime", "--max-slowdown", "100")
        gate = toolkit_here(*bench, "--baseline", str(tmp_path / "before.json"), *fewer)
        assert gate.returncode == GateError.exit_code, "rows are missing"
        report = read_report(out / "report.json")
        assert {row.model for row in report.rows} == {"student"}
        assert all(one.recall_difference is None and one.student_recall is not None for one in report.classes)
        assert not (out / "confusion_difference.png").exists(), "one of an earlier benchmark is no picture of this one"
        again = toolkit_here(*bench, "--baseline", str(out / "report.json"))
        assert_error(again, "is the report that this benchmark will replace")

    def test_answers_of_a_teacher_are_no_file_to_export(self, folders: Path, tmp_path: Path) -> None:
        made = open_with(tmp_path / "m", folders, save_right(tmp_path / "soft.npz", folders)).teacher()
        with pytest.raises(ArtifactError, match="holds a teacher's answers, and no network; export the student"):
            export_onnx(Path(made.path), tmp_path / "a.onnx", ExportOptions(Recipe()))
