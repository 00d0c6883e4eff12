"""Figures while a network trains: metrics.jsonl, a line on stderr, and TensorBoard if requested."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit import console
from toolkit.errors import TrainingError
from toolkit.files import locked, unwritable, write_atomically
from toolkit.modeldir import Role

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

STAGES: dict[Role, str] = {"teacher": "teacher", "student": "distill", "control": "control"}
"""Role → `stage` in metrics.jsonl and the folder of TensorBoard's files; only this module knows these words."""
ROLES = {stage: role for role, stage in STAGES.items()}


@dataclass(frozen=True)
class EpochMetrics:
    """A line of metrics.jsonl. Losses are means over images, accuracies fractions; `seconds` since the training began.

    `learning_rate` is that of the epoch's first step; `image_size` in px.
    """

    role: Role
    epoch: int
    train_loss: float
    train_accuracy: float
    valid_loss: float
    valid_accuracy: float
    train_img_s: float
    seconds: float
    learning_rate: float
    image_size: int


class MetricsLog:
    """One role's lines in a file that all roles share; another process may train another role meanwhile."""

    def __init__(self, path: Path, role: Role, epochs: int, tensorboard: Path | None = None) -> None:
        self._path, self._role, self._epochs = path, role, epochs
        self._writer = _open_tensorboard(tensorboard / STAGES[role]) if tensorboard else None

    def start(self, history: list[EpochMetrics]) -> None:
        """Drop what an earlier run of this role wrote; `history` is what it goes on from."""
        with locked(self._path.parent):
            others = []
            if self._path.exists():
                others = [
                    line
                    for line in self._path.read_text(encoding="utf-8").splitlines()
                    if _role_of(line) not in (None, self._role)
                ]
            if others or history:
                with write_atomically(self._path) as temporary:
                    lines = (*others, *map(_to_json, history))
                    temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            else:
                self._path.unlink(missing_ok=True)

    def add(self, metrics: EpochMetrics) -> None:
        """Append a line, and print it with the time left. Raises ArtifactError if it cannot be written."""
        try:
            with locked(self._path.parent), self._path.open("a", encoding="utf-8") as file:
                file.write(_to_json(metrics) + "\n")
        except OSError as error:
            raise unwritable(self._path, error) from None
        done = metrics.epoch + 1
        left = metrics.seconds / done * (self._epochs - done)
        console.say(
            f"{metrics.role:8}{done:4}/{self._epochs}"
            f"  train loss {metrics.train_loss:.4f} acc {metrics.train_accuracy:.4f}"
            f"  valid loss {metrics.valid_loss:.4f} acc {metrics.valid_accuracy:.4f}"
            f"  {metrics.train_img_s:.0f} img/s  {console.duration(left)} left"
        )
        if self._writer is not None:
            for name, value in asdict(metrics).items():
                if name not in ("role", "epoch"):
                    self._writer.add_scalar(name, value, done)
            self._writer.flush()


def to_values(metrics: EpochMetrics) -> dict[str, Any]:
    """The object of a line in metrics.jsonl."""
    values = asdict(metrics)
    return {"stage": STAGES[values.pop("role")]} | values


def from_values(values: Mapping[str, Any]) -> EpochMetrics:
    """The metrics that `to_values` was given."""
    others = {name: value for name, value in values.items() if name != "stage"}
    return EpochMetrics(role=ROLES[values["stage"]], **others)


def read_metrics(path: Path) -> list[EpochMetrics]:
    """Every line of a metrics.jsonl."""
    return [from_values(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def _to_json(metrics: EpochMetrics) -> str:
    return json.dumps(to_values(metrics))


def _role_of(line: str) -> Role | None:
    """None for a line that was cut off as it was written: the checkpoint has its figures."""
    try:
        return ROLES[json.loads(line)["stage"]]
    except (ValueError, TypeError, KeyError):
        return None


def require_tensorboard() -> None:
    """TrainingError if --tensorboard lacks its package."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise TrainingError(
            f"--tensorboard needs a package that is not installed ({error})", "pip install 'kd-toolkit[tensorboard]'"
        ) from None


def _open_tensorboard(folder: Path) -> "SummaryWriter":
    require_tensorboard()
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder))
