"""The training engine on small images: it learns, keeps the best epoch, repeats itself, and stops on nonsense."""

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distill_samples import (
    Recorder,
    Splits,
    flatten,
    load_splits,
    make_plan,
    make_records,
    make_student,
    make_views,
    read_lines,
    tapped,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_post_hook

from toolkit.data.batches import TrainingViews, batches
from toolkit.distill import trainer
from toolkit.distill.checkpoint import Checkpoint, TrainingState
from toolkit.distill.evaluation import compute_logits
from toolkit.distill.features import TappedNetwork
from toolkit.distill.objective import NetworkOutput, Objective, learn_from_labels
from toolkit.distill.teachers import LiveTeacher
from toolkit.distill.trainer import BestWeights, train
from toolkit.distill.training import Training
from toolkit.errors import TrainingError, WeightsError

LABELS = learn_from_labels(0.0)


@pytest.fixture(scope="module")
def splits(class_folders: Path) -> Splits:
    return load_splits(class_folders)


def run(
    splits: Splits, folder: Path, learner: TappedNetwork | None = None, objective: Objective = LABELS, **settings: Any
) -> BestWeights:
    """Train a student, or `learner`, without a teacher."""
    plan = make_plan(**settings)
    views = make_views(splits[0], mixup=plan.section.mixup, seed=plan.seed)
    return train(Training(learner or make_student(), objective, views, splits[1], plan), make_records(folder))


def test_training_learns_and_returns_its_best_epoch(splits: Splits, tmp_path: Path) -> None:
    # Slow and long enough that it learns whatever the rounding of this CPU's vector instructions does to its path.
    result = run(splits, tmp_path, epochs=16, learning_rate=0.005)
    lines = read_lines(tmp_path / "metrics.jsonl")
    assert [line["epoch"] for line in lines] == list(range(16))
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]
    assert result.best.valid_accuracy == max(line["valid_accuracy"] for line in lines) >= 0.9
    assert (result.epochs, result.images_seen) == (16, 16 * 36)

    restored = make_student(seed=9).classifier
    restored.network.load_state_dict(result.state_dict)
    logits = compute_logits(restored, splits[1], "fp32", "cpu")
    labels = torch.from_numpy(splits[1].labels)
    assert (logits.argmax(1) == labels).float().mean().item() == pytest.approx(result.best.valid_accuracy)
    assert F.cross_entropy(logits, labels).item() == pytest.approx(result.best.valid_loss, rel=1e-5)


def test_the_best_epoch_is_kept_though_a_worse_one_follows(splits: Splits, tmp_path: Path) -> None:
    """An objective that learns for five epochs and unlearns afterwards."""
    calls = itertools.count()

    def objective(student: NetworkOutput, target: Tensor, teacher: NetworkOutput | None, *_: object) -> Tensor:
        loss = F.cross_entropy(student.logits, target)
        return loss if not student.logits.requires_grad or next(calls) < 30 else -loss

    result = run(splits, tmp_path, objective=objective, epochs=7)
    accuracies = [line["valid_accuracy"] for line in read_lines(tmp_path / "metrics.jsonl")]
    assert accuracies[-1] < max(accuracies)
    assert result.best.epoch == accuracies.index(max(accuracies))
    shipped = make_student(seed=9).classifier
    shipped.network.load_state_dict(result.state_dict)
    hits = compute_logits(shipped, splits[1], "fp32", "cpu").argmax(1) == torch.from_numpy(splits[1].labels)
    assert hits.float().mean().item() == pytest.approx(max(accuracies))


def test_metrics_lines_have_the_fields_of_the_contract(splits: Splits, tmp_path: Path) -> None:
    metrics_file = tmp_path / "metrics.jsonl"
    metrics_file.write_text('{"stage": "teacher", "epoch": 0}\n{"stage": "distill", "epoch": 7}\n')
    run(splits, tmp_path, epochs=1)
    lines = read_lines(metrics_file)
    assert [(line["stage"], line["epoch"]) for line in lines] == [("teacher", 0), ("distill", 0)]
    assert set(lines[1]) == {
        *("stage", "epoch", "train_loss", "train_accuracy", "valid_loss", "valid_accuracy"),
        *("train_img_s", "seconds", "learning_rate", "image_size"),
    }
    assert lines[1]["learning_rate"] == 0.05
    assert lines[1]["image_size"] == 32


