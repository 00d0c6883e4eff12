"""A teacher and its student, ready to be asked about a picture. Knows nothing of the page that shows the answers."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from toolkit.modeldir import ModelDir
from toolkit.predict import Answer, ask, read_image
from toolkit.predictor import OnnxPredictor

TOP_K = 5


@dataclass(frozen=True)
class Comparison:
    """What both say about one picture; `seen` is uint8 (S, S, 3), the student's view of it."""

    seen: NDArray[np.uint8]
    teacher: Answer
    student: Answer

    @property
    def agree(self) -> bool:
        return self.teacher.top[0][0] == self.student.top[0][0]


@dataclass(frozen=True)
class Pair:
    """teacher.onnx and student.onnx of a model directory."""

    teacher: OnnxPredictor
    student: OnnxPredictor
    teacher_bytes: int
    student_bytes: int

    def compare(self, picture: Path, name: str = "") -> Comparison:
        """Ask both. DataError where the file is no picture, told by `name` (by default its path)."""
        image = read_image(picture, name)
        seen = self.student.preprocess(image)
        same = self.teacher.preprocess == self.student.preprocess
        teacher_view = seen if same else self.teacher.preprocess(image)
        return Comparison(seen, _ask_twice(self.teacher, teacher_view), _ask_twice(self.student, seen))


def open_pair(model_dir: ModelDir, provider: str) -> Pair:
    """Load and warm up both. ArtifactError names the command that makes what is missing."""
    teacher, student = (model_dir.require(model_dir.onnx(role)) for role in ("teacher", "student"))
    return Pair(_warmed_up(teacher, provider), _warmed_up(student, provider), _size(teacher), _size(student))


def _warmed_up(path: Path, provider: str) -> OnnxPredictor:
    predictor = OnnxPredictor(path, provider)
    size = predictor.preprocess.image_size
    predictor.logits(np.zeros((1, size, size, 3), np.uint8))  # the first run is slower: it is no request's latency
    return predictor


def _ask_twice(predictor: OnnxPredictor, pixels: NDArray[np.uint8]) -> Answer:
    """The second run's answer: after a pause the first one's latency is that of threads and caches waking up."""
    ask(predictor, pixels, TOP_K)
    return ask(predictor, pixels, TOP_K)


def _size(path: Path) -> int:
    return path.stat().st_size
