"""The training engine on small images: it learns, keeps the best epoch, repeats itself, and stops on nonsense."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from toolkit.data.pixels import Pixels, load_pixels
from toolkit.data.preprocess import Preprocess
from toolkit.data.sources import load_dataset
from toolkit.distill import trainer
from toolkit.distill.teacher import cross_entropy
from toolkit.distill.trainer import Plan, compute_logits, make_optimizer, make_scheduler, train
from toolkit.errors import TrainingError
from toolkit.networks.classifier import Classifier
from toolkit.networks.student import DepthwiseStudent
from toolkit.recipe import DataRecipe, DistillRecipe

DATA = DataRecipe(image_size=32, resize=0, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


@pytest.fixture(scope="module")
def splits(class_folders: Path) -> tuple[Pixels, Pixels]:
    data = DATA.model_copy(update={"source": str(class_folders)})
    dataset = load_dataset(data)
    preprocess = Preprocess.from_recipe(data)
    return load_pixels(dataset, "train", preprocess), load_pixels(dataset, "valid", preprocess)


def plan(stage: trainer.Stage = "distill", **settings: object) -> Plan:
    section = DistillRecipe.model_validate(
        {"epochs": 4, "batch_size": 6, "learning_rate": 0.05, "schedule": "constant", **settings}
    )
    return Plan.of(stage, section, precision="fp32", seed=0, device="cpu")


def new_student(seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    return Classifier(DepthwiseStudent(3, base=4), DATA.mean, DATA.std)


def test_training_learns_and_returns_its_best_epoch(splits: tuple[Pixels, Pixels], tmp_path: Path) -> None:
    network, metrics_file = new_student(), tmp_path / "metrics.jsonl"
    result = train(network, cross_entropy(0), *splits, plan(epochs=6), DATA, metrics_file)
    lines = [json.loads(line) for line in metrics_file.read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(6))
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]
    assert result.best.valid_accuracy == max(line["valid_accuracy"] for line in lines) >= 0.9
    assert result.images_seen == 6 * 36

    restored = new_student(seed=9)
    restored.network.load_state_dict(result.state_dict)
    logits = compute_logits(restored, splits[1], "fp32", "cpu")
    labels = torch.from_numpy(splits[1].labels)
    assert (logits.argmax(1) == labels).float().mean().item() == pytest.approx(result.best.valid_accuracy)
    assert F.cross_entropy(logits, labels).item() == pytest.approx(result.best.valid_loss, rel=1e-5)


def test_metrics_lines_have_the_fields_of_the_contract(splits: tuple[Pixels, Pixels], tmp_path: Path) -> None:
    metrics_file = tmp_path / "metrics.jsonl"
    metrics_file.write_text('{"stage": "teacher", "epoch": 0}\n{"stage": "distill", "epoch": 7}\n')
    train(new_student(), cross_entropy(0), *splits, plan(epochs=1), DATA, metrics_file)
    lines = [json.loads(line) for line in metrics_file.read_text().splitlines()]
    assert [(line["stage"], line["epoch"]) for line in lines] == [("teacher", 0), ("distill", 0)]
    assert set(lines[1]) == {
        *("stage", "epoch", "train_loss", "train_accuracy", "valid_loss", "valid_accuracy"),
        *("train_img_s", "seconds", "learning_rate", "image_size"),
    }
    assert lines[1]["learning_rate"] == 0.05
    assert lines[1]["image_size"] == 32


def test_same_seed_same_weights_other_seed_other_weights(splits: tuple[Pixels, Pixels], tmp_path: Path) -> None:
    def weights(seed: int) -> torch.Tensor:
        settings = plan(epochs=2)
        settings = Plan(**{**vars(settings), "seed": seed})
        result = train(new_student(), cross_entropy(0), *splits, settings, DATA, tmp_path / "m.jsonl")
        return torch.cat([value.double().flatten() for value in result.state_dict.values()])

    first = weights(0)
    assert torch.equal(first, weights(0))
    assert not torch.equal(first, weights(1))


class Recorder(nn.Module):
    """Remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []
        self.layer = nn.Linear(3, 3)

    def forward(self, views: torch.Tensor) -> torch.Tensor:
        self.seen.append(views.detach().clone())
        logits: torch.Tensor = self.layer(views.mean((2, 3)))
        return logits