def test_training_figures_are_means_over_all_images(splits: Splits, tmp_path: Path) -> None:
    """36 images in batches of 16, 16 and 4, of a network that stays as it is."""
    learner = tapped(Recorder())
    run(splits, tmp_path, learner, epochs=1, batch_size=16, learning_rate=1e-12)
    views, everyone = make_views(splits[0]), np.arange(36)
    logits = learner(views.render(everyone, 0))[0]
    (line,) = read_lines(tmp_path / "metrics.jsonl")
    assert line["train_loss"] == pytest.approx(F.cross_entropy(logits, views.labels(everyone)).item(), rel=1e-5)
    assert line["train_accuracy"] == pytest.approx((logits.argmax(1) == views.labels(everyone)).float().mean().item())


def test_same_seed_same_weights_other_seed_other_weights(splits: Splits, tmp_path: Path) -> None:
    first, again, other = (flatten(run(splits, tmp_path, epochs=2, seed=seed).state_dict) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_teacher_and_student_see_the_same_views_each_with_its_own_normalisation(splits: Splits, tmp_path: Path) -> None:
    student, teacher = tapped(Recorder(), 0.0, 1.0), tapped(Recorder(), 0.5, 2.0)
    teacher.requires_grad_(False)
    before = [p.clone() for p in teacher.parameters()]

    def objective(student: NetworkOutput, target: Tensor, teacher: NetworkOutput | None, *_: object) -> Tensor:
        assert teacher is not None
        assert not teacher.logits.requires_grad
        return F.mse_loss(student.logits, teacher.logits)

    views = make_views(splits[0], mixup=0.4)
    answering = LiveTeacher(teacher, views, splits[1], "fp32")
    train(Training(student, objective, views, splits[1], make_plan(epochs=2), answering), make_records(tmp_path))
    students = [v for v in student.classifier.network.seen if len(v) == 6]
    teachers = [v for v in teacher.classifier.network.seen if len(v) == 6]
    assert len(students) == len(teachers) == 12
    for ours, theirs in zip(students, teachers, strict=True):
        torch.testing.assert_close((ours - 0.5) / 2, theirs)
    assert not torch.equal(students[0], students[6]), "another epoch shows other views"
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))


def test_sizes_grow_as_planned_for_the_student_and_the_teacher_sees_all_at_full_size(
    splits: Splits, tmp_path: Path
) -> None:
    student, teacher = tapped(Recorder(), 0.0, 1.0), tapped(Recorder(), 0.0, 1.0)
    plan = make_plan(epochs=5, start_image_size=16, grow_until=0.8, batch_size=36)
    views = make_views(splits[0])

    def objective(student: NetworkOutput, target: Tensor, teacher: NetworkOutput | None, *_: object) -> Tensor:
        return F.cross_entropy(student.logits, target)

    answering = LiveTeacher(teacher, views, splits[1], "fp32")
    train(Training(student, objective, views, splits[1], plan, answering), make_records(tmp_path))
    # one batch of all 36 images per epoch; validation shows 12
    planned = [plan.image_size_of(epoch) for epoch in range(5)]
    assert len(set(planned)) >= 3
    seen = [batch for batch in student.classifier.network.seen if len(batch) == 36]
    assert [batch.shape[-1] for batch in seen] == planned
    assert [line["image_size"] for line in read_lines(tmp_path / "metrics.jsonl")] == planned
    shown = [batch for batch in teacher.classifier.network.seen if len(batch) == 36]
    assert [batch.shape[-1] for batch in shown] == [32] * 5
    for ours, theirs in zip(seen, shown, strict=True):  # the same views: colours agree, whatever the size
        torch.testing.assert_close(ours.mean((2, 3)), theirs.mean((2, 3)), atol=0.03, rtol=0)


def test_shipped_weights_are_the_exponential_average_of_those_after_each_step(splits: Splits, tmp_path: Path) -> None:
    learner = make_student()
    steps: list[dict[str, Tensor]] = []
    hook = register_optimizer_step_post_hook(
        lambda *_: steps.append({k: v.double().clone() for k, v in learner.classifier.network.state_dict().items()})
    )
    try:
        result = run(splits, tmp_path, learner, epochs=1, ema=0.8, learning_rate=0.01)
    finally:
        hook.remove()
    assert len(steps) == 6
    expected = steps[0]
    for step in steps[1:]:
        expected = {name: 0.8 * expected[name] + 0.2 * value for name, value in step.items()}
    moved = 0
    for name, value in result.state_dict.items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6, msg=name)
            moved += not torch.allclose(value.double(), steps[-1][name], rtol=1e-3)
    assert moved > 10, "the average is not just the last step's weights"

    averaged = make_student(seed=9).classifier
    averaged.network.load_state_dict(result.state_dict)
    logits = compute_logits(averaged, splits[1], "fp32", "cpu")
    loss = F.cross_entropy(logits, torch.from_numpy(splits[1].labels)).item()
    assert result.best.valid_loss == pytest.approx(loss, rel=1e-5), "validation is of the averaged weights"


