"""What a stage made, and whether what already lies at its destination may stay or be replaced."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit import console
from toolkit.errors import ArtifactError
from toolkit.networks.weights import ModelInfo, read_info


@dataclass(frozen=True)
class Made:
    """A weights file of the model directory; `new` is False where an up-to-date one was kept."""

    path: Path
    new: bool
    info: ModelInfo


def check_destination(destination: Path, settings: dict[str, Any], force: bool) -> Made | None:
    """None where the stage has to run; the file there, where it came from these very `settings`.

    `settings` are recipe_sha256, dataset_sha256 and whatever else decides the result. Raises ArtifactError where
    another run's file lies there and `force` is not given.
    """
    if force or not destination.exists():
        return None
    info = read_info(destination)
    known = {
        "recipe_sha256": info.recipe_sha256,
        "dataset_sha256": info.dataset_sha256,
        "teacher_sha256": info.teacher_sha256,
        **info.extra,
    }
    differing = [name.removesuffix("_sha256") for name, value in settings.items() if known.get(name) != value]
    if differing:
        raise ArtifactError(
            f"{destination} was made from another {' and '.join(differing)}",
            "choose another directory with --out, or replace it with --force",
        )
    console.say(f"{destination} is up to date (same settings, data and teacher); --force makes it again")
    return Made(destination, new=False, info=info)
