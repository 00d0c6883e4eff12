"""Training with images without labels: the loss, the stored answers, memory, processes, graphs, and going on."""

import copy
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from distill_samples import (
    SMALL,
    Recorder,
    Splits,
    ToolkitCommands,
    differences,
    flatten,
    load_splits,
    make_plan,
    make_records,
    make_student,
    make_views,
    read_lines,
    tapped,
)
from test_device_step import BATCH, COUNT, MOST_BYTES, MOST_COPIES, SIDE, Crossings, make_stepper
from test_device_step import _meta_is_a_gpu as _meta_is_a_gpu
from test_distributed import together
from test_on_a_gpu import stopping_after
from test_step import OUT_OF_MEMORY, Greedy
from test_step_graph import graphs as graphs
from torch import Tensor
from torch.nn import functional
from unlabelled_samples import make_unlabelled

import toolkit
from toolkit.data.batches import batches
from toolkit.data.mixed_views import MixedViews, Portions
from toolkit.distill import distributed
from toolkit.distill.features import TappedNetwork
from toolkit.distill.folds import OutOfFoldTeacher
from toolkit.distill.objective import NetworkOutput, learn_from_teacher
from toolkit.distill.optimization import Optimization
from toolkit.distill.plan import Plan
from toolkit.distill.step import Stepper
from toolkit.distill.student import control_settings, student_settings
from toolkit.distill.teachers import LiveTeacher
from toolkit.distill.trainer import train
from toolkit.distill.training import Training
from toolkit.errors import DataError, Interrupted, RecipeError
from toolkit.networks import registry
from toolkit.networks.weights import read_info
from toolkit.recipe import Recipe
from toolkit.stage_setup import Choice, training_setup


@pytest.fixture(scope="module")
def splits(class_folders: Path) -> Splits:
    """36 labelled images; the 12 of the second split stand for unlabelled ones, and for validation images."""
    return load_splits(class_folders)


def make_training(splits: Splits, learner: TappedNetwork, plan: Plan, ratio: float = 1.5) -> Training:
    train_pixels, valid = splits
    labelled, unlabelled = (make_views(pixels, mixup=plan.section.mixup) for pixels in (train_pixels, valid))
    portions = Portions(ratio, len(train_pixels), len(valid), plan.section.batch_size, distributed.least_batch())
    views = MixedViews(labelled, unlabelled, portions)
    teacher = LiveTeacher(make_student(seed=5), views, valid, "fp32")
    return Training(learner.train(), learn_from_teacher(plan.section), views, valid, plan, teacher)


def make_steps(training: Training, epoch: int = 0) -> list[np.ndarray]:
    order = np.random.default_rng((0, epoch)).permutation(len(training.views))
    assert isinstance(training.views, MixedViews)
    steps = batches(order, training.plan.section.batch_size, distributed.least_batch())
    return training.views.add_unlabelled(list(steps), epoch)


def stepper_of(training: Training) -> Stepper:
    return Stepper(training, Optimization.of(training.learner, training.plan.section, 100))


