"""Answers for picture files, from an ONNX file alone: no torch, no recipe, no training data.

`toolkit predict` and the demo open files with `open_picture` and ask with `ask`, so they cannot disagree about a file.
"""

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ImageFile
from rich.table import Table
from rich.text import Text

from toolkit import console
from toolkit.data.findings import say_briefly
from toolkit.data.folders import read_folder
from toolkit.data.formats import FORMAT_NAMES, PICTURE_ENDINGS
from toolkit.data.oddities import describe_passed_over
from toolkit.data.picture_file import TooLargeError, UnreadKindError, open_image
from toolkit.data.preprocess import NO_MEMORY, UNREADABLE, Preprocess, why_unreadable
from toolkit.errors import ArtifactError, DataError
from toolkit.modeldir import ModelDir
from toolkit.runtimes.base import Predictor, softmax, top_k
from toolkit.runtimes.onnxruntime import OnnxPredictor

Reason = Literal["empty", "unreadable", "too_large", "no_memory"]


class PictureError(DataError):
    """A file that is not a picture, or that is too large."""

    def __init__(self, problem: str, remedy: str, reason: Reason) -> None:
        super().__init__(problem, remedy)
        self.reason = reason


@dataclass(frozen=True)
class Prediction:
    """A network's answer for one picture."""

    top: tuple[tuple[str, float], ...]
    """Class and probability, most probable first."""
    latency_ms: float
    """Time of the network alone, without reading and preprocessing the picture."""
    logits: NDArray[np.float32] = field(compare=False, repr=False)
    """(C,)"""


@dataclass(frozen=True)
class FilePrediction:
    """One file's answer, or the reason why there is none."""

    path: Path
    answer: Prediction | None
    error: DataError | None = None


def predict_files(model: Path, images: Sequence[Path], k: int = 5, provider: str = "auto") -> list[FilePrediction]:
    """Ask `model`, an .onnx file or a model directory with student.onnx, about every file; directories are expanded.

    A file that is missing or not an image gets an error as its answer, and does not stop the others. Raises
    ArtifactError for a model that is not there, DataError for a directory without images, DeviceError.
    """
    predictor = OnnxPredictor(find_model(model), provider)
    paths = [path for image in images for path in _expand(image)]
    warm_up(predictor)
    return [_predict_file(predictor, path, k) for path in paths]


def find_model(model: Path) -> Path:
    """The ONNX file that `model` means: itself, or student.onnx of a model directory."""
    if model.is_dir():
        model_dir = ModelDir(model)
        return model_dir.require(model_dir.onnx("student"))
    if model.suffix != ".onnx":
        raise ArtifactError(
            f"{model} is not an .onnx file, and not a model directory",
            "give one of these; toolkit export --onnx makes the file",
        )
    if not model.is_file():
        raise ArtifactError(f"there is no file {model}", "check the path; toolkit export --onnx makes such a file")
    return model


@contextlib.contextmanager
def open_picture(path: Path, name: str = "") -> Iterator[ImageFile.ImageFile]:
    """A picture of a known format, not decoded yet; the block decodes it.

    If either fails, DataError says `name`, by default the path, and the reason. Too little memory is one.
    """
    name = name or str(path)
    try:
        yield open_image(path)
    except FileNotFoundError:
        raise DataError(f"{name} is not there", "check the path") from None
    except IsADirectoryError:
        raise DataError(f"{name} is a directory", "give an image file") from None
    except PermissionError:
        raise DataError(f"{name} may not be read", "check its permissions") from None
    except TooLargeError as error:
        raise PictureError(f"{name} is too large ({error})", error.remedy, "too_large") from None
    except UnreadKindError as error:
        raise PictureError(f"cannot read {name} as an image: {error}", error.remedy, "unreadable") from None
    except UNREADABLE as error:
        if (why := why_unreadable(error)) == NO_MEMORY:
            raise no_memory_for(f"decode {name}") from None
        raise PictureError(
            f"cannot read {name} as an image: {why}",
            f"give a {FORMAT_NAMES} file",
            "empty" if _is_empty(path) else "unreadable",
        ) from None


