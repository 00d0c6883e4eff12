"""What the student's classes and pictures are compared with. N images, C classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from toolkit.bench.measure.rows import Row
from toolkit.modeldir import ModelDir
from toolkit.networks.unmeasured import why_unmeasured
from toolkit.runtimes.base import Logits


@dataclass(frozen=True)
class Reference:
    """The first row of the teacher or, if none was measured, of the control; its `logits` are (N, C)."""

    role: Literal["teacher", "control"]
    logits: Logits


def find_reference(rows: Sequence[Row], answers: Sequence[Logits]) -> Reference | None:
    """None if there is neither a teacher nor a control."""
    roles: tuple[Literal["teacher", "control"], ...] = ("teacher", "control")
    for role in roles:
        for row, logits in zip(rows, answers, strict=True):
            if row.model == role:
                return Reference(role, logits)
    return None


def say_why_no_teacher(rows: Sequence[Row], model_dir: ModelDir) -> str:
    """A sentence; "" if the teacher is among the rows."""
    if any(row.model == "teacher" for row in rows):
        return ""
    reason = why_unmeasured(model_dir.weights("teacher")) or "it is an ONNX file, which torch cannot run"
    return f"There is no teacher to measure, because {reason}."