@pytest.mark.parametrize("mixup", [0.0, 0.3])
def test_the_loss_is_alpha_times_the_teacher_s_term_of_all_and_the_rest_of_the_labelled(
    splits: Splits, mixup: float
) -> None:
    """Against the formula, written out with torch's own losses: its value and its gradient."""
    plan = make_plan(batch_size=8, alpha=0.3, temperature=2.0, label_smoothing=0.1, mixup=mixup)
    network = Recorder()
    training = make_training(splits, tapped(network), plan)
    twin = copy.deepcopy(training.learner)
    step = make_steps(training)[0]
    loss_sum, hits = stepper_of(training).take(step, 0, 32)

    images = network.seen[0] * 0.25 + 0.5
    assert len(images) == 8 + 12, "one forward pass for both"
    own, _ = twin(images)
    with torch.no_grad():
        taught = make_student(seed=5).eval()(images)[0]
    targets = make_views(splits[0], mixup=mixup).targets(step[:8], 0)
    term = 4 * functional.kl_div(
        (own / 2).log_softmax(1), (taught / 2).log_softmax(1), reduction="batchmean", log_target=True
    )
    loss = 0.3 * term + 0.7 * functional.cross_entropy(own[:8], targets, label_smoothing=0.1)
    loss.backward()
    torch.testing.assert_close(loss_sum, loss.detach() * 20, rtol=1e-4, atol=1e-5)
    labels = torch.from_numpy(splits[0].labels[step[:8]])
    assert hits == (own[:8].argmax(1) == labels).sum()
    for ours, theirs in zip(training.learner.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("most", [20, 9, 4, 2])
@pytest.mark.parametrize("settings", [{}, {"class_weights": "balanced", "mixup": 0.3, "label_smoothing": 0.1}], ids=str)
def test_out_of_memory_halves_the_parts_and_the_gradient_stays(
    splits: Splits, most: int, settings: dict[str, object]
) -> None:
    plan = make_plan(batch_size=8, **settings)
    learners = [tapped(Greedy(99, OUT_OF_MEMORY["gpu"])), tapped(Greedy(most, OUT_OF_MEMORY["gpu"]))]
    sums = []
    for learner in learners:
        training = make_training(splits, learner, plan)
        sums.append(stepper_of(training).take(make_steps(training)[0], 0, 32))
    torch.testing.assert_close(sums[1], sums[0], rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(learners[1].parameters(), learners[0].parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def take_steps() -> dict[str, Tensor]:
    """Two epochs in batches of 8 labelled and 5 unlabelled images, so that shares differ; in float64."""
    splits = load_splits(Path(os.environ["IMAGES_OF_STEPS"]))
    student = make_student()
    distributed.synchronize_batch_norms(student, "cpu")
    student.to(torch.float64, memory_format=torch.channels_last)
    training = make_training(splits, student, make_plan(batch_size=8, mixup=0.3, class_weights="balanced"), ratio=0.6)
    stepper = stepper_of(training)
    results = {}
    for epoch in range(2):
        order = np.random.default_rng(epoch).permutation(36)
        assert isinstance(training.views, MixedViews)
        steps = training.views.add_unlabelled(list(batches(order, 8, 4)), epoch)
        for number, indices in enumerate(steps):
            loss, hits = stepper.take(indices, epoch, 32)
            results[f"{epoch}.{number}"] = torch.stack([distributed.add_up(loss), distributed.add_up(hits)])
    results |= {f"gradient of {name}": p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}
    return results | student.state_dict()


def test_two_processes_take_the_steps_of_one(
    class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGES_OF_STEPS", str(class_folders))
    expected = take_steps()
    for got in together(take_steps, tmp_path):
        assert list(got) == list(expected)
        for name, value in expected.items():
            torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("stop", [2, 6, 9, 11])
def test_a_training_that_was_stopped_goes_on_to_the_same_bit(splits: Splits, tmp_path: Path, stop: int) -> None:
    """36 labelled images in batches of 8 are 5 steps per epoch; 54 unlabelled ones per epoch go around 12 images."""
    plan = make_plan(epochs=3, batch_size=8, mixup=0.3, ema=0.9, schedule="one-cycle", warm_up=0.25)

    def go_on(folder: Path) -> None:
        state = make_records(folder).checkpoint.open(resume=True, force=False)
        train(make_training(splits, make_student(), plan), make_records(folder, state))

    go_on(tmp_path / "whole")
    with stopping_after(stop), pytest.raises(Interrupted):
        go_on(tmp_path / "stopped")
    go_on(tmp_path / "stopped")
    whole, stopped = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("whole", "stopped"))
    assert list(differences(stopped, whole)) == []
    assert whole["progress"]["images_seen"] == 3 * (36 + 54)
    line = read_lines(tmp_path / "whole" / "metrics.jsonl")[-1]
    assert 0 <= line["train_accuracy"] <= 1


@pytest.mark.usefixtures("_meta_is_a_gpu")
@pytest.mark.parametrize("how", ["live", "stored"])
@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("distill.class_weights=balanced", "distill.logit_adjustment=1.0"),
        ("distill.mixup=0.3", "distill.class_weights=balanced"),
    ],
    ids=str,
)
def test_a_step_stays_on_the_device(how: str, settings: tuple[str, ...]) -> None:
    stepper, _ = make_stepper(how, "meta", "distill.unlabelled_ratio=0.5", *settings, unlabelled=20)
    whole = np.arange(BATCH + BATCH // 2) % 20
    for _ in range(2):
        stepper.take(whole, 0, SIDE)
    with Crossings() as crossings:
        loss, hits = stepper.take(whole, 0, SIDE)
    assert loss.device.type == hits.device.type == "meta"
    assert crossings.read == 0
    assert len(crossings.sent) <= MOST_COPIES, crossings.sent
    assert crossings.on_host <= MOST_BYTES


@pytest.mark.parametrize("how", ["live", "stored"])
@pytest.mark.parametrize(
    "settings", [(), ("distill.mixup=0.3", "distill.ema=0.9", "data.rotation_degrees=15.0")], ids=str
)
def test_replayed_steps_end_as_eager_ones(graphs: SimpleNamespace, how: str, settings: tuple[str, ...]) -> None:
    """Three epochs of four steps; each replay takes the next images of both kinds, in the view of its epoch."""
    ends = []
    for replays in (True, False):
        stepper, _ = make_stepper(how, "cpu", "distill.unlabelled_ratio=0.5", *settings, as_on_gpu=True, unlabelled=20)
        stepper._use_graph()
        if not replays:
            stepper._graph = None
        views, sums = stepper._views, []
        assert isinstance(views, MixedViews)
        for epoch in range(3):
            order = np.random.default_rng(epoch).permutation(COUNT)
            whole = views.upload(np.concatenate(views.add_unlabelled(list(batches(order, BATCH, 2)), epoch)))
            size = BATCH + BATCH // 2
            for start in range(0, len(whole), size):
                sums.append(stepper.take(whole[start : start + size], epoch % 2, SIDE))
        ends.append({"state": vars(stepper.state()), "sums": sums})
    assert graphs.captured == 1
    assert graphs.replayed == 12 - 3
    assert list(differences(*ends)) == []


def test_views_as_on_a_gpu_are_those_of_the_cpu() -> None:
    ends = []
    for as_on_gpu, has_room in ((False, True), (True, True), (True, False)):
        stepper, learner = make_stepper(
            "live", "cpu", "distill.mixup=0.3", as_on_gpu=as_on_gpu, has_room=has_room, unlabelled=20
        )
        for epoch in range(2):
            for start in (0, 8):
                batch = np.concatenate((np.arange(start, start + BATCH), np.arange(16)))
                stepper.expect([batch], epoch)
                stepper.take(batch, epoch, SIDE)
        ends.append(flatten(learner.state_dict()))
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])


