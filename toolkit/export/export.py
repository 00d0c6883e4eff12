"""The export stage: from weights to ONNX files that are proven to answer as the weights do, or no file at all."""

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray

from toolkit import __version__, console
from toolkit.data.dataset import spread
from toolkit.data.pixels import Pixels
from toolkit.errors import ArtifactError, DataError, GateError
from toolkit.export.int8 import quantize_within, times_faster
from toolkit.export.samples import choose_samples, read_batches
from toolkit.export.verify import Bounds, Reference, prove_file, refer_to_network
from toolkit.files import sha256_file, write_atomically
from toolkit.graphs.build import check_graph, set_metadata
from toolkit.graphs.compose import make_graph
from toolkit.graphs.half import halve
from toolkit.graphs.layers import find_layers, name_nodes
from toolkit.graphs.ranges import Ranges
from toolkit.machine.limits import available_cores
from toolkit.modeldir import FilePrecision, ModelDir, Role
from toolkit.networks.bare import describe_bare_weights
from toolkit.networks.classifier import Classifier
from toolkit.networks.of_answers import Answers
from toolkit.networks.registry import has_file
from toolkit.networks.unmeasured import why_unmeasured
from toolkit.networks.weights import ModelInfo, carries_info, load_model
from toolkit.recipe import Recipe


@dataclass(frozen=True)
class ExportOptions:
    """What to export, and on which images to prove it.

    `valid` are the validation images, `train` the training images that int8 is calibrated on; None if there are
    none. fp32 is always written, as the others are made from it.
    """

    recipe: Recipe
    valid: Pixels | None = None
    train: Pixels | None = None
    smaller: tuple[FilePrecision, ...] = ()
    force: bool = False

    @property
    def precisions(self) -> tuple[FilePrecision, ...]:
        return ("fp32", *self.smaller)


@dataclass(frozen=True)
class ExportResult:
    """A written file and the figures of its proof. Accuracies are None if there were no validation images.

    `accuracy_reference` is torch's for fp32 and fp16, the fp32 file's for int8. `float_layers` stayed float32 in a
    smaller file; `times_faster` is one image's latency of fp32 over its own, on this machine's CPU, None for fp32.
    """

    path: Path
    precision: FilePrecision
    size_bytes: int
    max_logit_difference: float
    agreement: float
    accuracy_reference: float | None
    accuracy_onnx: float | None
    images: int
    seconds: float
    float_layers: tuple[str, ...] = ()
    times_faster: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"path": str(self.path)}

    def summary(self) -> str:
        """One line for people."""
        whose = "fp32" if self.precision == "int8" else "torch"
        accuracy = (
            "accuracy not checked (no validation images)"
            if self.accuracy_onnx is None
            else f"accuracy {self.accuracy_onnx:.4f} ({whose} {self.accuracy_reference:.4f})"
        )
        line = (
            f"{self.path}  {console.size(self.size_bytes)}  {console.duration(self.seconds)}  "
            f"logits within {self.max_logit_difference:.1e} of {whose}'s, "
            f"same class on {self.agreement:.2%} of {self.images} images, {accuracy}"
        )
        if self.float_layers:
            line += f"; left in float32: {', '.join(self.float_layers)}"
        return line + (f"; {self.describe_speed()}" if self.times_faster else "")

    def describe_speed(self) -> str:
        """`0.7 times as fast as fp32 on this CPU: slower`"""
        assert self.times_faster is not None
        text = f"{self.times_faster:.2f} times as fast as fp32 on this CPU"
        return f"{text}: slower" if self.times_faster < 1 else text


def export_onnx(weights: Path, destination: Path, options: ExportOptions) -> list[ExportResult]:
    """Export a .safetensors file of the toolkit as `destination`, and beside it its smaller precisions.

    Raises ArtifactError if a destination holds an export of other weights and `force` is not given, and DataError if
    int8 lacks images. Raises GateError, and leaves no file of that precision, if the file does not answer as it should.
    """
    check_destinations(weights, destination, options)
    start = time.perf_counter()
    classifier, info = load_model(weights)
    if isinstance(classifier.network, Answers):
        raise ArtifactError(f"{weights} holds a teacher's answers, and no network", "export the student's weights")
    return _Export(classifier, info, weights, destination, options).run(start)


