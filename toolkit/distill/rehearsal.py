"""A training on noise: this device's training speed, and the kernels that a step launches. It needs no data.

N images, C classes.
"""

import json
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from toolkit.data.batches import TrainingViews
from toolkit.data.pixels import Pixels
from toolkit.data.preprocess import Preprocess
from toolkit.distill.checkpoint import Checkpoint
from toolkit.distill.features import TappedNetwork
from toolkit.distill.logit_store import StoredTeacher
from toolkit.distill.objective import learn_from_teacher
from toolkit.distill.plan import Plan
from toolkit.distill.precision import FloatArithmetic, has_fast_bf16
from toolkit.distill.teachers import LiveTeacher, Teacher
from toolkit.distill.trainer import Records, train
from toolkit.distill.training import Training
from toolkit.networks import registry
from toolkit.networks.classifier import Classifier
from toolkit.recipe import Recipe

CLASSES = 10
EPOCHS = 3
"""The first one warms up: it chooses algorithms, and captures the graph."""
COUNTED_STEPS = 8
"""steps per epoch, enough to count launches: a profiler keeps every one of them"""
DISTINCT = 64
"""images; more are copies of them"""
VALID = 8


@dataclass(frozen=True)
class Rehearsal:
    """The student, trained by the engine that `toolkit distill` uses; the teacher, a ResNet18, is live or stored."""

    device: str
    image_size: int
    """px; images are an eighth larger before they are cropped"""
    batch_size: int
    steps: int
    """per epoch"""
    live: bool = False
    settings: tuple[str, ...] = ()
    """of the recipe, as --set takes them"""

    @property
    def precision(self) -> FloatArithmetic:
        return "bf16" if has_fast_bf16(self.device) else "fp32"

    def images_per_second(self) -> float:
        """Of the faster of the epochs that follow the first, from its beginning to its end."""
        return max(line["train_img_s"] for line in self.train(EPOCHS)[1:])

    def count_launches(self) -> "Launches | None":
        """The demands of one step on a GPU: the difference of two trainings, one of which takes twice as many steps.

        None on a CPU, and if nothing was counted: CUDA's profiling interface may be missing.
        """
        if self.device == "cpu":
            return None
        once, twice = (replace(self, steps=steps)._profile() for steps in (self.steps, 2 * self.steps))
        return twice.minus(once).divided(self.steps) if once.kernels else None

    def train(self, epochs: int) -> list[dict[str, float]]:
        """The lines of metrics.jsonl of so many epochs; nothing else of it is kept."""
        data = self._recipe.data
        torch.manual_seed(0)
        student = TappedNetwork(Classifier(registry.build("depthwise", CLASSES), data.mean, data.std))
        section = self._recipe.distill.model_copy(update={"epochs": epochs})
        plan = Plan(
            "student",
            section,
            self.image_size,
            self.precision,
            0,
            self.device,
            self.precision,
            compile=self._recipe.training.compile,
        )
        valid = self._take(VALID)
        views = TrainingViews(self._pixels, data, CLASSES, seed=0, mix=section.mix, device=self.device)
        teacher = self._open_teacher(views, valid)
        training = Training(student, learn_from_teacher(section), views, valid, plan, teacher)
        with tempfile.TemporaryDirectory(prefix="rehearsal.") as folder:
            metrics = Path(folder, "metrics.jsonl")
            records = Records(metrics, Checkpoint(Path(folder, "checkpoint.pt"), {"stage": "student"}))
            train(training, records)
            return [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]

    @cached_property
    def _recipe(self) -> Recipe:
        return Recipe().with_overrides(
            [
                *(f"data.image_size={self.image_size}", f"data.resize={self._canvas}"),
                *(f"distill.batch_size={self.batch_size}", *self.settings),
            ]
        )

    @property
    def _canvas(self) -> int:
        return self.image_size + self.image_size // 8

    @cached_property
    def _pixels(self) -> Pixels:
        return self._take(self.steps * self.batch_size)

    def _take(self, count: int) -> Pixels:
        """So many images of noise."""
        data, canvas = self._recipe.data, self._canvas
        noise = np.random.default_rng(0).integers(0, 256, (min(count, DISTINCT), canvas**2 * 3), dtype=np.uint8)
        numbers, sizes = np.arange(count), np.full(count, canvas)
        return Pixels(
            tuple(map(str, numbers)),
            numbers % CLASSES,
            sizes,
            sizes,
            noise[numbers % len(noise)].ravel(),
            numbers * noise.shape[1],
            Preprocess(self.image_size, canvas, data.mean, data.std),
        )

    def _open_teacher(self, views: TrainingViews, valid: Pixels) -> Teacher:
        if not self.live:
            answers = np.random.default_rng(1).normal(size=(1, len(views), CLASSES)).astype(np.float32)
            return StoredTeacher(answers, answers[0, :VALID], self.device)
        data = self._recipe.data
        teacher = Classifier(registry.build("resnet18", CLASSES), data.mean, data.std).requires_grad_(False)
        return LiveTeacher(TappedNetwork(teacher), views, valid, self.precision)

    def _profile(self) -> "Launches":
        """Of a training of one epoch, from its beginning to its end."""
        with profile(activities=[ProfilerActivity.CUDA]) as found:
            self.train(1)
        return Launches.among(found.events())


@dataclass(frozen=True)
class Launches:
    """Kernels, and copies from the host (`sent`) and back to it (`read`)."""

    kernels: float
    sent: float
    read: float

    @classmethod
    def among(cls, events: Iterable[Any]) -> "Launches":
        """Count them among a profiler's `events`; an event that only names a part of the program does not count."""
        names = [
            event.name for event in events if event.device_type == DeviceType.CUDA and not event.is_user_annotation
        ]
        return cls(
            sum(not name.startswith(("Memcpy", "Memset")) for name in names),
            sum(name.startswith("Memcpy HtoD") for name in names),
            sum(name.startswith("Memcpy DtoH") for name in names),
        )

    def minus(self, other: "Launches") -> "Launches":
        return Launches(self.kernels - other.kernels, self.sent - other.sent, self.read - other.read)

    def divided(self, steps: int) -> "Launches":
        return Launches(self.kernels / steps, self.sent / steps, self.read / steps)