# The whole way, through the Python interface.

WHOLE: dict[str, Any] = {
    "data": {"image_size": 32, "resize": 36},
    "training.precision": "fp32",
    "teacher": {"architecture": "depthwise", "base": 4, "epochs": 1, "batch_size": 12},
    "student": {"architecture": "depthwise", "base": 4},
    "distill": {"epochs": 3, "batch_size": 12, "control": True},
    "export": {"max_drop": 1.0},
    "bench": {"samples": 10, "seconds": 0.1, "batch_sizes": [1]},
}


def open_workspace(
    path: Path, data: Path, folder: Path | None, more: dict[str, Any] | None = None
) -> toolkit.Workspace:
    settings = {**WHOLE, **({"data.unlabelled": [folder]} if folder else {}), **(more or {})}
    return toolkit.open(path, data=data, settings=settings)


@pytest.mark.parametrize(("views", "teacher_size"), [(2, 32), (0, 64)])
def test_all_stages_with_live_and_stored_answers(
    class_folders: Path, tmp_path: Path, views: int, teacher_size: int, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_unlabelled(tmp_path / "more")
    settings = {"distill.teacher_views": views, "teacher.image_size": teacher_size, "distill.unlabelled_ratio": 0.5}
    workspace = open_workspace(tmp_path / "m", class_folders, folder, settings)
    made = workspace.distill()
    assert made.new
    assert made.info.extra["unlabelled_images"] == 14
    assert made.info.extra["images_seen"] == 3 * (36 + 18)
    said = capsys.readouterr().err
    assert f"unlabelled: 14 images in {folder}; each step has 0.5 of them per labelled image" in said
    if views:
        assert "2 views of 36 images to compute once" in said
        assert "2 views of 14 unlabelled images to compute once" in said
    assert not workspace.distill().new
    workspace.export()
    report = workspace.bench()
    assert report.distillation.unlabelled_images == 14
    text = (tmp_path / "m" / "report.md").read_text()
    sentence = "learned from the teacher's answers on 14 images without labels; the control saw none of them."
    assert sentence in text
    assert sentence in (tmp_path / "m" / "README.md").read_text()


def test_stored_answers_are_the_live_ones_in_the_same_views(class_folders: Path, tmp_path: Path) -> None:
    """As many views as epochs: both trainings show the same and are told the same, up to rounding."""
    folder = make_unlabelled(tmp_path / "more")
    results = []
    for name, views in (("live", 0), ("stored", 3)):
        workspace = open_workspace(tmp_path / name, class_folders, folder, {"distill.teacher_views": views})
        if results:
            (tmp_path / name).mkdir()
            (tmp_path / name / "teacher.safetensors").write_bytes(
                (tmp_path / "live" / "teacher.safetensors").read_bytes()
            )
        workspace.distill()
        results.append(read_lines(tmp_path / name / "metrics.jsonl"))
    live, stored = ([line for line in lines if line["stage"] == "distill"] for lines in results)
    for epoch, (ours, theirs) in enumerate(zip(stored, live, strict=True)):
        tolerance = 0.05 if epoch else 1e-3  # rounding grows with the steps
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=tolerance)


