"""One Protocol over torch, onnxruntime and OpenVINO: uint8 images → logits. Bench, predict and the demo see only this.

N images, S px their side, C classes. Importing this module, and predicting from an ONNX file, does not import torch.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from toolkit.data.preprocess import Preprocess
from toolkit.errors import ArtifactError, WeightsError
from toolkit.recipe import Runtime

ImageBatch = NDArray[np.uint8]
Logits = NDArray[np.float32]

METADATA_NEEDED = ("classes", "preprocess")


IO_BINDING: Literal["onnxruntime.io_binding"] = "onnxruntime.io_binding"
"""onnxruntime on a GPU, without the copies to it and back: a row of the benchmark, and nobody's choice."""

RowRuntime = Runtime | Literal["onnxruntime.io_binding"]


class Predictor(Protocol):
    """A classifier that is ready to run."""

    classes: tuple[str, ...]
    preprocess: Preprocess
    runtime: str
    """one of RowRuntime"""
    provider: str
    """what it runs on: a torch device, a provider as providers.pick_provider names it, or OpenVINO's device"""
    threads: int
    """that one call may keep busy on the CPU"""

    def logits(self, images: ImageBatch) -> Logits:
        """uint8 images (N, S, S, 3), N ≥ 1, as `preprocess` makes them → float32 (N, C); ValueError for others."""
        ...


def softmax(logits: NDArray[np.floating], temperature: float = 1.0) -> NDArray[np.float64]:
    """Probabilities over the last axis of logits / temperature, in float64; no overflow for any finite logits."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    powers = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def top_k(probabilities: NDArray[np.floating], classes: Sequence[str], k: int) -> list[tuple[str, float]]:
    """The k likeliest classes of one image (C,), likeliest first; equal ones in class order. At most C of them."""
    if probabilities.shape != (len(classes),):
        raise ValueError(f"probabilities {probabilities.shape} are not one for each of {len(classes)} classes")
    order = np.argsort(-probabilities, kind="stable")[:k]
    return [(classes[i], float(probabilities[i])) for i in order]


def require_file(path: Path) -> None:
    if not path.is_file():
        raise ArtifactError(f"there is no ONNX file {path}", "make one with: toolkit export --onnx")


def damaged_file(runtime: str, path: Path, reason: str) -> ArtifactError:
    return ArtifactError(
        f"{runtime} cannot open {path}: {reason}",
        "give an .onnx file that is whole: make it again with `toolkit export --onnx`",
    )


def read_metadata(metadata: dict[str, str], path: Path) -> tuple[tuple[str, ...], Preprocess]:
    missing = [key for key in METADATA_NEEDED if key not in metadata]
    if missing:
        raise ArtifactError(
            f"{path} has no {' and no '.join(missing)} in its metadata, so it was not exported by this toolkit",
            "export the weights with `toolkit export --onnx`",
        )
    try:
        classes = json.loads(metadata["classes"])
    except ValueError:
        classes = None
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ArtifactError(
            f"{path}: the metadata `classes` is not a JSON list of names",
            "export it again with `toolkit export --onnx`",
        )
    try:
        return tuple(classes), Preprocess.from_json(metadata["preprocess"])
    except WeightsError as error:
        raise ArtifactError(f"{path}: {error.problem}", error.remedy) from None


def check_logits(shape: Sequence[Any] | None, num_classes: int, path: Path) -> None:
    """`shape` is that of the output `logits`, None where there is no such output."""
    remedy = "export the weights with `toolkit export --onnx`"
    if shape is None:
        raise ArtifactError(f"{path} has no output `logits`, so it was not exported by this toolkit", remedy)
    if shape[-1] != num_classes:
        raise ArtifactError(f"{path} names {num_classes} classes, its logits are for {shape[-1]}", remedy)


def check_images(images: ImageBatch, image_size: int) -> None:
    square = (image_size, image_size, 3)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != square or len(images) == 0:
        raise ValueError(
            f"images must be uint8 (N, {image_size}, {image_size}, 3), N ≥ 1, not {images.dtype} {images.shape}"
        )