def test_teacher_and_student_see_the_same_views_each_with_its_own_normalisation(
    splits: tuple[Pixels, Pixels], tmp_path: Path
) -> None:
    student, teacher = (
        Classifier(Recorder(), (0.0,) * 3, (1.0,) * 3),
        Classifier(Recorder(), (0.5,) * 3, (2.0,) * 3),
    )
    teacher.requires_grad_(False)
    before = [p.clone() for p in teacher.parameters()]

    def loss(logits: torch.Tensor, labels: torch.Tensor, teacher_logits: torch.Tensor | None) -> torch.Tensor:
        assert teacher_logits is not None
        assert not teacher_logits.requires_grad
        return F.mse_loss(logits, teacher_logits)

    train(student, loss, *splits, plan(epochs=2), DATA, tmp_path / "m.jsonl", teacher=teacher)
    students = [v for v in student.network.seen if len(v) == 6]
    teachers = [v for v in teacher.network.seen if len(v) == 6]
    assert len(students) == len(teachers) == 12
    for ours, theirs in zip(students, teachers, strict=True):
        torch.testing.assert_close((ours - 0.5) / 2, theirs)
    assert not torch.equal(students[0], students[6]), "another epoch shows other views"
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))


def test_a_loss_that_is_not_finite_stops_with_step_and_remedy(splits: tuple[Pixels, Pixels], tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match=r"distill: the loss is not finite at epoch 1, step \d+ .*distill.learning_rate=0.017"
    ):
        train(
            new_student(), lambda logits, *_: logits.sum() * float("nan"), *splits, plan(), DATA, tmp_path / "m.jsonl"
        )


def test_a_last_batch_of_one_joins_the_one_before() -> None:
    batches = [b.tolist() for b in trainer._batches(np.arange(7), 3)]
    assert batches == [[0, 1, 2], [3, 4, 5, 6]]
    assert [b.tolist() for b in trainer._batches(np.arange(1), 3)] == [[0]]
    assert [len(b) for b in trainer._batches(np.arange(8), 3)] == [3, 3, 2]


def test_optimizers_are_torch_s_own_with_the_recipe_s_settings() -> None:
    network = nn.Linear(2, 2)
    adamw = make_optimizer(network, plan(optimizer="adamw", weight_decay=0.01))
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.param_groups[0]["weight_decay"] == 0.01
    sgd = make_optimizer(network, plan(optimizer="sgd"))
    assert isinstance(sgd, torch.optim.SGD)
    assert (sgd.param_groups[0]["momentum"], sgd.param_groups[0]["nesterov"]) == (0.9, True)


@pytest.mark.parametrize(
    ("schedule", "first", "middle", "last"),
    [("constant", 0.05, 0.05, 0.05), ("cosine", 0.05, 0.025, 0.0), ("one-cycle", 0.002, 0.0375, 0.0)],
)
def test_schedules(schedule: str, first: float, middle: float, last: float) -> None:
    settings = plan(schedule=schedule)
    optimizer = make_optimizer(nn.Linear(1, 1), settings)
    scheduler = make_scheduler(optimizer, settings, 101)
    rates = []
    for _ in range(101):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step() if len(rates) < 101 else None
    assert rates[0] == pytest.approx(first, rel=1e-3)
    assert rates[50] == pytest.approx(middle, rel=0.02)
    assert rates[-1] == pytest.approx(last, abs=2e-5)
    assert max(rates) == pytest.approx(0.05, rel=1e-3)
