"""The rows of a report: which files are measured, in which runtime, and what each of them answers.

N images, C classes, S px is the side of what the networks see.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from toolkit import console
from toolkit.bench.measure.cost import count_macs, count_params
from toolkit.data.pixels import Pixels
from toolkit.errors import ArtifactError
from toolkit.files import sha256_file
from toolkit.machine.limits import available_cores
from toolkit.modeldir import FilePrecision, ModelDir, Role
from toolkit.networks.weights import ModelInfo, load_model, read_info
from toolkit.recipe import BenchRecipe, Recipe, Runtime
from toolkit.runtimes.base import IO_BINDING, Predictor, RowRuntime
from toolkit.runtimes.io_binding import IoBindingPredictor
from toolkit.runtimes.opening import ONNX_RUNTIMES, open_predictor
from toolkit.runtimes.providers import follow_device, gpu_index, pick_provider

BATCH_PIXELS = 2**20
"""px in a batch of the quality pass: 256 images of 64 px or less, so that activations stay small at any size."""
LARGEST_BATCH = 256
"""images; smaller batches are no faster: with memory kept (devices.keep_freed_memory), 64 took torch 4 % longer"""


@dataclass(frozen=True)
class Row:
    """One model file in one runtime."""

    model: Role
    precision: FilePrecision
    path: Path
    predictor: Predictor
    network: nn.Module
    """The same model in torch, on the CPU: what parameters and multiply-adds are counted on."""
    extra: dict[str, Any]
    """What the weights file tells of its training."""
    place: str = "cpu"
    """Where it was asked to run: a torch device, or what providers.pick_provider makes a provider of."""

    @property
    def metadata(self) -> dict[str, str]:
        """That of the ONNX file; empty for torch."""
        found: dict[str, str] = getattr(self.predictor, "metadata", {})
        return found

    @property
    def name(self) -> str:
        return f"{self.model} {self.precision} ({self.predictor.runtime})"

    def describe(self) -> dict[str, Any]:
        """The part of a report's row that needs no measuring."""
        return {
            "model": self.model,
            "precision": self.precision,
            "runtime": self.predictor.runtime,
            "provider": self.predictor.provider,
            "threads": self.predictor.threads,
            "params": count_params(self.network),
            "macs": count_macs(self.network, self.predictor.preprocess.image_size),
            "size_bytes": self.path.stat().st_size,
            "calibration": self.metadata.get("calibration"),
            "float_layers": json.loads(self.metadata.get("float_layers", "[]")),
        }


def open_rows(
    model_dir: ModelDir, device: str, provider: str, runtimes: Sequence[Runtime] = BenchRecipe().runtimes
) -> list[Row]:
    """Teacher, student and its control, where there is one, in every runtime and precision; the teacher is first.

    torch computes in fp32, on a GPU in fp16 too; runtimes of ONNX files take every one that is there, but onnxruntime
    on a GPU, which is the one of `device`: it takes no int8 file, and the others by I/O binding too.
    Raises ArtifactError where a file is missing or was made from another set of classes, DeviceError.
    """
    roles = _find_roles(model_dir)
    for role in roles:
        model_dir.require(model_dir.weights(role))
        if role != "control" and set(runtimes) & set(ONNX_RUNTIMES):
            model_dir.require(model_dir.onnx(role))
    provider = follow_device(provider, device)
    on_gpu = "onnxruntime" in runtimes and gpu_index(pick_provider(provider)) is not None
    threads = available_cores()  # the same for all runtimes, or they could not be compared
    rows = []
    for role in roles:
        classifier, info = load_model(model_dir.weights(role))
        for runtime, precision, path in _list_files(model_dir, role, device, runtimes, on_gpu):
            place = device if runtime.startswith("torch") else provider
            if runtime == "torch.compile":
                console.say(f"torch.compile: the {role}, up to a minute")
            predictor = open_predictor(runtime, path, place, threads, precision)
            rows.append(Row(role, precision, path, predictor, classifier.network, info.extra, place))
    _require_alike(rows)
    return rows


def _find_roles(model_dir: ModelDir) -> list[Role]:
    student, control = model_dir.require(model_dir.weights("student")), model_dir.weights("control")
    if control.is_file():
        if is_control_of(read_info(control), read_info(student)):
            return ["teacher", "student", "control"]
        console.say(
            f"warning: {control} was trained with other settings than the student and is left out; make it again"
            " with toolkit distill --set distill.control=true --force"
        )
    return ["teacher", "student"]


