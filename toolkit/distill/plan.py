"""How a stage trains, and what came of it."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from toolkit.distill.metrics import EpochMetrics, Stage
from toolkit.distill.optimization import image_size_of
from toolkit.distill.precision import Precision
from toolkit.recipe import TrainingRecipe

CompileMode = Literal["off", "default", "reduce-overhead", "max-autotune"]


@dataclass(frozen=True)
class Plan:
    """One section of the recipe, with what all stages share. `image_size`: px, the full size."""

    stage: Stage
    section: TrainingRecipe
    image_size: int
    precision: Precision
    seed: int
    device: str
    teacher_precision: Precision = "fp32"
    compile: CompileMode = "off"
    teacher_views: int = 0

    @property
    def section_name(self) -> str:
        """The section's name in the recipe."""
        return "teacher" if self.stage == "teacher" else "distill"

    def view_of(self, epoch: int) -> int:
        """Which view of each image an epoch shows: a new one, or one of those whose logits are stored."""
        return epoch % self.teacher_views if self.teacher_views else epoch

    def image_size_of(self, epoch: int) -> int:
        """px; see optimization.image_size_of."""
        return image_size_of(epoch, self.section, self.image_size)


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
