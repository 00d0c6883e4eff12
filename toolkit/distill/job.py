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
from toolkit.data.mixed_views import MixedViews, Portions
from toolkit.data.pixels import Pixels
from toolkit.data.preprocess import Preprocess
from toolkit.distill import distributed
from toolkit.distill.checkpoint import Checkpoint, TrainingState
from toolkit.distill.class_balance import ClassBalance
from toolkit.distill.compilation import make_room
from toolkit.distill.curves import draw_learning_curves
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
from toolkit.settings import DataRecipe, StageRecipe


@dataclass(frozen=True)
class TrainingData:
    """A data set with its two training splits decoded, as the student sees them.

    `for_teacher` is the same at the teacher's own size; None if that is the student's. `unlabelled` are images without
    labels, known by `unlabelled_set_sha256`; None without any.
    """

    dataset: Dataset
    train: Pixels
    valid: Pixels
    for_teacher: "TrainingData | None" = None
    unlabelled: Pixels | None = None
    unlabelled_set_sha256: str | None = None

    @property
    def num_classes(self) -> int:
        return len(self.dataset.classes)

    def seen_by(self, role: Role) -> "TrainingData":
        """The images as a role sees them."""
        return self.for_teacher if role == "teacher" and self.for_teacher else self


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
    `parts` are the jobs of several networks that become this one.
    """

    role: Role
    recipe: Recipe
    model_dir: ModelDir
    data: TrainingData
    settings: dict[str, Any]
    options: TrainingOptions
    parts: "tuple[TrainingJob, ...]" = ()

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
            for job in (self, *self.parts):
                job.checkpoint.discard_own()
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
        is_interrupted = any(job.checkpoint.is_own() for job in (self, *self.parts))
        starts_over = self.options.force and (not self.options.resume or is_interrupted)
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
        return [
            name.removesuffix("_sha256").replace("_", " ")
            for name, value in self.settings.items()
            if known.get(name) != value
        ]

    def saved_state(self) -> TrainingState | None:
        """The state to go on from, of an interrupted run of this very stage."""
        state = self.checkpoint.open(resume=self.options.resume, force=self.options.force)
        if self.options.resume and state is None:
            console.say(f"{self.role}: no state was saved, starting over")
        return state

    @property
    def section(self) -> StageRecipe:
        return self.recipe.stage_of(self.role)

    @property
    def sees(self) -> DataRecipe:
        """[data] as the network sees it."""
        return self.recipe.data_of(self.role)

    def choose_precision(self, classifier: Classifier, *, training: bool = True) -> FloatArithmetic:
        """The arithmetic of the recipe, or the faster one for `classifier`, measured now.

        It is trained in this job; or, without `training`, it is the teacher of this job's student.
        """
        shown = self.section.epochs if training else views_to_answer(self.recipe.distill)
        sees = self.sees if training else self.recipe.data_of("teacher")
        return choose_precision(
            self.recipe.training.precision,
            NetworkStep(classifier, self.section.batch_size, sees.image_size, self.options.device, training),
            images=len(self.data.train) * shown / distributed.world_size(),
        )

    def require_trainable(self, network: nn.Module) -> None:
        """RecipeError unless this job can train `network`, which goes to its device."""
        require_trainable(network.to(self.options.device), self.recipe, self.role)

    def class_balance(self) -> ClassBalance:
        """What this job's loss does about the sizes of the training images' classes."""
        return ClassBalance.of(self.section, self.data.train.labels, self.data.num_classes, self.options.device)

    def views(self) -> TrainingViews | MixedViews:
        """The training images as this job's network sees them; a student's with unlabelled ones, if there are any."""
        return self._views_of(self.role)

    def views_of_teacher(self) -> TrainingViews | MixedViews:
        """The same views as this job's teacher sees them; `views` itself has to be used if they are the same."""
        return self._views_of("teacher")

    @property
    def portions(self) -> Portions | None:
        """How unlabelled images join this job's batches; None if they do not. RecipeError if none ever would."""
        unlabelled = self.data.unlabelled
        if unlabelled is None or self.role != "student":
            return None
        section, least = self.recipe.distill, distributed.least_batch()
        portions = Portions(section.unlabelled_ratio, len(self.data.train), len(unlabelled), section.batch_size, least)
        if not portions.per_epoch:
            ratio, largest = section.unlabelled_ratio, min(section.batch_size, len(self.data.train))
            raise RecipeError(
                f"distill.unlabelled_ratio = {ratio:g}: no step of {section.batch_size} gets an unlabelled image",
                f"set it to {1 / largest:.2g} or more, or leave data.unlabelled out",
            )
        return portions

    def _views_of(self, viewer: Role) -> TrainingViews | MixedViews:
        data = self.data.seen_by(viewer)
        labelled = self._views_on(data.train, viewer)
        if (portions := self.portions) is None:
            return labelled
        assert data.unlabelled is not None
        return MixedViews(labelled, self._views_on(data.unlabelled, viewer), portions)

    def _views_on(self, pixels: Pixels, viewer: Role) -> TrainingViews:
        return TrainingViews(
            pixels,
            self.recipe.data_of(viewer),
            self.data.num_classes,
            seed=self.recipe.training.seed,
            mix=self.section.mix,
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