def _list_files(
    model_dir: ModelDir, role: Role, device: str, runtimes: Sequence[Runtime], on_gpu: bool
) -> Iterator[tuple[RowRuntime, FilePrecision, Path]]:
    """`on_gpu`: whether onnxruntime is."""
    for runtime in dict.fromkeys(runtimes):
        if runtime == "onnxruntime" and on_gpu:
            for precision, path in model_dir.onnx_files(role).items():
                if precision != "int8":
                    yield from ((kind, precision, path) for kind in (runtime, IO_BINDING))
        elif runtime in ONNX_RUNTIMES:
            yield from ((runtime, precision, path) for precision, path in model_dir.onnx_files(role).items())
        else:
            yield runtime, "fp32", model_dir.weights(role)
            if runtime == "torch" and device != "cpu":
                yield runtime, "fp16", model_dir.weights(role)


def find_remarks(rows: Sequence[Row], model_dir: ModelDir) -> list[str]:
    """What a reader must know of onnxruntime's rows on a GPU: which files have none, and which run without a graph."""
    predictors = [row.predictor for row in rows]
    found = [predictor.remark for predictor in predictors if isinstance(predictor, IoBindingPredictor)]
    roles = dict.fromkeys(row.model for row in rows)
    int8 = [model_dir.onnx(role, "int8").name for role in roles if "int8" in model_dir.onnx_files(role)]
    if found and int8:
        found.append(
            f"onnxruntime has no row for {', '.join(int8)}: its CUDA provider computes int8 files in float;"
            " measure them with --provider cpu"
        )
    return [remark for remark in found if remark]


def find_stale(rows: Sequence[Row], model_dir: ModelDir) -> list[str]:
    """A sentence for each ONNX file that was exported from other weights than those that lie beside it now."""
    weights = {row.model: model_dir.weights(row.model) for row in rows}
    now = {role: sha256_file(path) for role, path in weights.items() if path.is_file()}
    stale = {
        row.path: weights[row.model].name
        for row in rows
        if row.metadata.get("weights_sha256") not in (None, now.get(row.model))
    }
    return [
        f"{path.name} was exported from other weights than {name} has now; export it again with"
        " toolkit export --onnx --force"
        for path, name in stale.items()
    ]


def _require_alike(rows: Sequence[Row]) -> None:
    first = rows[0].predictor
    for row in rows[1:]:
        if row.predictor.classes != first.classes:
            raise ArtifactError(
                f"{row.path} and {rows[0].path} were made for other classes",
                "make them again from the same data: toolkit distill --force, toolkit export --onnx --force",
            )
        seen, expected = row.predictor.preprocess, first.preprocess
        if (seen.image_size, seen.resize) != (expected.image_size, expected.resize):
            raise ArtifactError(
                f"{row.path} sees {seen.image_size} px, resized to {seen.resize}; "
                f"{rows[0].path} {expected.image_size} px, resized to {expected.resize}",
                "make them again with the same [data] settings: toolkit distill --force, toolkit export --onnx --force",
            )


def is_control_of(control: ModelInfo, student: ModelInfo) -> bool:
    """Whether both were trained with the same student, seed, views, epochs and schedule, on the same images."""
    wanted = Recipe.model_validate(student.recipe).control_fingerprint()
    return (control.recipe_sha256, control.dataset_sha256) == (wanted, student.dataset_sha256)


def answer_images(
    predictors: Sequence[Predictor],
    pixels: Pixels,
    indices: NDArray[np.integer],
    advance: Callable[[int], None] = lambda count: None,
) -> list[NDArray[np.float32]]:
    """Each one's logits (N, C) for the images at `indices`; `advance` is told how many images one has done.

    One after the other: in turns, threads of the one before would go on spinning.
    """
    batch_size = max(1, min(LARGEST_BATCH, BATCH_PIXELS // predictors[0].preprocess.image_size ** 2))
    answers = []
    for predictor in predictors:
        parts = []
        for batch in _batches(indices, batch_size):
            parts.append(predictor.logits(pixels.centre(batch)))
            advance(len(batch))
        answers.append(np.concatenate(parts))
    return answers


def choose_images(available: int, wanted: int) -> NDArray[np.int64]:
    """Indices of `wanted` images (0: all) spread evenly over the split, so that sorted classes all take part."""
    if wanted == 0 or wanted >= available:
        return np.arange(available)
    return np.arange(wanted) * available // wanted


def _batches(indices: NDArray[np.integer], size: int) -> Iterator[NDArray[np.integer]]:
    for start in range(0, len(indices), size):
        yield indices[start : start + size]
