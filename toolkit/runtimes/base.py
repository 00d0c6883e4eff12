"""One interface to torch, onnxruntime and OpenVINO: uint8 images → logits. Bench, predict and the demo use only it.

A Runtime says what it reads and where it runs, and opens Predictors.

N images, S px their side, C classes. Importing this module, and predicting from an ONNX file, does not import torch.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from toolkit.data.preprocess import Preprocess
from toolkit.errors import ArtifactError, WeightsError
from toolkit.modeldir import FILE_PRECISIONS, FilePrecision
from toolkit.names import RuntimeName

ImageBatch = NDArray[np.uint8]
Logits = NDArray[np.float32]

METADATA_NEEDED = ("classes", "preprocess")


IO_BINDING: Literal["onnxruntime.io_binding"] = "onnxruntime.io_binding"
"""onnxruntime on a GPU, without the copies to it and back: a row of the benchmark that nobody can request."""

RowRuntime = RuntimeName | Literal["onnxruntime.io_binding"]


class Predictor(Protocol):
    """A classifier that is ready to run."""

    classes: tuple[str, ...]
    preprocess: Preprocess
    runtime: str
    """one of RowRuntime"""
    provider: str
    """where it runs: a torch device, a provider as providers.pick_provider names it, or OpenVINO's device"""
    threads: int
    """threads that one call may keep busy on the CPU"""

    def logits(self, images: ImageBatch) -> Logits:
        """uint8 images (N, S, S, 3), N ≥ 1, as `preprocess` makes them → float32 (N, C); ValueError for others."""
        ...


@dataclass(frozen=True)
class Runtime(ABC):
    """A way to run a network. `place` is a torch device for those that read weights, else a provider's short name."""

    name: RowRuntime
    reads: Literal["weights", "onnx"]
    compiles: bool = False
    """Whether opening takes up to a minute, so that a message comes first."""
    beside: RuntimeName | None = None
    """The runtime that this one accompanies on a GPU; nobody can request this one by itself."""
    not_on_gpu: Mapping[FilePrecision, str] = field(default_factory=dict, hash=False)
    """Precisions that have no row on a GPU → why, and what to do instead."""

    def require(self) -> None:  # noqa: B027 - most need nothing
        """DeviceError if what it needs is not installed."""

    def precisions(self, *, on_gpu: bool) -> tuple[FilePrecision, ...]:
        """Precisions that it computes in; of ONNX files those that are there."""
        return tuple(precision for precision in FILE_PRECISIONS if not (on_gpu and precision in self.not_on_gpu))

    @abstractmethod
    def start(self, path: Path, place: str) -> None:
        """Import what it needs for the network of `path` and run something tiny: no model's figures contain that."""

    @abstractmethod
    def open(self, path: Path, place: str, threads: int, precision: FilePrecision) -> Predictor:
        """A predictor of weights or an ONNX file; raises what its predictor raises.

        `precision` is that of torch's arithmetic; an ONNX file has its own.
        """


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
    """`shape` is that of the output `logits`, None if there is no such output."""
    remedy = "export the weights with `toolkit export --onnx`"
    if shape is None:
        raise ArtifactError(f"{path} has no output `logits`, so it was not exported by this toolkit", remedy)
    if shape[-1] != num_classes:
        raise ArtifactError(f"{path} names {num_classes} classes, but its logits are for {shape[-1]}", remedy)


def check_images(images: ImageBatch, image_size: int) -> None:
    square = (image_size, image_size, 3)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != square or len(images) == 0:
        raise ValueError(
            f"images must be uint8 (N, {image_size}, {image_size}, 3), N ≥ 1, not {images.dtype} {images.shape}"
        )
