"""The plan of a training stage: its section of the recipe, sizes, arithmetic, seed and device."""

import math
from dataclasses import dataclass
from typing import Literal

from toolkit.distill.precision import Arithmetic
from toolkit.modeldir import Role
from toolkit.settings import StageRecipe


def image_size_of(epoch: int, section: StageRecipe, full_size: int) -> int:
    """px; side of the training images in `epoch` (from 0).

    It grows in a straight line from `start_image_size` to `full_size`, in steps of 16 px (8 below 64 px, so that small
    pictures can grow too). It reaches the full size after `grow_until` of the epochs.
    """
    start = section.start_image_size or full_size
    growing = max(1, math.floor(section.epochs * section.grow_until))
    share = min(1.0, epoch / growing)
    step = 16 if start >= 64 else 8
    return min(full_size, start + round(share * (full_size - start) / step) * step) if share < 1 else full_size


def section_name(role: Role) -> str:
    """The section of the recipe that a role is trained by."""
    return "teacher" if role == "teacher" else "distill"


CompileMode = Literal["off", "default", "reduce-overhead", "max-autotune"]


@dataclass(frozen=True)
class Plan:
    """One section of the recipe, with what all stages share. `image_size`: px, the full size."""

    role: Role
    section: StageRecipe
    image_size: int
    precision: Arithmetic
    seed: int
    device: str
    teacher_precision: Arithmetic = "fp32"
    compile: CompileMode = "off"
    teacher_views: int = 0

    @property
    def section_name(self) -> str:
        """The section's name in the recipe."""
        return section_name(self.role)

    def view_of(self, epoch: int) -> int:
        """Which view of each image an epoch shows: a new one, or one of those whose logits are stored."""
        return epoch % self.teacher_views if self.teacher_views else epoch

    def image_size_of(self, epoch: int) -> int:
        """px; see plan.image_size_of."""
        return image_size_of(epoch, self.section, self.image_size)
