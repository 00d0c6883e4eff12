"""The common part of all training stages: keeping or replacing a file, going on, training, and the file at the end."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from toolkit import __version__, console
from toolkit.data.batches import TrainingViews
from toolkit.data.dataset import Dataset
from toolkit.data.pixels import Pixels
from toolkit.data.preprocess import Preprocess
from toolkit.distill import distributed
from toolkit.distill.checkpoint import Checkpoint, TrainingState
from toolkit.distill.compilation import make_room
from toolkit.distill.features import TappedNetwork
from toolkit.distill.metrics import EpochMetrics
from toolkit.distill.precision import FloatArithmetic, NetworkStep, choose_precision
from toolkit.distill.quantized import views_to_answer
from toolkit.distill.trainable import require_trainable
from toolkit.distill.trainer import Records, train
from toolkit.distill.training import Training
from toolkit.errors import ArtifactError, RecipeError, TrainingError, one_line
from toolkit.files import locked, write_atomically
from toolkit.modeldir import ModelDir, Role
from toolkit.networks import registry
from toolkit.networks.classifier import Classifier
from toolkit.networks.weights import ModelInfo, read_info, save_model
from toolkit.recipe import Recipe
from toolkit.settings import StageRecipe


@dataclass(frozen=True)
class TrainingData:
    """A data set with its two training splits decoded."""

    dataset: Dataset
    train: Pixels
    valid: Pixels

    @property
    def num_classes(self) -> int:
        return len(self.dataset.classes)


@dataclass(frozen=True)
class TrainingOptions:
    """The options of a command. `device` is a torch device that is proven to work.

    `on_epoch` is called with the figures of every epoch, after the epoch was saved if every epoch is saved.
    """

    device: str = "cpu"
    force: bool = False
    resume: bool = False
    tensorboard: bool = False
    on_epoch: Callable[[EpochMetrics], object] | None = None


@dataclass(frozen=True)
class WeightsFile:
    """A weights file of the model directory; `new` is False if an up-to-date one was kept."""

    path: Path
    new: bool
    info: ModelInfo


@dataclass(frozen=True)
class TrainingJob:
    """One network to be trained or imported: its role, its place and what decides the result.

    `settings` are recipe_sha256, dataset_sha256 and whatever else must be the same for an existing file to stay.
    """

    role: Role
    recipe: Recipe
    model_dir: ModelDir
    data: TrainingData
    settings: dict[str, Any]
    options: TrainingOptions

    @property
    def destination(self) -> Path:
        return self.model_dir.weights(self.role)

    @property
    def checkpoint(self) -> Checkpoint:
        settings = {"stage": self.role} | self.settings
        if self.role == "control":
            earlier = Checkpoint(self.model_dir.checkpoint("student"), settings)  # the former place of its state
            if earlier.is_own():
                return earlier
        return Checkpoint(self.model_dir.checkpoint(self.role), settings)

    def kept(self) -> WeightsFile | None:
        """The file that is there, if it came from these very settings; None if the stage has to run.

        Raises ArtifactError if another run's file lies there and --force was not given. With --force everything is
        made again, except while an interrupted --force is being resumed.
        """
        if self._starts_over():
            return None
        info = read_info(self.destination)
        if not (differing := self._differing(info)):
            console.say(f"{self.destination} is up to date (same settings, data and teacher); --force makes it again")
            self.checkpoint.discard_own()
            return WeightsFile(self.destination, new=False, info=info)
        if self.options.force:
            return None
        raise ArtifactError(
            f"{self.destination} was made from another {' and '.join(differing)}",
            "choose another directory, or replace it with --force (in Python: force=True)",
        )

    def is_up_to_date(self) -> bool:
        """Whether `kept` will return the file that is there; this prints and raises nothing."""
        return not self._starts_over() and not self._differing(read_info(self.destination))

    def _starts_over(self) -> bool:
        starts_over = self.options.force and (not self.options.resume or self.checkpoint.is_own())
        return starts_over or not self.destination.exists()

    def _differing(self, info: ModelInfo) -> list[str]:
        """Settings of the file that are not the present ones."""
        known = {
            "recipe_sha256": info.recipe_sha256,
            "dataset_sha256": info.dataset_sha256,
            "teacher_sha256": info.teacher_sha256,
            "network": dict(info.network.settings),
            **info.extra,
        }
        return [name.removesuffix("_sha256") for name, value in self.settings.items() if known.get(name) != value]

    def saved_state(self) -> TrainingState | None:
        """The state to go on from, of an interrupted run of this very stage."""
        state = self.checkpoint.open(resume=self.options.resume, force=self.options.force)
        if self.options.resume and state is None:
            console.say(f"{self.role}: no state was saved, starting over")
        return state

    @property
    def section(self) -> StageRecipe:
        return self.recipe.stage_of(self.role)

    def choose_precision(self, classifier: Classifier, *, training: bool = True) -> FloatArithmetic:
        """The arithmetic of the recipe, or the faster one for `classifier`, measured now."""
        shown = self.section.epochs if training else views_to_answer(self.recipe.distill)
        return choose_precision(
            self.recipe.training.precision,
            NetworkStep(
                classifier, self.section.batch_size, self.recipe.data.image_size, self.options.device, training
            ),
            images=len(self.data.train) * shown / distributed.world_size(),
        )

    def require_trainable(self, network: nn.Module) -> None:
        """RecipeError unless this job can train `network`, which goes to its device."""
        require_trainable(network.to(self.options.device), self.recipe, self.role)

    def views(self) -> TrainingViews:
        section = self.section
        return TrainingViews(
            self.data.train,
            self.recipe.data,
            self.data.num_classes,
            seed=self.recipe.training.seed,
            mixup=section.mixup,
            device=self.options.device,
        )

    def train(self, training: Training, state: TrainingState | None) -> dict[str, Any]:
        """Train, and leave the best weights in the learner; figures for the weights' metadata."""
        learner, plan = training.learner, training.plan
        make_room(plan)
        if (least := min(plan.section.batch_size, len(training.views))) < distributed.world_size():
            raise TrainingError(
                f"{least} images per step cannot be shared out to {distributed.world_size()} processes",
                f"use a larger {plan.section_name}.batch_size or fewer processes",
            )
        tensorboard = self.model_dir.path / "tensorboard" if self.options.tensorboard else None
        records = Records(self.model_dir.metrics, self.checkpoint, state, tensorboard, self.options.on_epoch)
        result = train(training, records)
        learner.classifier.network.load_state_dict(result.state_dict)
        precisions = {"precision": plan.precision}
        if plan.role == "student":
            precisions["teacher_precision"] = plan.teacher_precision
        return result.summary() | precisions

    def save(self, learner: TappedNetwork, extra: dict[str, Any], preprocess: Preprocess) -> WeightsFile:
        """Write the weights with all that is known of them; only then delete the state to go on from."""
        info = ModelInfo(
            role=self.role,
            network=registry.spec_of(learner.classifier.network),
            classes=self.data.dataset.classes,
            preprocess=preprocess,
            recipe=self.recipe.model_dump(mode="json"),
            recipe_sha256=self.settings["recipe_sha256"],
            dataset_sha256=self.settings["dataset_sha256"],
            teacher_sha256=self.settings.get("teacher_sha256"),
            toolkit_version=__version__,
            extra=extra,
        )
        if distributed.is_main():
            save_model(self.destination, learner.classifier.network, info)
            self.checkpoint.discard()
            self._draw_curves()
        distributed.barrier()
        return WeightsFile(self.destination, new=True, info=info)

    def _draw_curves(self) -> None:
        if self.model_dir.metrics.exists():
            from toolkit.distill.curves import draw_learning_curves  # matplotlib takes a while

            with locked(self.model_dir.path):  # so that the last process to draw has the lines of both
                picture = draw_learning_curves(self.model_dir.metrics)
                with write_atomically(self.model_dir.plot("learning_curves")) as path:
                    path.write_bytes(picture)


def prove_size(classifier: Classifier, size: int, problem: str, remedy: str) -> None:
    """RecipeError with `problem`, the network's reason and `remedy` unless it takes an image of `size` px."""
    try:
        with torch.no_grad():
            classifier.eval()(torch.zeros(1, 3, size, size, device=classifier.mean.device))
    except (AssertionError, RuntimeError, ValueError) as error:  # torchvision's networks raise any of these
        raise RecipeError(f"{problem}: {one_line(error)}", remedy) from None
