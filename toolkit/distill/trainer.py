"""One training engine for every stage: teacher, student with a teacher, student alone."""

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from toolkit import console
from toolkit.data.pixels import Pixels
from toolkit.data.views import centre_views, draw_views, render_views
from toolkit.distill.precision import Precision, autocast
from toolkit.errors import TrainingError
from toolkit.networks.classifier import Classifier
from toolkit.recipe import DataRecipe, DistillRecipe, Optimizer, Schedule, TeacherRecipe

Stage = Literal["teacher", "distill", "control"]
Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(logits (N, C), labels (N,), teacher_logits (N, C) or None) → scalar, averaged over images."""

MOMENTUM = 0.9
WARM_UP_SHARE = 0.25
"""Share of the steps in which the one-cycle schedule climbs to its peak."""
VALIDATION_BATCH_SIZE = 250
FINITE_CHECK_STEPS = 20


@dataclass(frozen=True)
class Plan:
    """How to train: one section of the recipe, with what all stages share."""

    stage: Stage
    epochs: int
    batch_size: int
    optimizer: Optimizer
    learning_rate: float
    weight_decay: float
    schedule: Schedule
    precision: Precision
    teacher_precision: Precision
    seed: int
    device: str

    @classmethod
    def of(
        cls,
        stage: Stage,
        section: TeacherRecipe | DistillRecipe,
        *,
        precision: Precision,
        teacher_precision: Precision = "fp32",
        seed: int,
        device: str,
    ) -> "Plan":
        return cls(
            stage=stage,
            epochs=section.epochs,
            batch_size=section.batch_size,
            optimizer=section.optimizer,
            learning_rate=section.learning_rate,
            weight_decay=section.weight_decay,
            schedule=section.schedule,
            precision=precision,
            teacher_precision=teacher_precision,
            seed=seed,
            device=device,
        )


@dataclass(frozen=True)
class EpochMetrics:
    """A line of metrics.jsonl. Losses are means over images, accuracies fractions; `seconds` since the stage began."""

    stage: Stage
    epoch: int
    train_loss: float
    train_accuracy: float
    valid_loss: float
    valid_accuracy: float
    train_img_s: float
    seconds: float
    learning_rate: float
    image_size: int


@dataclass(frozen=True)
class Training:
    """What a training run gave: the weights of the best epoch by validation accuracy, and what it took."""

    state_dict: dict[str, Tensor]
    best: EpochMetrics
    epochs: int
    images_seen: int
    seconds: float
    train_img_s: float

    def summary(self) -> dict[str, float | int]:
        """The figures that go into the weights' metadata and from there into the report."""
        return {
            "epochs": self.epochs,
            "best_epoch": self.best.epoch,
            "valid_accuracy": self.best.valid_accuracy,
            "images_seen": self.images_seen,
            "seconds": self.seconds,
            "train_img_s": self.train_img_s,
        }


