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
from toolkit.bench.measure.cost import count_macs
from toolkit.bench.schema import RowFacts
from toolkit.data.batches import batches
from toolkit.data.pixels import Pixels
from toolkit.errors import ArtifactError
from toolkit.files import sha256_file
from toolkit.machine.limits import available_cores
from toolkit.modeldir import FilePrecision, ModelDir, Role
from toolkit.names import RuntimeName
from toolkit.networks.registry import count_parameters, has_file
from toolkit.networks.unmeasured import why_unmeasured
from toolkit.networks.weights import ModelInfo, load_model, read_info
from toolkit.recipe import Recipe
from toolkit.runtimes.base import Predictor, RowRuntime
from toolkit.runtimes.opening import ONNX_RUNTIMES, RUNTIMES, open_predictor, rows_of
from toolkit.sessions.providers import follow_device, gpu_index, pick_provider
from toolkit.settings import BenchRecipe

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
    """The same model in torch, on the CPU, for counting parameters and multiply-adds."""
    extra: dict[str, Any]
    """The weights file's figures about its training."""
    place: str = "cpu"
    """The requested place: a torch device, or a text for providers.pick_provider."""

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of the ONNX file; empty for torch."""
        found: dict[str, str] = getattr(self.predictor, "metadata", {})
        return found

    @property
    def remark(self) -> str:
        """The runtime's remark on this row; "" if it runs as it should."""
        return getattr(self.predictor, "remark", "")

    @property
    def name(self) -> str:
        return f"{self.model} {self.precision} ({self.predictor.runtime})"

    def describe(self) -> RowFacts:
        """The part of a report's row that needs no measuring."""
        return RowFacts(
            model=self.model,
            precision=self.precision,
            runtime=self.predictor.runtime,
            provider=self.predictor.provider,
            threads=self.predictor.threads,
            params=count_parameters(self.network),
            macs=count_macs(self.network, self.predictor.preprocess.image_size),
            size_bytes=self.path.stat().st_size,
            calibration=self.metadata.get("calibration"),
            float_layers=json.loads(self.metadata.get("float_layers", "[]")),
        )


def open_rows(
    model_dir: ModelDir, device: str, provider: str, runtimes: Sequence[RuntimeName] = BenchRecipe().runtimes
) -> list[Row]:
    """Teacher, student and the control, if there is one, in every runtime and precision; the teacher comes first.

    A teacher that cannot be exported has no row.

    torch computes in fp32, and on a GPU in fp16 too. Runtimes of ONNX files take every file that is there. onnxruntime
    on a GPU, the one of `device`, takes no int8 file, and has a row with I/O binding for each of the others.
    Raises ArtifactError if a file is missing or was made from another set of classes, DeviceError.
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
            if has_file(classifier.network) and RUNTIMES[runtime].reads == "weights":
                continue  # an imported ONNX file is not torch's to compute
            place = device if RUNTIMES[runtime].reads == "weights" else provider
            if RUNTIMES[runtime].compiles:
                console.say(f"{runtime}: compiling the {role}, which takes up to a minute")
            predictor = open_predictor(runtime, path, place, threads, precision)
            rows.append(Row(role, precision, path, predictor, classifier.network, info.extra, place))
    _require_alike(rows)
    return rows


def _find_roles(model_dir: ModelDir) -> list[Role]:
    student, control = model_dir.require(model_dir.weights("student")), model_dir.weights("control")
    teacher = model_dir.require(model_dir.weights("teacher"))
    roles: list[Role] = ["student"] if why_unmeasured(teacher) else ["teacher", "student"]
    if control.is_file():
        if is_control_of(read_info(control), read_info(student)):
            return [*roles, "control"]
        console.say(
            f"warning: {control} was trained with other settings than the student and is left out; train it again"
            " with toolkit distill --set distill.control=true --force"
        )
    return roles


def _list_files(
    model_dir: ModelDir, role: Role, device: str, runtimes: Sequence[RuntimeName], on_gpu: bool
) -> Iterator[tuple[RowRuntime, FilePrecision, Path]]:
    """`on_gpu`: whether onnxruntime runs on a GPU."""
    for name in dict.fromkeys(runtimes):
        runtime, weights, graphs = RUNTIMES[name], model_dir.weights(role), model_dir.onnx_files(role)
        on_its_gpu = on_gpu if runtime.reads == "onnx" else device != "cpu"
        for precision in runtime.precisions(on_gpu=on_its_gpu):
            path = weights if runtime.reads == "weights" else graphs.get(precision)
            if path is not None:
                yield from ((kind.name, precision, path) for kind in rows_of(name, on_gpu=on_its_gpu))


def find_remarks(rows: Sequence[Row], model_dir: ModelDir) -> list[str]:
    """Remarks on rows on a GPU: which of them do not run as they should, and which files have no row."""
    found = [row.remark for row in rows if row.remark]
    graphs = [model_dir.onnx_files(role) for role in dict.fromkeys(row.model for row in rows)]
    for name in dict.fromkeys(beside for row in rows if (beside := RUNTIMES[row.predictor.runtime].beside)):
        for precision, reason in RUNTIMES[name].not_on_gpu.items():
            if left_out := [files[precision].name for files in graphs if precision in files]:
                found.append(f"{name} has no row for {', '.join(left_out)}: {reason}")
    return found


def find_stale(rows: Sequence[Row], model_dir: ModelDir) -> list[str]:
    """A sentence for each ONNX file that was exported from other weights than those beside it now."""
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
        model = next(other for other in rows if (other.model == "teacher") == (row.model == "teacher"))
        seen, expected = row.predictor.preprocess, model.predictor.preprocess
        if (seen.image_size, seen.resize) != (expected.image_size, expected.resize):
            raise ArtifactError(
                f"{row.path} sees {seen.image_size} px, resized to {seen.resize}; "
                f"{model.path} {expected.image_size} px, resized to {expected.resize}",
                "make them again with the same [data] settings: toolkit distill --force, toolkit export --onnx --force",
            )


def is_control_of(control: ModelInfo, student: ModelInfo) -> bool:
    """Whether both were trained with the same student, seed, views, epochs and schedule, on the same images."""
    wanted = Recipe.model_validate(student.recipe).control_fingerprint()
    return (control.recipe_sha256, control.dataset_sha256) == (wanted, student.dataset_sha256)


def answer_images(
    predictor: Predictor,
    pixels: Pixels,
    indices: NDArray[np.integer],
    advance: Callable[[int], None] = lambda count: None,
) -> NDArray[np.float32]:
    """A predictor's logits (N, C) for the images at `indices`; `advance` is called with the images of each batch."""
    batch_size = max(1, min(LARGEST_BATCH, BATCH_PIXELS // predictor.preprocess.image_size**2))
    parts = []
    for batch in batches(indices, batch_size, 1):
        parts.append(predictor.logits(pixels.centre(batch)))
        advance(len(batch))
    return np.concatenate(parts)
