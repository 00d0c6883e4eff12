"""An exported ONNX file in OpenVINO."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.errors import DeviceError, one_line
from toolkit.machine.limits import available_cores
from toolkit.modeldir import FilePrecision
from toolkit.runtimes.base import (
    ImageBatch,
    Logits,
    Runtime,
    check_images,
    check_logits,
    damaged_file,
    read_metadata,
    require_file,
)
from toolkit.sessions import tiny_model

TELEMETRY = "openvino_telemetry"


class OpenVinoPredictor:
    """An ONNX file in OpenVINO, on the CPU and tuned for latency."""

    runtime = "openvino"
    provider = "CPU"

    def __init__(self, path: Path, threads: int | None = None) -> None:
        """Raises ArtifactError for a missing or foreign file, DeviceError if OpenVINO is missing or fails on it."""
        self.path = path
        self.threads = threads or available_cores()
        self._model, self.metadata = _compile_openvino(path, self.threads)
        self.classes, self.preprocess = read_metadata(self.metadata, path)
        shapes = {name: output.partial_shape for output in self._model.outputs for name in output.names}
        shape = [dim.get_length() if dim.is_static else None for dim in shapes.get("logits", ())]
        check_logits(shape or None, len(self.classes), path)

    def logits(self, images: ImageBatch) -> Logits:
        check_images(images, self.preprocess.image_size)
        return np.asarray(self._model([np.ascontiguousarray(images)])["logits"], dtype=np.float32)


@dataclass(frozen=True)
class OpenVino(Runtime):
    """`place` does not count: OpenVINO runs on the CPU."""

    def require(self) -> None:
        import_openvino()

    def start(self, path: Path, place: str) -> None:
        core = import_openvino().Core()
        core.compile_model(core.read_model(tiny_model.build()), OpenVinoPredictor.provider)(tiny_model.images())

    def open(self, path: Path, place: str, threads: int, precision: FilePrecision) -> OpenVinoPredictor:
        return OpenVinoPredictor(path, threads)


OPENVINO = OpenVino("openvino", reads="onnx")


def _compile_openvino(path: Path, threads: int) -> tuple[Any, dict[str, str]]:
    """The compiled model, and the file's metadata."""
    require_file(path)
    openvino = import_openvino()
    frontend = openvino.frontend.FrontEndManager().load_by_framework("onnx")
    try:
        content = frontend.load(str(path))
    except Exception as error:  # OpenVINO, too, raises classes of its own
        raise damaged_file("OpenVINO", path, one_line(error, last=True)) from error
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        # if the CPU has bfloat16 it is the default, and would be compared with others' fp32
        "INFERENCE_PRECISION_HINT": "f32",
    }
    try:
        model = frontend.convert(content)
        compiled = openvino.Core().compile_model(model, OpenVinoPredictor.provider, settings)
    except Exception as error:
        raise DeviceError(
            f"OpenVINO cannot run {path.name}: {one_line(error, last=True)}", "leave openvino out of bench.runtimes"
        ) from error
    return compiled, dict(model.get_rt_info("framework").value) if model.has_rt_info("framework") else {}


def import_openvino() -> Any:
    """Import OpenVINO without its telemetry, which would report to its makers."""
    loaded = sys.modules.get(TELEMETRY)
    # None is Python's way to say that a module cannot be imported
    sys.modules[TELEMETRY] = None  # type: ignore[assignment]
    try:
        import openvino.frontend
    except ImportError as error:
        raise DeviceError(
            f"the runtime openvino is not installed ({error})",
            "pip install 'kd-toolkit[openvino]', or leave openvino out of bench.runtimes",
        ) from None
    finally:
        del sys.modules[TELEMETRY]
        if loaded is not None:
            sys.modules[TELEMETRY] = loaded
    return openvino
