"""The resume state of a training stage: one file, tensors and plain values only, whole or not at all."""

import io
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from toolkit.distill.metrics import EpochMetrics, from_values, to_values
from toolkit.distill.precision import Arithmetic
from toolkit.errors import ArtifactError, one_line
from toolkit.files import write_atomically

Settings = dict[str, Any]
"""stage, recipe_sha256, dataset_sha256 and all else that decides the result: only the same settings may go on."""


@dataclass
class TrainingProgress:
    """The place of a run: the next step, and the sums of the epoch so far."""

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    hits: int = 0
    epoch_s: float = 0.0
    seconds: float = 0.0
    training_s: float = 0.0
    images_seen: int = 0


@dataclass(frozen=True)
class StepState:
    """The state that steps change and depend on.

    `average` is None without averaged weights, `part_size` while memory is enough for whole batches.
    """

    learner: dict[str, Any]
    optimizer: dict[str, Any]
    scheduler: dict[str, Any]
    average: dict[str, Any] | None
    part_size: int | None


@dataclass(frozen=True)
class TrainingState:
    """The state that an interrupted training goes on from.

    `best`, whose weights `best_state` holds, is None before the first validation, `gpu_rng` on a CPU.
    """

    steps: StepState
    progress: TrainingProgress
    first_rate: float
    history: list[EpochMetrics]
    best: EpochMetrics | None
    best_state: dict[str, Tensor]
    rng: Tensor
    gpu_rng: Tensor | None
    precision: Arithmetic
    teacher_precision: Arithmetic

    @property
    def epoch(self) -> int:
        """Whole epochs that are done."""
        return self.progress.epoch

    def to_dict(self) -> dict[str, Any]:
        """The content of checkpoint.pt: tensors and plain values."""
        values = vars(self.steps) | {"epoch": self.epoch} | vars(self)
        del values["steps"]
        return values | {
            "progress": asdict(self.progress),
            "history": [to_values(metrics) for metrics in self.history],
            "best": to_values(self.best) if self.best else None,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The state from the values of `to_dict`; LookupError, TypeError or ValueError for anything else."""
        names = [field.name for of in (StepState, cls) for field in fields(of) if field.name != "steps"]
        if missing := [name for name in names if name not in values]:
            raise ValueError(f"it has no {', '.join(missing)}")
        made: dict[str, Any] = {
            "steps": StepState(**{field.name: values[field.name] for field in fields(StepState)}),
            "progress": TrainingProgress(**values["progress"]),
            "history": [from_values(metrics) for metrics in values["history"]],
            "best": from_values(values["best"]) if values["best"] else None,
        }
        return cls(**made | {field.name: values[field.name] for field in fields(cls) if field.name not in made})


class Checkpoint:
    """`checkpoint.pt` of one stage with its settings."""

    def __init__(self, path: Path, settings: Settings) -> None:
        self.path = path
        self.settings = settings

    def open(self, *, resume: bool, force: bool) -> TrainingState | None:
        """The state to go on from, None to start over.

        Raises ArtifactError if another run's state lies here, if this run's does without --resume and --force, or if it
        cannot be read.
        """
        if not self.path.exists():
            return None
        if force and not resume:
            self.discard()
            return None
        start_over = "or start over with --force (in Python: resume=True, force=True)"
        theirs, state = self._read()
        stage = theirs.get("stage")
        if stage != self.settings["stage"]:
            command = "teacher" if stage == "teacher" else "distill"
            raise ArtifactError(
                f"{self.path} is of an interrupted {stage} stage, not of {self.settings['stage']}",
                f"go on with toolkit {command} --resume, {start_over}",
            )
        differing = [key for key, value in self.settings.items() if theirs.get(key) != value]
        if differing:
            names = [key.removesuffix("_sha256").replace("_", " ") for key in differing]
            raise ArtifactError(
                f"{self.path} was made with another {' and '.join(names)}",
                f"give the settings it was made with, {start_over}",
            )
        if not resume:
            raise ArtifactError(
                f"an interrupted run lies in {self.path.parent} ({stage}, epoch {state.epoch + 1})",
                f"go on with --resume, {start_over}",
            )
        return state

    def save(self, state: TrainingState) -> None:
        """Write the state, whole or not at all. Raises ArtifactError if it cannot be written."""
        content = io.BytesIO()  # torch's own writer does not distinguish a full disk from a bug
        torch.save(state.to_dict() | {"settings": self.settings}, content)
        with write_atomically(self.path) as temporary:
            temporary.write_bytes(content.getbuffer())

    def discard(self) -> None:
        """Delete the state, and the unfinished files that killed processes left beside it."""
        self.path.unlink(missing_ok=True)
        for unfinished in self.path.parent.glob(f".{self.path.name}.*"):
            unfinished.unlink(missing_ok=True)

    def is_own(self) -> bool:
        """Whether a state of this very stage and settings lies here."""
        try:
            return self._read()[0] == self.settings
        except ArtifactError:
            return False

    def epochs_done(self) -> int:
        """Whole epochs that are done in a state of this very stage and settings; 0 if there is none."""
        return self._read()[1].epoch if self.is_own() else 0

    def discard_own(self) -> None:
        """Delete a state of this very stage and settings: its result is there already."""
        if self.is_own():
            self.discard()

    def _read(self) -> tuple[Settings, TrainingState]:
        """The file's content; ArtifactError if it is damaged or something else."""
        try:
            # bytes first: a file that is being read must not be damaged by one that is written meanwhile
            content = torch.load(io.BytesIO(self.path.read_bytes()), map_location="cpu", weights_only=True)
        except Exception as error:  # a parser of damaged bytes raises whatever the bytes lead it to
            raise self._unreadable(error) from None
        try:
            if not (isinstance(content, dict) and isinstance(content.get("settings"), dict)):
                raise ValueError("it is not a checkpoint")
            return content["settings"], TrainingState.from_dict(content)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: Exception) -> ArtifactError:
        return ArtifactError(f"{self.path} cannot be read ({one_line(error)})", "delete it, or start over with --force")