def train(
    network: Classifier,
    loss: Loss,
    train_pixels: Pixels,
    valid_pixels: Pixels,
    plan: Plan,
    data: DataRecipe,
    metrics_file: Path,
    teacher: Classifier | None = None,
) -> Training:
    """Train `network` in place and return its best epoch; teacher and network always see the same views.

    Every epoch is a line on stderr and in `metrics_file`. Raises TrainingError where the loss stops being finite.
    """
    torch.manual_seed(plan.seed)
    _start_metrics(metrics_file, plan.stage)
    network.to(plan.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    valid_teacher_logits = None
    if teacher is not None:
        teacher.to(plan.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        valid_teacher_logits = compute_logits(teacher, valid_pixels, plan.teacher_precision, plan.device)
    steps_an_epoch = math.ceil(len(train_pixels) / plan.batch_size)
    optimizer = make_optimizer(network, plan)
    scheduler = make_scheduler(optimizer, plan, plan.epochs * steps_an_epoch)
    best, best_state = None, {}
    start, training_s = time.perf_counter(), 0.0
    for epoch in range(plan.epochs):
        learning_rate = optimizer.param_groups[0]["lr"]
        epoch_start = time.perf_counter()
        train_loss, train_accuracy = _train_epoch(
            network, teacher, loss, train_pixels, plan, data, optimizer, scheduler, epoch
        )
        epoch_s = time.perf_counter() - epoch_start
        training_s += epoch_s
        valid_loss, valid_accuracy = _validate(network, loss, valid_pixels, valid_teacher_logits, plan)
        metrics = EpochMetrics(
            stage=plan.stage,
            epoch=epoch,
            train_loss=train_loss,
            train_accuracy=train_accuracy,
            valid_loss=valid_loss,
            valid_accuracy=valid_accuracy,
            train_img_s=len(train_pixels) / epoch_s,
            seconds=time.perf_counter() - start,
            learning_rate=learning_rate,
            image_size=data.image_size,
        )
        if best is None or valid_accuracy > best.valid_accuracy:
            best = metrics
            best_state = {name: value.cpu().clone() for name, value in network.network.state_dict().items()}
        _report_epoch(metrics, plan.epochs, metrics_file)
    assert best is not None
    images_seen = plan.epochs * len(train_pixels)
    return Training(best_state, best, plan.epochs, images_seen, time.perf_counter() - start, images_seen / training_s)


def compute_logits(network: Classifier, pixels: Pixels, precision: Precision, device: str) -> Tensor:
    """Logits float32 (N, C) of the evaluation view of every image, on `device`, where the network is."""
    network.eval()
    parts = []
    with torch.inference_mode():
        for indices in _batches(np.arange(len(pixels)), VALIDATION_BATCH_SIZE):
            with autocast(device, precision):
                parts.append(network(centre_views(pixels.centre(indices), device)).float())
    return torch.cat(parts)


def make_optimizer(network: torch.nn.Module, plan: Plan) -> torch.optim.Optimizer:
    if plan.optimizer == "adamw":
        return torch.optim.AdamW(
            network.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay, fused=True
        )
    return torch.optim.SGD(
        network.parameters(),
        lr=plan.learning_rate,
        momentum=MOMENTUM,
        nesterov=True,
        weight_decay=plan.weight_decay,
        fused=True,
    )


def make_scheduler(optimizer: torch.optim.Optimizer, plan: Plan, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """A schedule over `steps` optimiser steps, stepped after each."""
    if plan.schedule == "constant":
        return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    if plan.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=plan.learning_rate, total_steps=max(steps, 2), pct_start=WARM_UP_SHARE
    )


def _train_epoch(
    network: Classifier,
    teacher: Classifier | None,
    loss: Loss,
    pixels: Pixels,
    plan: Plan,
    data: DataRecipe,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    epoch: int,
) -> tuple[float, float]:
    """One pass over the training images; mean loss and accuracy over them, taken as the weights changed."""
    network.train()
    order = np.random.default_rng((plan.seed, epoch)).permutation(len(pixels))
    total_loss = torch.zeros((), device=plan.device)
    hits = torch.zeros((), device=plan.device, dtype=torch.int64)
    with console.progress(f"{plan.stage} {epoch + 1}/{plan.epochs}", len(pixels)) as advance:
        for step, indices in enumerate(_batches(order, plan.batch_size)):
            canvas, sizes = pixels.canvas(indices)
            draw = draw_views(data, sizes, indices, plan.seed, view=epoch)
            views = render_views(canvas, sizes, draw, data, plan.device)
            labels = torch.from_numpy(pixels.labels[indices]).to(plan.device)
            teacher_logits = None
            if teacher is not None:
                with torch.no_grad(), autocast(plan.device, plan.teacher_precision):
                    teacher_logits = teacher(views).float()
            with autocast(plan.device, plan.precision):
                logits = network(views).float()
            batch_loss = loss(logits, labels, teacher_logits)
            optimizer.zero_grad()
            batch_loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total_loss += batch_loss.detach() * len(indices)
            hits += (logits.argmax(1) == labels).sum()
            if step % FINITE_CHECK_STEPS == 0:
                _require_finite(total_loss, plan, epoch, step, scheduler)
            scheduler.step()
            advance(len(indices))
    _require_finite(total_loss, plan, epoch, step, scheduler)
    return total_loss.item() / len(pixels), hits.item() / len(pixels)


def _validate(
    network: Classifier, loss: Loss, pixels: Pixels, teacher_logits: Tensor | None, plan: Plan
) -> tuple[float, float]:
    logits = compute_logits(network, pixels, plan.precision, plan.device)
    labels = torch.from_numpy(pixels.labels).to(plan.device)
    accuracy = (logits.argmax(1) == labels).float().mean().item()
    return loss(logits, labels, teacher_logits).item(), accuracy


def _batches(order: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Consecutive batches; a last one of a single image joins the one before, as batch statistics need two."""
    starts = list(range(0, len(order), batch_size))
    if len(starts) > 1 and len(order) - starts[-1] == 1:
        starts.pop()
    for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
        yield order[start:end]


def _require_finite(
    total_loss: Tensor, plan: Plan, epoch: int, step: int, scheduler: torch.optim.lr_scheduler.LRScheduler
) -> None:
    if not torch.isfinite(total_loss):
        rate = scheduler.get_last_lr()[0]
        section = "teacher" if plan.stage == "teacher" else "distill"
        raise TrainingError(
            f"{plan.stage}: the loss is not finite at epoch {epoch + 1}, step {step + 1} (learning rate {rate:.3g})",
            f"try --set {section}.learning_rate={plan.learning_rate / 3:.2g}, or --set distill.precision=fp32",
        )


def _start_metrics(metrics_file: Path, stage: Stage) -> None:
    """Drop an earlier run's lines of this stage, keep the other stages'."""
    if metrics_file.exists():
        lines = metrics_file.read_text().splitlines(keepends=True)
        metrics_file.write_text("".join(line for line in lines if json.loads(line)["stage"] != stage))


def _report_epoch(metrics: EpochMetrics, epochs: int, metrics_file: Path) -> None:
    with metrics_file.open("a") as file:
        file.write(json.dumps(asdict(metrics)) + "\n")
    done = metrics.epoch + 1
    left = metrics.seconds / done * (epochs - done)
    console.say(
        f"{metrics.stage:8}{done:4}/{epochs}  train loss {metrics.train_loss:.4f} acc {metrics.train_accuracy:.4f}"
        f"  valid loss {metrics.valid_loss:.4f} acc {metrics.valid_accuracy:.4f}"
        f"  {metrics.train_img_s:.0f} img/s  {console.duration(left)} left"
    )
