"""The contents of a model directory besides its networks: test images, the report and its plots, as plain values.

If something is missing, the page names the command that makes it. Nothing here is a network's answer to a visitor's
picture.
"""

import base64
import io
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from toolkit import console
from toolkit.bench.report.advice import describe_knowledge
from toolkit.bench.report.examples import Example, Examples, read_picture
from toolkit.bench.report.verdict import name_gpu
from toolkit.bench.schema import Report, first_reason
from toolkit.errors import ArtifactError
from toolkit.modeldir import BENCH_PLOTS, ModelDir

THUMBNAIL = 160
"""px, the longer side"""
PLOTS = ("accuracy_latency", "learning_curves", "reliability", "confusion_difference")


@dataclass(frozen=True)
class Contents:
    """Values of the page's components, as page.js takes them."""

    examples: dict[str, Any]
    report: dict[str, Any]
    plots: dict[str, Any]
    archive: Path
    index: Examples | None

    def picture(self, kind: str, place: int) -> Image.Image | None:
        """The full test image at `place` of `kind` (examples or disagreements); None if there is none."""
        kept: Sequence[Example] = getattr(self.index, kind, ())
        return read_picture(self.archive, kept[place]) if 0 <= place < len(kept) else None


def read_contents(model_dir: ModelDir) -> Contents:
    """Read all files that exist. If one cannot be read, stderr and its tab say so, and the rest goes on."""
    command = f"toolkit bench {shlex.quote(str(model_dir.path))}"
    archive = model_dir.examples
    index, examples = None, {}
    report = {}
    try:
        index = Examples.read(archive) if archive.is_file() else None
        examples = _show_examples(archive, index) if index else {}
    except ArtifactError as error:
        examples = _tell(error)
    try:
        report = _read_report(model_dir.report_json) if model_dir.report_json.is_file() else {}
    except ArtifactError as error:
        report = _tell(error)
    pictures = [
        {"name": name, "src": to_url("image/png", model_dir.plot(name).read_bytes())}
        for name in PLOTS
        if model_dir.plot(name).is_file()
    ]
    return Contents(
        {"command": command, **examples},
        {"command": command, **report},
        {"command": command, "pictures": pictures, "complete": {one["name"] for one in pictures} >= set(BENCH_PLOTS)},
        archive,
        index,
    )


def _tell(error: ArtifactError) -> dict[str, Any]:
    console.say(f"warning: {error}")
    return {"problem": error.problem}


def show_pixels(pixels: NDArray[np.uint8]) -> str:
    """uint8 (H, W, 3) as a URL that holds every pixel."""
    return _image_url(Image.fromarray(pixels), "PNG")


def to_url(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def _show_examples(archive: Path, index: Examples) -> dict[str, Any]:
    def show(example: Example) -> dict[str, Any]:
        picture = read_picture(archive, example)
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        return {**vars(example), "src": _image_url(picture, "WEBP")}

    lists = {key: [show(example) for example in getattr(index, key)] for key in ("examples", "disagreements")}
    return {"dataset": index.dataset, "images": index.images, "differing": index.differing, **lists}


def _read_report(path: Path) -> dict[str, Any]:
    try:
        report = Report.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        reason = first_reason(error) if isinstance(error, ValidationError) else error.strerror
        raise ArtifactError(f"{path} cannot be read ({reason})", "make it again with: toolkit bench") from None
    return {
        "rows": [row.to_json() for row in report.rows],
        "dataset": report.dataset.name,
        "images": report.dataset.images,
        "hardware": name_gpu(report.hardware) or report.hardware.cpu,
        "cores": report.hardware.cores,
        "date": report.created[:10],
        "verdict": report.verdict,
        "gain": report.distillation.mean,
        "beyond_labels": describe_knowledge(report.distillation),
        "seeds": len(report.distillation.seeds or ()),
    }


def _image_url(image: Image.Image, kind: str) -> str:
    stream = io.BytesIO()
    image.save(stream, kind)
    return to_url(f"image/{kind.lower()}", stream.getvalue())