def read_pixels(path: Path, preprocess: Preprocess) -> NDArray[np.uint8]:
    """A file as a network sees it, uint8 (S, S, 3). Raises DataError as `open_picture` does."""
    with open_picture(path) as image:
        return preprocess(image)


def _is_empty(path: Path) -> bool:
    with contextlib.suppress(OSError, ValueError):  # a name that is too long, or that holds a zero byte
        return path.stat().st_size == 0
    return False


def warm_up(predictor: Predictor) -> None:
    """Ask once: the first run is slower than others."""
    size = predictor.preprocess.image_size
    predictor.logits(np.zeros((1, size, size, 3), np.uint8))


def ask(predictor: Predictor, pixels: NDArray[np.uint8], k: int) -> Prediction:
    """The k most probable classes of one preprocessed picture (S, S, 3), fewer if there are fewer classes."""
    batch = np.ascontiguousarray(pixels[np.newaxis])
    start = time.perf_counter_ns()
    logits = predictor.logits(batch)
    latency_ms = (time.perf_counter_ns() - start) / 1e6
    return Prediction(tuple(top_k(softmax(logits)[0], predictor.classes, k)), latency_ms, logits[0])


def print_predictions(predictions: Sequence[FilePrediction], *, as_json: bool = False) -> None:
    """Print the answers on stdout, as a table or as JSON; then DataError if a file had none, naming the first."""
    if as_json:
        text = json.dumps(to_json(predictions), indent=2, ensure_ascii=False)
        console.out.print(text.encode(errors="backslashreplace").decode(), markup=False)  # a name may not be UTF-8
    else:
        for prediction in predictions:
            if prediction.answer:
                console.out.print(_table(prediction.path, prediction.answer))
    errors = [prediction.error for prediction in predictions if prediction.error]
    for error in errors[1:]:
        console.say(str(error))
    if errors:
        raise errors[0]


def to_json(predictions: Sequence[FilePrediction]) -> list[dict[str, object]]:
    """One object per file: image, top [{class, probability}], latency_ms; or image and error."""
    return [
        {"image": str(prediction.path), "error": str(prediction.error)}
        if prediction.answer is None
        else {
            "image": str(prediction.path),
            "top": [{"class": name, "probability": probability} for name, probability in prediction.answer.top],
            "latency_ms": prediction.answer.latency_ms,
        }
        for prediction in predictions
    ]


def _predict_file(predictor: Predictor, path: Path, k: int) -> FilePrediction:
    try:
        return FilePrediction(path, ask(predictor, read_pixels(path, predictor.preprocess), k))
    except DataError as error:
        return FilePrediction(path, None, error)
    except MemoryError:
        return FilePrediction(path, None, no_memory_for(f"ask the network about {path}"))


def _expand(path: Path) -> list[Path]:
    """The file, or the pictures in a folder; what is passed over there is said on stderr."""
    if not path.is_dir():
        return [path]
    folder = read_folder(path)
    remarks = say_briefly(describe_passed_over(folder.all_passed_over()))
    if not folder.has_pictures:
        passed = f" ({'; '.join(remarks)})" if remarks else ""
        raise DataError(
            f"there is no image in {path}{passed}", f"image files end in {', '.join(sorted(PICTURE_ENDINGS))}"
        )
    for remark in remarks:
        console.say(f"{path}: {remark}")
    return sorted(path / picture for picture in folder.all_pictures())


def no_memory_for(work: str) -> PictureError:
    return PictureError(f"there is not enough memory to {work}", "give a smaller picture, or more memory", "no_memory")


def _table(path: Path, answer: Prediction) -> Table:
    title = Text(f"{console.printable(str(path))}  ({answer.latency_ms:.2f} ms)", style="bold")
    table = Table(title=title, title_justify="left", box=None)
    table.add_column("class")
    table.add_column("probability", justify="right")
    table.add_column("")
    for name, probability in answer.top:
        table.add_row(Text(name), f"{probability:.1%}".replace("%", " %"), "█" * round(probability * 30))
    return table