def test_labelled_answers_stay_in_the_store_when_unlabelled_images_come(
    class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"distill.teacher_views": 2, "training.seed": 77}
    open_workspace(tmp_path / "m", class_folders, None, settings).distill()
    (tmp_path / "m" / "student.safetensors").unlink()
    capsys.readouterr()
    open_workspace(tmp_path / "m", class_folders, make_unlabelled(tmp_path / "more", 9), settings).distill()
    said = capsys.readouterr().err
    assert "2 views of 36 images from the store" in said
    assert "2 views of 9 unlabelled images to compute once" in said


def test_the_control_sees_none_of_them(class_folders: Path, tmp_path: Path) -> None:
    """Its weights are the same to the bit, with and without; the student's are not."""
    for name, folder in (("with", make_unlabelled(tmp_path / "more")), ("without", None)):
        open_workspace(tmp_path / name, class_folders, folder).distill()
    for role, same in (("teacher", True), ("control", True), ("student", False)):
        one, other = (
            torch.cat([value.double().flatten() for value in toolkit_tensors(tmp_path / name / f"{role}.safetensors")])
            for name in ("with", "without")
        )
        assert torch.equal(one, other) == same, role


def toolkit_tensors(path: Path) -> list[Tensor]:
    from safetensors.torch import load_file

    return list(load_file(path).values())


def test_the_student_depends_on_their_content_and_the_control_does_not(class_folders: Path, tmp_path: Path) -> None:
    folder = make_unlabelled(tmp_path / "more")
    teacher = tmp_path / "teacher.safetensors"
    teacher.write_bytes(b"")
    setups = [
        training_setup(Choice(Recipe(), str(class_folders), tmp_path / "m", settings), "cpu")
        for settings in (
            {},
            {"data.unlabelled": [str(folder)]},
            {"data.unlabelled": [str(make_unlabelled(tmp_path / "two"))]},
        )
    ]
    students = [
        student_settings(setup.recipe, setup.dataset, teacher, setup.unlabelled.sha256 if setup.unlabelled else None)
        for setup in setups
    ]
    assert students[0] != students[1]
    assert students[1] == students[2], "another place, the same content"
    controls = [control_settings(setup.recipe, setup.dataset) for setup in setups]
    assert controls[0] == controls[1]


def test_files_of_earlier_versions_stay_up_to_date() -> None:
    """The new settings at their defaults are in no fingerprint."""
    parts = ("data", "student", "distill", "teacher", "training")
    plain = Recipe().fingerprint(*parts)
    assert Recipe().with_overrides({"data.unlabelled": ["x"]}).fingerprint(*parts) == plain
    for setting, value in {
        "distill.unlabelled_ratio": 2.0,
        "distill.class_weights": "balanced",
        "teacher.class_weights": "balanced",
        "distill.logit_adjustment": 1.0,
        "teacher.logit_adjustment": 0.5,
    }.items():
        changed = Recipe().with_overrides({setting: value})
        assert changed.fingerprint(*parts) != plain
        concerns_control = setting.startswith("distill.") and "unlabelled" not in setting
        assert (changed.control_fingerprint() != Recipe().control_fingerprint()) == concerns_control


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"distill.alpha": 0.0}, "data.unlabelled needs the teacher's answers in the loss: set distill.alpha above 0"),
        ({"distill.method": "attention", "distill.feature_weight": 0.0}, "set distill.feature_weight above 0"),
        ({"distill.method": "dkd"}, "dkd needs the label of every image: with data.unlabelled, use distill.method=kd"),
    ],
    ids=str,
)
def test_a_loss_that_unlabelled_images_cannot_have_is_refused(settings: dict[str, Any], message: str) -> None:
    Recipe().with_overrides(settings)
    with pytest.raises(RecipeError, match=message):
        Recipe().with_overrides(settings | {"data.unlabelled": ["folder"]})


@pytest.mark.parametrize("method", ["dist", "hard", "attention", "kd+similarity"])
def test_other_methods_take_them(class_folders: Path, tmp_path: Path, method: str) -> None:
    folder = make_unlabelled(tmp_path / "more")
    settings = {"distill.method": method, "distill.control": False, "distill.epochs": 1}
    made = open_workspace(tmp_path / "m", class_folders, folder, settings).distill()
    assert made.info.extra["images_seen"] == 72