def test_patience_stops_and_says_so(splits: Splits, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    result = run(splits, tmp_path, tapped(Recorder()), epochs=9, patience=2, learning_rate=1e-12)
    assert (result.epochs, result.best.epoch, result.images_seen) == (3, 0, 3 * 36)
    assert len(read_lines(tmp_path / "metrics.jsonl")) == 3
    assert "student: stopped after epoch 3, none of the last 2 was better than epoch 1 " in capsys.readouterr().err


def test_patience_waits_as_long_as_it_gets_better(splits: Splits, tmp_path: Path) -> None:
    result = run(splits, tmp_path, epochs=5, patience=4)
    assert result.epochs == 5


def nan_from(call: int) -> Objective:
    """Cross-entropy, not a number from training step `call` (from 1) on."""
    calls = itertools.count(1)

    def objective(student: NetworkOutput, target: Tensor, teacher: NetworkOutput | None, *_: object) -> Tensor:
        loss = F.cross_entropy(student.logits, target)
        return loss * float("nan") if student.logits.requires_grad and next(calls) >= call else loss

    return objective


def test_a_loss_that_is_not_finite_stops_with_its_step_and_remedy(splits: Splits, tmp_path: Path) -> None:
    message = (
        r"student: the loss is not finite at epoch 1, step 3 \(learning rate 0.05\); no state was saved yet;"
        r" start over with --force and distill.learning_rate=0.017"
    )
    with pytest.raises(TrainingError, match=message):
        run(splits, tmp_path, objective=nan_from(3))


def test_the_first_loss_is_not_the_learning_rate_s_fault(splits: Splits, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"step 1, before any weight has changed; .*no learning rate mends that"):
        run(splits, tmp_path, objective=nan_from(1))


def test_a_teacher_that_answers_nan_is_refused_before_its_student_is_trained(splits: Splits, tmp_path: Path) -> None:
    plan, views, teacher = make_plan(), make_views(splits[0]), make_student(seed=5)
    with torch.no_grad():
        next(module for module in teacher.modules() if isinstance(module, nn.BatchNorm2d)).running_var.fill_(-1)
    live = LiveTeacher(teacher, views, splits[1], "fp32")
    training = Training(make_student(), LABELS, views, splits[1], plan, live)
    with pytest.raises(WeightsError, match=r"the teacher answers val/\S+ with values that are not finite; give other"):
        train(training, make_records(tmp_path))
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_network_with_slow_statistics_is_validated_with_those_of_its_images(splits: Splits, tmp_path: Path) -> None:
    learner = make_student()
    for module in learner.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0003
    result = run(splits, tmp_path, learner, epochs=16, learning_rate=0.005)
    assert result.best.valid_accuracy >= 0.9


def test_a_loss_that_is_not_finite_later_names_the_last_good_state(splits: Splits, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    message = rf"not finite at epoch 2, step 5 \(learning rate 0.05\); the last good state is {re.escape(str(path))}"
    with pytest.raises(TrainingError, match=message):
        run(splits, tmp_path, objective=nan_from(6 + 5))
    state = torch.load(path, weights_only=True)
    assert state["progress"]["epoch"] == 1
    assert all(value.isfinite().all() for value in state["learner"].values())
    assert [line["epoch"] for line in read_lines(tmp_path / "metrics.jsonl")] == [0]


def test_weights_that_the_last_step_of_an_epoch_broke_are_not_saved_as_good(splits: Splits, tmp_path: Path) -> None:
    """Its loss was still finite: only validation shows it."""
    learner, steps = make_student(), itertools.count(1)

    def break_at_step_12(*_: object) -> None:
        if next(steps) == 12:
            with torch.no_grad():
                next(learner.parameters()).fill_(float("nan"))

    hook = register_optimizer_step_post_hook(break_at_step_12)
    try:
        with pytest.raises(TrainingError, match=r"not finite at epoch 2, step 6 .*the last good state is"):
            run(splits, tmp_path, learner)
    finally:
        hook.remove()
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["progress"]["epoch"] == 1
    assert all(value.isfinite().all() for value in state["learner"].values())


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[int], int]]:
    """The images that were rendered, batch by batch, and their view."""
    shown: list[tuple[list[int], int]] = []
    render = TrainingViews.render

    def note(self: TrainingViews, indices: np.ndarray, view: int, side: int | None = None) -> Tensor:
        shown.append((indices.tolist(), view))
        return render(self, indices, view, side)

    monkeypatch.setattr(TrainingViews, "render", note)
    return shown


