"""Teachers that answer images they have not seen: who learns what, who answers whom, and what a run leaves behind."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_class_folders
from distill_samples import load_splits, make_student, make_views
from torch import Tensor

import toolkit
from toolkit.cli import app
from toolkit.data.sources import load_dataset
from toolkit.data.views import Indices
from toolkit.distill import teacher as teacher_stage
from toolkit.distill.checkpoint import Checkpoint, TrainingState
from toolkit.distill.folds import OutOfFoldTeacher, draw_folds
from toolkit.distill.job import TrainingJob
from toolkit.distill.objective import NetworkOutput
from toolkit.distill.provenance import has_learned_these
from toolkit.distill.teachers import LiveTeacher
from toolkit.errors import ArtifactError, DataError, RecipeError
from toolkit.networks.weights import read_info
from toolkit.recipe import Recipe

SMALL = {
    "data.image_size": 32,
    "data.resize": 36,
    "training.precision": "fp32",
    "teacher.architecture": "depthwise",
    "teacher.base": 4,
    "teacher.epochs": 1,
    "teacher.batch_size": 12,
    "teacher.folds": 3,
    "student.base": 4,
    "distill.epochs": 1,
    "distill.batch_size": 12,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_class_folders(tmp_path_factory.mktemp("folds"), (12, 4, 4))


class TestDraw:
    @pytest.mark.parametrize("count", [2, 3, 5, 20])
    def test_every_class_and_every_fold_have_their_share(self, count: int) -> None:
        labels = np.random.default_rng(0).permutation(np.repeat(np.arange(7), [40, 41, 5, 12, 99, 20, 7]))
        folds = draw_folds(labels, count, seed=0)
        sizes = np.bincount(folds, minlength=count)
        assert sizes.max() - sizes.min() <= 1
        for label in range(7):
            of_class = np.bincount(folds[labels == label], minlength=count)
            assert of_class.max() - of_class.min() <= 1

    def test_it_is_the_same_every_time_and_another_with_another_seed(self) -> None:
        labels = np.repeat(np.arange(3), 30)
        assert np.array_equal(draw_folds(labels, 3, 0), draw_folds(labels, 3, 0))
        assert not np.array_equal(draw_folds(labels, 3, 0), draw_folds(labels, 3, 1))

    def test_a_class_that_nobody_would_learn(self) -> None:
        with pytest.raises(DataError, match=r"a class has 1 training image, and teacher\.folds = 3 leaves some out"):
            draw_folds(np.array([0, 0, 0, 1]), 3, 0)

    def test_more_folds_than_images(self) -> None:
        with pytest.raises(DataError, match=r"teacher\.folds = 7 is more than there are training images \(6\)"):
            draw_folds(np.array([0, 1, 2] * 2), 7, 0)
        assert set(draw_folds(np.array([0, 1, 2] * 2), 6, 0)) == set(range(6))


class Constant:
    """Answers every image with its own number, and remembers whom it was asked."""

    is_capturable = True

    def __init__(self, number: float) -> None:
        self.number, self.asked = number, np.empty(0, np.int64)

    def show(self, view: int) -> None: ...

    def expect(self, coming: object, view: int) -> None: ...

    def answer(self, indices: Indices, view: int, student_images: Tensor) -> NetworkOutput:
        self.asked = np.append(self.asked, np.asarray(indices))
        return NetworkOutput(torch.full((len(indices), 2), self.number))

    def valid_logits(self) -> Tensor:
        return torch.full((4, 2), self.number)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_each_image_is_answered_by_the_part_that_has_not_seen_it(kind: type) -> None:
    folds = np.array([0, 2, 1, 1, 2, 0, 2, 0])
    members = [Constant(0), Constant(1), Constant(2)]
    teacher = OutOfFoldTeacher(members, folds, Constant(9))
    indices = np.array([7, 1, 3, 0, 6])
    answers = teacher.answer(kind(indices), 0, torch.zeros(5, 3, 8, 8)).logits
    assert answers[:, 0].tolist() == folds[indices].tolist()
    for fold, member in enumerate(members):
        assert (folds[member.asked] == fold).all()
    assert (teacher.valid_logits() == 9).all()
    assert not teacher.is_capturable


@pytest.mark.parametrize("side", [32, 16])
def test_it_answers_as_live_teachers_do_one_by_one(folders: Path, side: int) -> None:
    train, valid = load_splits(folders)
    views = make_views(train)
    members = [LiveTeacher(make_student(seed), views, valid, "fp32") for seed in (5, 6)]
    folds = np.arange(len(train)) % 2
    indices = np.array([5, 30, 0, 17, 4])
    images = views.render(indices, 1, side)
    answers = OutOfFoldTeacher(members, folds, members[0]).answer(indices, 1, images).logits
    for place, index in enumerate(indices):
        alone = members[index % 2].answer(indices[place : place + 1], 1, images[place : place + 1]).logits
        torch.testing.assert_close(answers[place : place + 1], alone, atol=1e-5, rtol=1e-4)


class TestStage:
    def test_the_teachers_learn_all_folds_but_one(
        self, folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        seen: list[set[str]] = []
        fit = teacher_stage._fit

        def remember(learner: object, job: TrainingJob) -> dict[str, object]:
            seen.append({*job.data.train.names})
            return fit(learner, job)  # type: ignore[arg-type]

        monkeypatch.setattr(teacher_stage, "_fit", remember)
        workspace = toolkit.open(tmp_path / "m", data=folders, settings=SMALL)
        made = workspace.teacher()
        whole = set.union(*seen)
        left_out = [whole - names for names in seen]
        assert len(whole) == 36
        assert set.union(*left_out) == whole
        assert sum(map(len, left_out)) == 36
        extra = made.info.extra
        assert extra["folds"] == 3
        assert 0 <= extra["out_of_fold_accuracy"] <= 1
        assert extra["images_seen"] == 2 * 36
        said = capsys.readouterr().err
        assert "teacher: fold 2 of 3, 24 training images, in" in said
        assert "out of fold, 0." in said
        assert not workspace.teacher().new

    @pytest.mark.parametrize("views", [0, 1])
    def test_all_stages(self, folders: Path, tmp_path: Path, views: int) -> None:
        settings = SMALL | {"distill.teacher_views": views, "bench.samples": 10, "bench.seconds": 0.1}
        workspace = toolkit.open(tmp_path / "m", data=folders, settings=settings, quiet=True)
        workspace.distill()
        assert {one.path.name for one in workspace.export()} == {"teacher.onnx", "student.onnx"}
        report = workspace.bench()
        params = {row.model: row.params for row in report.rows}
        assert params["teacher"] == 3 * params["student"]

    def test_an_interrupted_fold_goes_on_and_finished_ones_stay(
        self, folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        straight = toolkit.open(tmp_path / "straight", data=folders, settings=SMALL, quiet=True).teacher()
        fit, calls = teacher_stage._fit, []

        def stop_at_second(learner: object, job: TrainingJob) -> dict[str, object]:
            calls.append(job.model_dir.path.name)
            if len(calls) == 2:
                raise RuntimeError("a crash")
            return fit(learner, job)  # type: ignore[arg-type]

        monkeypatch.setattr(teacher_stage, "_fit", stop_at_second)
        workspace = toolkit.open(tmp_path / "m", data=folders, settings=SMALL, quiet=True)
        with pytest.raises(RuntimeError, match="a crash"):
            workspace.teacher()
        made = workspace.teacher()
        assert calls == ["0", "1", "1", "2"]
        assert Path(made.path).read_bytes()[-4096:] == Path(straight.path).read_bytes()[-4096:]

    def test_an_interrupted_force_is_resumed(
        self, folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The teacher that is there, of the same settings, is the one to be replaced."""
        settings = SMALL | {"teacher.epochs": 2}
        workspace = toolkit.open(tmp_path / "m", data=folders, settings=settings, quiet=True)
        before = Path(workspace.teacher().path).read_bytes()
        save, calls = Checkpoint.save, []

        def save_and_stop(self: Checkpoint, state: TrainingState) -> None:
            save(self, state)
            calls.append(self.path)
            if len(calls) == 3:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Checkpoint, "save", save_and_stop)
            with pytest.raises(KeyboardInterrupt):
                toolkit.open(tmp_path / "m", data=folders, settings=settings, quiet=True, force=True).teacher()
        assert calls[-1].is_file()
        options = {"force": True, "resume": True}
        made = toolkit.open(tmp_path / "m", data=folders, settings=settings, quiet=True, **options).teacher()
        assert made.new
        assert Path(made.path).read_bytes()[-4096:] == before[-4096:]
        assert not calls[-1].exists()

    @pytest.mark.parametrize("change", [{"data.split_seed": 1}, {"data.share": 0.5}])
    def test_folds_of_other_images_answer_nothing(
        self, folders: Path, tmp_path: Path, change: dict[str, object]
    ) -> None:
        flat = tmp_path / "flat"
        for name in ("train", "test"):
            shutil.copytree(folders / name, flat, dirs_exist_ok=True)
        toolkit.open(tmp_path / "m", data=flat, settings=SMALL, quiet=True).teacher()
        other = toolkit.open(tmp_path / "m", data=flat, settings=SMALL | change, quiet=True)
        with pytest.raises(ArtifactError, match=r"was trained in folds of other training images.*toolkit teacher"):
            other.distill()
        made = read_info(tmp_path / "m" / "teacher.safetensors")
        assert not has_learned_these(made, other.recipe, load_dataset(other.recipe.data))

    def test_other_words_for_the_same_images(self, folders: Path, tmp_path: Path) -> None:
        """Folders with splits of their own take no fraction."""
        toolkit.open(tmp_path / "m", data=folders, settings=SMALL, quiet=True).teacher()
        settings = SMALL | {"data.validation_fraction": 0.3}
        assert toolkit.open(tmp_path / "m", data=folders, settings=settings, quiet=True).distill().new

    def test_the_plan_counts_every_fold(
        self, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def planned(folds: int) -> float:
            flags = ["--data", str(folders), "--out", str(tmp_path / "m"), "--device", "cpu", "--json"]
            for key, value in (SMALL | {"teacher.folds": folds, "teacher.epochs": 40}).items():
                flags += ["--set", f"{key}={json.dumps(value)}"]
            app.app(["plan", *flags], standalone_mode=False)
            stages = json.loads(capsys.readouterr().out)["stages"]
            return float(next(stage["seconds"] for stage in stages if stage["name"].startswith("teacher")))

        assert planned(5) > planned(0)

    def test_a_fold_is_described(self, folders: Path, tmp_path: Path) -> None:
        toolkit.open(tmp_path / "m", data=folders, settings=SMALL, quiet=True).teacher()
        info = read_info(tmp_path / "m" / "folds" / "1" / "teacher.safetensors")
        assert (info.extra["fold"], info.architecture) == (1, "depthwise")
        whole = read_info(tmp_path / "m" / "teacher.safetensors")
        assert whole.architecture == "ensemble"
        assert [member["network"]["architecture"] for member in whole.network.settings["members"]] == ["depthwise"] * 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher.folds": 1}, r"teacher\.folds = 1 would leave all images out"),
        ({"teacher.folds": 3, "teacher.weights": "fashion-mnist"}, r"teacher\.folds is for teachers that are trained"),
        (
            {"teacher.folds": 3, "distill.method": "attention"},
            r"a method of layers reads one teacher",
        ),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe().with_overrides(settings)