def test_wrong_values_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r'write a list of folders: \["more"\]'):
        Recipe().with_overrides({"data.unlabelled": "more"})
    with pytest.raises(RecipeError, match="a folder has no name"):
        Recipe().with_overrides({"data.unlabelled": [""]})
    with pytest.raises(DataError, match="'nowhere' is not an existing folder"):
        toolkit.open(tmp_path / "m", settings={"data.unlabelled": ["nowhere"]})


def test_a_ratio_that_gives_no_step_any_is_refused(class_folders: Path, tmp_path: Path) -> None:
    """Before any work, if that follows from the settings, and else before the student's."""
    folder = make_unlabelled(tmp_path / "more")
    with pytest.raises(RecipeError, match=r"unlabelled_ratio = 0\.01: no step of 12 gets an unlabelled image"):
        open_workspace(tmp_path / "m", class_folders, folder, {"distill.unlabelled_ratio": 0.01})
    few = {"distill.unlabelled_ratio": 0.01, "distill.batch_size": 100}  # 36 images in a single step
    with pytest.raises(RecipeError, match=r"ratio = 0\.01: no step of 100 gets an unlabelled image; set it to 0\.028"):
        open_workspace(tmp_path / "m", class_folders, folder, few).distill()


@pytest.mark.parametrize("views", [0, 2])
def test_a_teacher_in_folds_answers_them_as_a_whole(
    class_folders: Path, tmp_path: Path, views: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And labelled images by the part that has not seen them: each kind goes its own way, live and stored."""
    asked: list[int] = []
    answer = OutOfFoldTeacher.answer

    def count(self: OutOfFoldTeacher, indices: Any, view: int, images: Tensor) -> NetworkOutput:
        asked.append(len(indices))
        return answer(self, indices, view, images)

    monkeypatch.setattr(OutOfFoldTeacher, "answer", count)
    folder = make_unlabelled(tmp_path / "more")
    settings = {"teacher.folds": 2, "distill.teacher_views": views, "distill.control": False, "distill.epochs": 2}
    made = open_workspace(tmp_path / "m", class_folders, folder, settings).distill()
    assert made.info.extra["images_seen"] == 2 * 72
    assert sum(asked) == 2 * 36, "of the labelled images alone"


def test_a_teacher_of_some_classes_cannot_answer_them(
    class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows whether an unlabelled image is of a class that the teacher does not know."""
    folder = make_unlabelled(tmp_path / "more")
    workspace = open_workspace(tmp_path / "m", class_folders, folder)
    workspace.teacher()
    spec_of = registry.spec_of
    monkeypatch.setattr(registry, "spec_of", lambda network: replace(spec_of(network), columns=(0, -1, 1)))
    with pytest.raises(RecipeError, match=r"data\.unlabelled needs a teacher that knows all classes of the data"):
        workspace.distill()


def test_nothing_but_copies_of_test_images_is_refused(class_folders: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copies"
    folder.mkdir()
    for number, path in enumerate(sorted((class_folders / "test").rglob("*.png"))):
        (folder / f"{number}.png").write_bytes(path.read_bytes())
    with pytest.raises(DataError, match="all images are copies of validation and test images"):
        open_workspace(tmp_path / "m", class_folders, folder).distill()


def test_a_folder_that_is_relative_stays_found_from_another_directory(
    class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_unlabelled(tmp_path / "more", 6)
    monkeypatch.chdir(tmp_path)
    workspace = open_workspace(tmp_path / "m", class_folders, Path("more"), {"distill.control": False})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert workspace.distill().info.extra["unlabelled_images"] == 6


def test_the_command_and_its_plan(class_folders: Path, tmp_path: Path) -> None:
    """`plan` before, `distill` with two folders, and the same again."""
    commands = ToolkitCommands(tmp_path)
    folders = [
        make_unlabelled(tmp_path / name, 6, size=(40 + number, 48)) for number, name in enumerate(("one", "two"))
    ]
    out = ("--out", tmp_path / "m")
    flags = [*SMALL, "--data", class_folders, *(word for folder in folders for word in ("--unlabelled", folder))]
    said = commands.run("plan", *flags, *out)
    assert "plan: unlabelled: 12 images" in said
    assert "plan: student: 72 images" in said
    assert "1 unlabelled per labelled image" in said
    commands.run("distill", *flags, *out)
    assert read_info(tmp_path / "m" / "student.safetensors").extra["unlabelled_images"] == 12
    assert "student.safetensors is up to date" in commands.run("distill", *flags, *out)
    said = commands.run("distill", *SMALL, "--data", class_folders, *out, code=1)
    assert "was made from another unlabelled set" in said