def export_model_dir(model_dir: ModelDir, options: Mapping[Role, ExportOptions]) -> list[ExportResult]:
    """Export each role's weights of a model directory; all destinations are checked before the first is written.

    A teacher of which no file can be made is left out, which a line says.
    """
    if "teacher" in options and (reason := why_unmeasured(model_dir.require(model_dir.weights("teacher")))):
        console.say(f"export: the student alone; the teacher is left out, because {reason}")
        options = {role: own for role, own in options.items() if role != "teacher"}
    for role, own in options.items():
        check_destinations(model_dir.require(model_dir.weights(role)), model_dir.onnx(role), own)
    return [
        result
        for role, own in options.items()
        for result in export_onnx(model_dir.weights(role), model_dir.onnx(role), own)
    ]


def export_weights_file(
    path: Path, out: Path, options: ExportOptions, classes: tuple[str, ...] | None = None
) -> list[ExportResult]:
    """Export one weights file as `out`/<its stem>.onnx, a bare state dict too.

    A bare state dict is taken for the depthwise student that its keys describe, else for the recipe's teacher, with the
    recipe's preprocessing; a line on stderr says so. `classes` names its classes; without them, they are numbered.
    """
    destination = out / f"{path.stem}.onnx"
    if carries_info(path):
        return export_onnx(path, destination, options)
    check_destinations(path, destination, options)
    start = time.perf_counter()
    classifier, info = describe_bare_weights(path, options.recipe, classes)
    return _Export(classifier, info, path, destination, options).run(start)


def check_destinations(weights: Path, destination: Path, options: ExportOptions) -> None:
    """Raise before any work: ArtifactError if a file is in the way, DataError if int8 has no images.

    A file is in the way if it is not an export of these weights and `force` is not given.
    """
    for path in (at_precision(destination, precision) for precision in options.precisions):
        if not options.force and path.exists() and _made_from(path) != sha256_file(weights):
            raise ArtifactError(
                f"{path} exists and was not exported from {weights}",
                "replace it with --force, or export a copy of the weights from another directory",
            )
    if "int8" in options.smaller and (options.valid is None or options.train is None):
        raise DataError(
            "int8 is calibrated on training images and judged on validation images, but there are none",
            "give the data those weights were trained on, or leave out --int8",
        )


def at_precision(destination: Path, precision: FilePrecision) -> Path:
    """student.onnx → student.int8.onnx; fp32 is the plain name."""
    return destination if precision == "fp32" else destination.with_suffix(f".{precision}.onnx")


def _made_from(path: Path) -> str | None:
    """SHA-256 of the weights that an ONNX file says it was exported from; None for any other file."""
    try:
        model = onnx.load_model(str(path), load_external_data=False)
    except (DecodeError, OSError, ValueError):
        return None
    return {entry.key: entry.value for entry in model.metadata_props}.get("weights_sha256")


@dataclass(frozen=True)
class _Draft:
    """A graph that is to become a file; making it began at `start` (time.perf_counter, s).

    `float_layers` stayed float32 in a smaller precision; `calibration` is of int8.
    """

    precision: FilePrecision
    model: onnx.ModelProto
    start: float
    float_layers: tuple[str, ...] = ()
    calibration: str = ""

    @property
    def metadata(self) -> dict[str, str]:
        """The file's own metadata; the rest is the same in all files of the network."""
        metadata: dict[str, str] = {"precision": self.precision}
        if self.precision != "fp32":
            metadata["float_layers"] = json.dumps(self.float_layers)
        return metadata | ({"calibration": self.calibration} if self.calibration else {})


