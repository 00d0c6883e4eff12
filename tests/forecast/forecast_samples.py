"""Made-up speeds: a second is a second on every machine."""

from typing import Any

from toolkit.forecast.facts import Command, Facts
from toolkit.modeldir import Role
from toolkit.recipe import Recipe


class MadeUpSpeeds:
    """s per image: training 1 s for the teacher and 0.1 s for the student at 100 px, in proportion to the pixels."""

    def __init__(self) -> None:
        self.asked: list[tuple[Role, int]] = []
        """whose steps were measured, at which size"""

    def decode_s(self, recipe: Recipe) -> float:
        return 0.01

    def train_s(self, recipe: Recipe, role: Role, side: int) -> float:
        self.asked.append((role, side))
        return (1.0 if role == "teacher" else 0.1) * (side / 100) ** 2

    def view_s(self, recipe: Recipe, role: Role) -> float:
        return 0.002

    def validate_s(self, recipe: Recipe, role: Role) -> float:
        return (0.2 if role == "teacher" else 0.02) * (recipe.data.image_size / 100) ** 2

    def teach_s(self, recipe: Recipe) -> float:
        return self.validate_s(recipe, "teacher")

    def answer_s(self, recipe: Recipe, role: Role, batch: int) -> float:
        return self.validate_s(recipe, role)

    def save_s(self, recipe: Recipe, role: Role) -> float:
        return 0.5

    def weights_bytes(self, recipe: Recipe, role: Role) -> int:
        return 40_000_000 if role == "teacher" else 1_000_000


def make_recipe(*overrides: str) -> Recipe:
    small = ["data.image_size=100", "data.resize=110", "teacher.epochs=3", "distill.epochs=6"]
    return Recipe().with_overrides([*small, "training.precision=fp32", *overrides])


def make_facts(command: Command = "run", **settings: Any) -> Facts:
    """1,000 training images, 100 for validation, 200 for tests; all decoded."""
    images = {"train": 1000, "valid": 100, "test": 200}
    return Facts(**{"command": command, "images": images, "num_classes": 10} | settings)