@pytest.mark.parametrize(
    ("of_plan", "expected"),
    [
        ({"teacher_views": 2}, [0, 1, 0, 1, 0]),
        ({"teacher_views": 0}, [0, 1, 2, 3, 4]),
    ],
)
def test_views_cycle_if_the_teacher_s_answers_are_stored_without_a_teacher_too(
    splits: Splits, tmp_path: Path, rendered: list[tuple[list[int], int]], of_plan: dict[str, Any], expected: list[int]
) -> None:
    run(splits, tmp_path, tapped(Recorder()), epochs=5, batch_size=36, role="control", **of_plan)
    assert [view for _, view in rendered] == expected


def test_every_image_is_seen_once_per_epoch_in_another_order(
    splits: Splits, tmp_path: Path, rendered: list[tuple[list[int], int]]
) -> None:
    run(splits, tmp_path, tapped(Recorder()), epochs=2, batch_size=12)
    shown = [index for batch, _ in rendered for index in batch]
    assert sorted(shown[:36]) == sorted(shown[36:]) == list(range(36))
    assert list(range(36)) != shown[:36] != shown[36:]


def test_a_checkpoint_is_written_within_an_epoch_when_the_last_one_is_long_ago(
    splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places: list[tuple[int, int]] = []
    save = Checkpoint.save

    def note(self: Checkpoint, state: TrainingState) -> None:
        places.append((state.progress.epoch, state.progress.step))
        save(self, state)

    monkeypatch.setattr(Checkpoint, "save", note)
    monkeypatch.setattr(trainer, "SAVE_SECONDS", 0.0)
    run(splits, tmp_path, epochs=1, batch_size=18)
    assert places == [(0, 1), (0, 2), (1, 0)]
    places.clear()
    monkeypatch.setattr(trainer, "SAVE_SECONDS", 1e9)
    run(splits, tmp_path, epochs=2, batch_size=18)
    assert places == [(1, 0), (2, 0)]


def test_on_a_gpu_checkpoints_are_written_by_time_and_at_the_end(
    splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If an epoch takes seconds, one checkpoint per epoch would be a fifth of the time."""
    places: list[tuple[int, int]] = []
    monkeypatch.setattr(Checkpoint, "save", lambda _, state: places.append((state.epoch, state.progress.step)))
    monkeypatch.setattr(trainer._Run, "_saves_every_epoch", lambda _: False)
    monkeypatch.setattr(trainer, "SAVE_SECONDS", 1e9)
    monkeypatch.setattr(trainer, "SAVE_SECONDS_AT_END", 0.0)
    run(splits, tmp_path, epochs=3, batch_size=18)
    assert places == [(3, 0)]
    places.clear()
    run(splits, tmp_path, tapped(Recorder()), epochs=9, patience=2, learning_rate=1e-12)
    assert places == [(3, 0)], "the end comes early"
    places.clear()
    monkeypatch.setattr(trainer, "SAVE_SECONDS", 0.0)
    run(splits, tmp_path, epochs=2, batch_size=18)
    assert places == [(0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0)]


def test_a_last_batch_of_one_joins_the_one_before() -> None:
    assert [b.tolist() for b in batches(np.arange(7), 3, 2)] == [[0, 1, 2], [3, 4, 5, 6]]
    assert [b.tolist() for b in batches(np.arange(7), 3, 1)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [b.tolist() for b in batches(np.arange(1), 3, 2)] == [[0]]
    assert [len(b) for b in batches(np.arange(8), 3, 2)] == [3, 3, 2]
    assert [len(b) for b in batches(np.arange(11), 4, 4)] == [4, 7]
    assert list(batches(np.arange(0), 3, 2)) == []