class _Export:
    """One network on its way into files."""

    def __init__(
        self, classifier: Classifier, info: ModelInfo, weights: Path, destination: Path, options: ExportOptions
    ) -> None:
        self._classifier, self._info, self._weights = classifier, info, weights
        self._destination, self._options, self._settings = destination, options, options.recipe.export
        self._size, self._num_classes = info.preprocess.image_size, len(info.classes)
        self._samples = choose_samples(options.valid, self._size, self._num_classes, self._settings.images)

    def run(self, start: float) -> list[ExportResult]:
        smaller, samples = self._smaller(), self._samples
        text = f"{', '.join(('fp32', *smaller))}, " if smaller else ""
        console.say(f"export: {self._weights} → {self._destination}, {text}proof on {len(samples)} images")
        model = make_graph(self._classifier, self._size, self._settings.opset)
        network = refer_to_network(self._classifier, samples)
        fp32, logits = self._write(_Draft("fp32", model, start), network)
        results = [fp32]
        if "fp16" in smaller:
            results.append(self._write_fp16(model, network))
        if "int8" in smaller:
            results.append(self._write_int8(model, Reference(samples, logits, "the fp32 file's")))
        if samples.labels is None:
            console.say(
                f"{self._destination.name}: checked for closeness and agreement on {len(samples)} synthetic images; "
                "accuracy was not checked (no validation images: no data was given)"
            )
        return results

    def _smaller(self) -> tuple[FilePrecision, ...]:
        """The smaller precisions that it can have: an ONNX file that was imported keeps its own."""
        smaller = self._options.smaller
        if smaller and has_file(self._classifier.network):
            left = ", ".join(smaller)
            console.say(f"{self._destination.name}: an imported ONNX file keeps its own precision; no {left}")
            return ()
        return smaller

    def _write_fp16(self, model: onnx.ModelProto, network: Reference) -> ExportResult:
        """What half precision cannot hold stays float32 from the start; what it blurs, if the proof fails without."""
        start, cores = time.perf_counter(), available_cores()
        kept = Ranges(model, cores).find_overflows(read_batches(self._samples))
        draft = self._halve(model, kept, start)
        try:
            return self._write(draft, network)[0]
        except GateError:
            blurred = Ranges(model, cores, kept).find_losses(read_batches(self._samples))
            if not blurred:
                raise
        return self._write(self._halve(model, kept | blurred, start), network)[0]

    def _halve(self, model: onnx.ModelProto, kept: set[str], start: float) -> _Draft:
        path, layers = at_precision(self._destination, "fp16"), find_layers(model.graph)
        with self._leaving_none(path):
            if kept.issuperset(layers):
                raise GateError(
                    f"{path.name} would have no layer in half precision: there is none, or the values are too "
                    "large or too small for it",
                    "nothing was kept; leave out fp16",
                )
        return _Draft("fp16", halve(model, kept), start, name_nodes(model.graph, kept))

    def _write_int8(self, model: onnx.ModelProto, reference: Reference) -> ExportResult:
        start, settings, train = time.perf_counter(), self._settings, self._options.train
        assert train is not None
        images = train.centre(spread(len(train), settings.calibration_images))
        path = at_precision(self._destination, "int8")
        with self._leaving_none(path):
            if not find_layers(model.graph):
                raise GateError(
                    f"{path.name}: the network has no layer to quantize", "nothing was kept; leave out int8"
                )
            quantized = quantize_within(model, images, reference, settings, path.name)
        calibration = f"{settings.calibration}, {len(images)} training images"
        return self._write(_Draft("int8", quantized.model, start, quantized.float_layers, calibration), reference)[0]

    def _write(self, draft: _Draft, reference: Reference) -> tuple[ExportResult, NDArray[np.float32]]:
        """Write the file, prove it and only then give it its name; returns the measurements and the file's logits."""
        precision, model = draft.precision, draft.model
        path = at_precision(self._destination, precision)
        set_metadata(model, self._metadata | draft.metadata)
        bounds = Bounds.of(self._settings, precision)
        with self._leaving_none(path), write_atomically(path) as temporary:
            check_graph(model, self._size, self._num_classes)
            temporary.write_bytes(model.SerializeToString(deterministic=True))
            proof, logits = prove_file(temporary, path.name, reference, bounds)
        faster = None
        if precision != "fp32":
            faster = times_faster(path, self._destination, next(read_batches(self._samples)))
        measured = {name: getattr(proof, name) for name in vars(proof)}
        seconds = time.perf_counter() - draft.start
        size_bytes, layers = path.stat().st_size, draft.float_layers
        result = ExportResult(
            path, precision, size_bytes, **measured, seconds=seconds, float_layers=layers, times_faster=faster
        )
        return result, logits

    @contextlib.contextmanager
    def _leaving_none(self, path: Path) -> Iterator[None]:
        """If a gate is not met, no file stays under the final name; an earlier file is deleted too."""
        try:
            yield
        except GateError:
            path.unlink(missing_ok=True)
            raise

    @cached_property
    def _metadata(self) -> dict[str, str]:
        """Every value is a string; those that are not known are empty; an unknown license is left out."""
        info, license_name = self._info, self._settings.license
        metadata = {
            "role": info.role,
            "architecture": info.architecture,
            "classes": json.dumps(info.classes, ensure_ascii=False),
            "preprocess": info.preprocess.to_json(),
            "recipe_sha256": info.recipe_sha256,
            "dataset_sha256": info.dataset_sha256,
            "teacher_sha256": info.teacher_sha256 or "",
            "weights_sha256": sha256_file(self._weights),
            "toolkit_version": __version__,
        }
        return metadata | ({"license": license_name} if license_name else {})
