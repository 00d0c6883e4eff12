"""One training engine for every stage: teacher, student with a teacher, student alone.

It can stop after any step and go on to the same weights: views, order and schedule follow from (seed, epoch, step), and
everything else that matters is in the checkpoint.
"""

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from toolkit import console
from toolkit.data.batches import batches
from toolkit.data.mixed_views import MixedViews
from toolkit.data.views import Indices
from toolkit.distill import distributed
from toolkit.distill.checkpoint import Checkpoint, TrainingProgress, TrainingState
from toolkit.distill.constant_channels import keep_constant
from toolkit.distill.evaluation import compute_logits, require_finite
from toolkit.distill.interruption import StopRequest, stop_request
from toolkit.distill.metrics import EpochMetrics, MetricsLog
from toolkit.distill.not_finite import Breakdown, explain
from toolkit.distill.objective import NetworkOutput
from toolkit.distill.optimization import Optimization
from toolkit.distill.settling import settle_in_time
from toolkit.distill.step import Stepper
from toolkit.distill.training import Training
from toolkit.errors import Interrupted
from toolkit.networks.classifier import Classifier
from toolkit.networks.small_maps import place

CHECK_STEPS = 20
"""Steps between two looks at whether the loss is finite, and at most between two agreements of several processes."""
AGREE_SECONDS = 5.0
"""s between two agreements on stopping, about; after SIGTERM, SIGKILL comes soon"""
SAVE_SECONDS = 120.0
"""s between two checkpoints; on a CPU every epoch ends with one too, on a GPU it may be over sooner than written"""
SAVE_SECONDS_AT_END = 10.0
"""s after which an epoch is also saved before its validation: on a CPU this may take minutes, and signals wait"""


@dataclass(frozen=True)
class BestWeights:
    """The result of a training run: the weights of the best epoch by validation accuracy, and the cost."""

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


@dataclass(frozen=True)
class Records:
    """The files that a stage writes while it trains; `state` is what it goes on from."""

    metrics: Path
    checkpoint: Checkpoint
    state: TrainingState | None = None
    tensorboard: Path | None = None
    on_epoch: Callable[[EpochMetrics], object] | None = None


def train(training: Training, records: Records) -> BestWeights:
    """Train the learner in place and return its best epoch; teacher and learner always see the same views.

    Every epoch is a line on stderr and in metrics.jsonl. Raises TrainingError if the loss is no longer finite,
    Interrupted after Ctrl-C or SIGTERM, with the state saved.
    """
    with stop_request() as request:
        distributed.barrier()  # from here on no process ends at a signal on its own, while others ask it
        return _Run(training, records, request).to_end()


StepSums = tuple[Tensor, Tensor, float]
"""One step: this process's share of the loss's sum and of the hits, and the learning rate."""


