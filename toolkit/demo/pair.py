"""A teacher and its student, ready to answer pictures. This module knows nothing of the page that shows the answers."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from toolkit.bench.schema import read_report
from toolkit.data.preprocess import UNREADABLE, count_frames, upright_size
from toolkit.errors import ArtifactError, DataError
from toolkit.modeldir import FilePrecision, ModelDir, Role
from toolkit.predict import Prediction, ask, no_memory_for, open_picture
from toolkit.runtimes.onnxruntime import OnnxPredictor

TOP_K = 5


@dataclass(frozen=True)
class NetworkFile:
    """A network and its file's size in bytes."""

    precision: FilePrecision
    predictor: OnnxPredictor
    size_bytes: int

    def ask(self, pixels: NDArray[np.uint8]) -> Prediction:
        """The answer of a second run: after a pause, the first run also wakes up threads and caches."""
        ask(self.predictor, pixels, TOP_K)
        return ask(self.predictor, pixels, TOP_K)


@dataclass(frozen=True)
class PairPrediction:
    """The answers of both to one picture; `seen` is uint8 (S, S, 3), the student's input."""

    teacher_file: NetworkFile
    student_file: NetworkFile
    size: tuple[int, int]
    """The picture's width and height in px, upright."""
    notes: Mapping[str, int]
    """Properties of an unusual picture: animated (its frames), deep, transparent, tiny."""
    seen: NDArray[np.uint8]
    teacher: Prediction
    student: Prediction

    @property
    def agree(self) -> bool:
        return self.teacher.top[0][0] == self.student.top[0][0]

    def to_json(self) -> dict[str, Any]:
        """Plain values for the page and for programs; probabilities and logits have all their digits."""
        return {
            "agree": self.agree,
            "teacher": _describe(self.teacher, self.teacher_file),
            "student": _describe(self.student, self.student_file),
            "classes": list(self.student_file.predictor.classes),
            "width": self.size[0],
            "height": self.size[1],
            "image_size": len(self.seen),
            "notes": dict(self.notes),
        }


@dataclass(frozen=True)
class Pair:
    """The ONNX files of a model directory, by precision; both have fp32."""

    teachers: Mapping[FilePrecision, NetworkFile]
    students: Mapping[FilePrecision, NetworkFile]

    def compare(self, picture: Path, name: str = "", precision: str = "fp32") -> PairPrediction:
        """Ask both. DataError if the file is not a picture; it names the file as `name` (by default its path).

        `precision` is one of `students`; the teacher answers in fp32 if it has no file of that precision.
        """
        chosen = next((known for known in self.students if known == precision), None)
        if chosen is None:
            raise DataError(f"there is no student in {precision!r}", f"choose one of: {', '.join(self.students)}")
        student, teacher = self.students[chosen], self.teachers.get(chosen, self.teachers["fp32"])
        cut, cut_teacher = student.predictor.preprocess, teacher.predictor.preprocess
        with open_picture(picture, name) as image:
            is_deep = _is_deep(image)
            seen = cut(image)
            teacher_view = seen if cut == cut_teacher else cut_teacher(image)
            size, notes = upright_size(image), _note(image, is_deep, cut.resize or cut.image_size)
        try:
            answers = teacher.ask(teacher_view), student.ask(seen)
        except MemoryError:
            raise no_memory_for(f"ask the networks about {name or picture}") from None
        return PairPrediction(teacher, student, size, notes, seen, *answers)


def open_pair(model_dir: ModelDir, provider: str) -> Pair:
    """Load and warm up all files. ArtifactError names the command for a missing file, or the file that does not fit."""
    _require_teacher(model_dir)
    return Pair(_load_all(model_dir, "teacher", provider), _load_all(model_dir, "student", provider))


def _require_teacher(model_dir: ModelDir) -> None:
    """ArtifactError if the report says that there is none to show."""
    try:
        reason = read_report(model_dir.report_json).no_teacher.rstrip(".")
    except ArtifactError:
        return  # without a readable report, the files decide
    if reason:
        path = model_dir.path
        raise ArtifactError(
            f"{path}: the demo shows teacher and student, and {reason[0].lower()}{reason[1:]}",
            f"ask the student with: toolkit predict {shlex.quote(str(path))} IMAGE",
        )


def _load_all(model_dir: ModelDir, role: Role, provider: str) -> dict[FilePrecision, NetworkFile]:
    model_dir.require(model_dir.onnx(role))
    files = model_dir.onnx_files(role)
    return {precision: _load(path, precision, provider) for precision, path in files.items()}


def _load(path: Path, precision: FilePrecision, provider: str) -> NetworkFile:
    predictor = OnnxPredictor(path, provider)
    size = predictor.preprocess.image_size
    predictor.logits(np.zeros((1, size, size, 3), np.uint8))  # the first run is slower; no request shall measure it
    return NetworkFile(precision, predictor, path.stat().st_size)


def _describe(answer: Prediction, loaded: NetworkFile) -> dict[str, Any]:
    return {
        "top": [{"class": name, "probability": probability} for name, probability in answer.top],
        "logits": [float(value) for value in answer.logits],
        "precision": loaded.precision,
        "latency_ms": answer.latency_ms,
        "size_bytes": loaded.size_bytes,
        "provider": loaded.predictor.provider,
    }


def _is_transparent(image: Image.Image) -> bool:
    """Whether any pixel is transparent: an alpha channel may be opaque everywhere."""
    if "A" not in image.getbands():
        return image.has_transparency_data
    return int(image.getchannel("A").getextrema()[0]) < 255  # type: ignore[arg-type]


def _is_deep(image: Image.Image) -> bool:
    """Whether a channel has 16 bits; for colour pictures Pillow only knows it before it decodes them."""
    return image.mode.startswith("I") or any(";16" in str(tile.args) for tile in getattr(image, "tile", ()))


def _note(image: Image.Image, is_deep: bool, side: int) -> dict[str, int]:
    try:
        frames = count_frames(image)
    except UNREADABLE:  # later frames may be damaged: only the first one is used
        frames = 1
    notes = {
        "animated": frames if frames > 1 else 0,
        "deep": int(is_deep),
        "transparent": int(_is_transparent(image)),
        "tiny": int(min(image.size) < side),
    }
    return {name: value for name, value in notes.items() if value}