class _Run:
    def __init__(self, training: Training, records: Records, request: StopRequest) -> None:
        plan = training.plan
        torch.manual_seed(plan.seed)
        place(training.learner, plan.device)
        self._learner, self._views, self._plan = training.learner, training.views, plan
        self._training, self._records, self._request = training, records, request
        self._valid_teacher = self._ask_teacher()
        self._last_step = self._steps_per_epoch()
        self._shown = len(self._views) + (self._views.portions.per_epoch if isinstance(self._views, MixedViews) else 0)
        settle_in_time(training.learner, self._last_step)
        self._optimization = Optimization.of(training.learner, plan.section, plan.section.epochs * self._last_step)
        self._stepper = Stepper(training, self._optimization)
        self._progress = TrainingProgress()
        self._history: list[EpochMetrics] = []
        self._best: EpochMetrics | None = None
        self._best_state: dict[str, Tensor] = {}
        self._first_rate = self._last_rate = self._optimization.learning_rate
        if records.state is not None:
            self._restore(records.state)
        self._log = None
        if distributed.is_main():
            self._log = MetricsLog(records.metrics, plan.role, plan.section.epochs, records.tensorboard)
            self._log.start(self._history)
        self._clock = self._saved_at = time.perf_counter()
        self._is_saved = True

    def to_end(self) -> BestWeights:
        while self._progress.epoch < self._plan.section.epochs and not self._out_of_patience():
            self._train_epoch()
            self._finish_epoch()
            self._stop_if_asked([])  # a signal that came with the last step or later
        if not self._is_saved:
            self._save()
        # the network, and the optimiser until it is collected, would keep a graph's memory
        self._optimization.optimizer.zero_grad()
        assert self._best is not None
        progress = self._progress
        return BestWeights(
            self._best_state,
            self._best,
            progress.epoch,
            progress.images_seen,
            progress.seconds,
            progress.images_seen / progress.training_s,
        )

    def _train_epoch(self) -> None:
        """The rest of one pass over the training images."""
        plan, progress = self._plan, self._progress
        self._learner.train()
        self._agree_steps = self._choose_agree_steps()
        view, side = plan.view_of(progress.epoch), plan.image_size_of(progress.epoch)
        steps = self._steps_of(progress.epoch)
        sums: list[StepSums] = []
        with console.progress(f"{plan.role} {progress.epoch + 1}/{plan.section.epochs}", self._shown) as advance:
            for step, indices in enumerate(steps):
                advance(len(indices))
                if step < progress.step:
                    continue
                if step == 0:
                    self._first_rate = self._optimization.learning_rate
                self._last_rate = self._optimization.learning_rate
                self._stepper.expect(steps[step : step + 2], view)
                sums.append((*self._stepper.take(indices, view, side), self._last_rate))
                self._is_saved = False
                progress.step = step + 1
                progress.images_seen += len(indices)
                if step % CHECK_STEPS == 0:
                    self._add_up(sums)
                self._stop_if_asked(sums)
        self._add_up(sums)

    def _steps_of(self, epoch: int) -> list[Indices]:
        """The batches of an epoch, slices of one array or tensor."""
        plan, views = self._plan, self._views
        order = np.random.default_rng((plan.seed, epoch)).permutation(len(views))
        steps = list(batches(order, plan.section.batch_size, distributed.least_batch()))
        if isinstance(views, MixedViews):
            steps = views.add_unlabelled(steps, epoch)
        whole = views.upload(np.concatenate(steps))
        ends = np.cumsum([len(step) for step in steps]).tolist()
        return [whole[start:end] for start, end in itertools.pairwise((0, *ends))]

    def _ask_teacher(self) -> NetworkOutput | None:
        """Its answers to the validation images. WeightsError if they are not finite."""
        if self._training.teacher is None:
            return None
        logits = self._training.teacher.valid_logits()
        require_finite(logits, self._training.valid.names)
        return NetworkOutput(logits)

    def _finish_epoch(self) -> None:
        """Validate, report, keep the best and save."""
        plan, progress = self._plan, self._progress
        progress.training_s += progress.epoch_s
        keep_constant(self._optimization.shipped, plan.precision)
        valid_loss, valid_accuracy = self._validate()
        self._tick(training=False)
        if not math.isfinite(valid_loss):  # the last step broke the weights: they are not to be saved as good ones
            self._stop_not_finite("validation loss", progress.step, self._last_rate)
        metrics = EpochMetrics(
            role=plan.role,
            epoch=progress.epoch,
            train_loss=progress.loss_sum / self._shown,
            train_accuracy=progress.hits / len(self._views),
            valid_loss=valid_loss,
            valid_accuracy=valid_accuracy,
            train_img_s=self._shown / progress.epoch_s,
            seconds=progress.seconds,
            learning_rate=self._first_rate,
            image_size=plan.image_size_of(progress.epoch),
        )
        if self._best is None or valid_accuracy > self._best.valid_accuracy:
            self._best = metrics
            self._best_state = {name: value.clone() for name, value in self._optimization.shipped.state_dict().items()}
        self._history.append(metrics)
        self._is_saved = False
        self._progress = replace(progress, epoch=progress.epoch + 1, step=0, loss_sum=0.0, hits=0, epoch_s=0.0)
        if self._saves_every_epoch():  # before the line, whose reader may count on the checkpoint
            self._save()
        if self._log is not None:
            self._log.add(metrics)
            if self._records.on_epoch is not None:
                self._records.on_epoch(metrics)
                self._tick(training=False)  # its time is no part of the next epoch's

    def _validate(self) -> tuple[float, float]:
        """Loss and accuracy on the validation images, in fp32 as weights ship; averaged weights if there are any."""
        classifier = self._learner.classifier
        if self._optimization.average is not None:
            mean, std = (values.flatten().tolist() for values in (classifier.mean, classifier.std))
            classifier = Classifier(self._optimization.shipped, mean, std).to(self._plan.device)
        valid = self._training.valid
        logits = compute_logits(classifier, valid, "fp32", self._plan.device)
        labels = torch.from_numpy(valid.labels).to(self._plan.device)
        accuracy = (logits.argmax(1) == labels).float().mean().item()
        return self._training.objective(NetworkOutput(logits), labels, self._valid_teacher).item(), accuracy

    def _add_up(self, sums: list[StepSums]) -> None:
        """Add `sums`, of all processes, to the progress and clear them; TrainingError if a loss is not finite."""
        if not sums:
            return
        *parts, rates = zip(*sums, strict=True)
        losses, hits = distributed.add_up(torch.stack([torch.stack(part).double() for part in parts])).tolist()
        sums.clear()
        self._tick(training=True)
        for step, (loss, rate) in enumerate(zip(losses, rates, strict=True), self._progress.step - len(rates) + 1):
            if not math.isfinite(loss):
                self._stop_not_finite("loss", step, rate)
        self._progress.loss_sum += sum(losses)
        self._progress.hits += round(sum(hits))

    def _stop_not_finite(self, what: Literal["loss", "validation loss", "weight"], step: int, rate: float) -> None:
        saved = self._records.checkpoint.path
        kept = f"the last good state is {saved}" if saved.exists() else "no state was saved yet"
        found = Breakdown(what, self._progress.epoch + 1, step, rate, kept)
        raise explain(found, self._learner.classifier.network, self._plan)

    def _stop_if_asked(self, sums: list[StepSums]) -> None:
        """After a step: save and stop if a signal asked for it, or save if the last checkpoint is old."""
        step = self._progress.step
        asked = self._request.signal_number
        at_end = step == self._last_step
        soon = at_end and self._saves_every_epoch()
        late = time.perf_counter() - self._saved_at > min(SAVE_SECONDS, SAVE_SECONDS_AT_END if soon else math.inf)
        if distributed.world_size() > 1:
            if step % self._agree_steps and not at_end:
                return
            wishes = torch.tensor([asked, int(late)], device=self._plan.device)
            asked, late = distributed.greatest(wishes).tolist()
        if not self._is_saved and (asked or late):
            self._add_up(sums)
            if not self._weights_are_finite():  # the step after the last loss broke them: they are no good state
                self._stop_not_finite("weight", step, self._last_rate)
            self._save()
        if asked:
            self._request.obeyed = True
            epoch = self._progress.epoch
            place = f"epoch {epoch + 1}, step {step}" if step else f"after epoch {epoch}"
            raise Interrupted(f"{self._plan.role}, {place}, and saved", asked)

    def _weights_are_finite(self) -> bool:
        return all(bool(parameter.isfinite().all()) for parameter in self._learner.parameters())

    def _out_of_patience(self) -> bool:
        patience = self._plan.section.patience
        if not patience or self._best is None or self._progress.epoch - 1 - self._best.epoch < patience:
            return False
        console.say(
            f"{self._plan.role}: stopped after epoch {self._progress.epoch}, none of the last {patience} was better"
            f" than epoch {self._best.epoch + 1} (valid acc {self._best.valid_accuracy:.4f})"
        )
        return True

    def _save(self) -> None:
        """Write the checkpoint; the epoch so far must have been added up."""
        if distributed.is_main():
            self._records.checkpoint.save(self._state())
        self._saved_at = time.perf_counter()
        self._is_saved = True

    def _saves_every_epoch(self) -> bool:
        return self._plan.device == "cpu"

    def _state(self) -> TrainingState:
        plan = self._plan
        return TrainingState(
            steps=self._stepper.state(),
            progress=self._progress,
            first_rate=self._first_rate,
            history=self._history,
            best=self._best,
            best_state=self._best_state,
            rng=torch.get_rng_state(),
            gpu_rng=torch.cuda.get_rng_state(plan.device) if plan.device != "cpu" else None,
            precision=plan.precision,
            teacher_precision=plan.teacher_precision,
        )

    def _restore(self, state: TrainingState) -> None:
        self._stepper.restore(state.steps)
        self._progress, self._first_rate = replace(state.progress), state.first_rate
        self._history, self._best, self._best_state = list(state.history), state.best, state.best_state
        torch.set_rng_state(state.rng)
        if state.gpu_rng is not None and self._plan.device != "cpu":
            torch.cuda.set_rng_state(state.gpu_rng, self._plan.device)
        console.say(f"{self._plan.role}: resuming at epoch {self._progress.epoch + 1}, step {self._progress.step + 1}")

    def _tick(self, *, training: bool) -> None:
        now = time.perf_counter()
        self._progress.seconds += now - self._clock
        if training:
            self._progress.epoch_s += now - self._clock
        self._clock = now

    def _choose_agree_steps(self) -> int:
        """Steps between two agreements on stopping: one, until the first epoch has shown how long a step takes."""
        if not self._history:
            return 1
        step_s = self._shown / self._history[-1].train_img_s / self._last_step
        return distributed.agree(max(1, min(CHECK_STEPS, int(AGREE_SECONDS / step_s))))

    def _steps_per_epoch(self) -> int:
        labelled = np.arange(len(self._views))
        return sum(1 for _ in batches(labelled, self._plan.section.batch_size, distributed.least_batch()))
