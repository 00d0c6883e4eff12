"""The table of runtimes, and a function that opens weights or an ONNX file in one of them.

A runtime is a file beside this one, with its predictor and its Runtime; a line in RUNTIMES; and a name in
names.RuntimeName if users may request it. Nothing here imports torch, onnxruntime or OpenVINO: a runtime
does so once it is used.
"""

from pathlib import Path

from toolkit.modeldir import FilePrecision
from toolkit.names import RUNTIME_NAMES, RuntimeName
from toolkit.runtimes.base import Predictor, RowRuntime, Runtime
from toolkit.runtimes.io_binding import BOUND
from toolkit.runtimes.onnxruntime import ONNXRUNTIME
from toolkit.runtimes.openvino import OPENVINO
from toolkit.runtimes.pytorch import COMPILED, TORCH

RUNTIMES: dict[str, Runtime] = {runtime.name: runtime for runtime in (TORCH, COMPILED, ONNXRUNTIME, OPENVINO, BOUND)}

ONNX_RUNTIMES: tuple[RuntimeName, ...] = tuple(name for name in RUNTIME_NAMES if RUNTIMES[name].reads == "onnx")
"""Runtimes that read the ONNX file and can be requested."""


def open_predictor(
    runtime: RowRuntime, path: Path, place: str, threads: int, precision: FilePrecision = "fp32"
) -> Predictor:
    """Open weights or an ONNX file in the runtime of that name; see Runtime.open."""
    return RUNTIMES[runtime].open(path, place, threads, precision)


def rows_of(name: RuntimeName, *, on_gpu: bool) -> tuple[Runtime, ...]:
    """The runtimes that the benchmark measures for a requested one: itself, and on a GPU those beside it."""
    beside = (runtime for runtime in RUNTIMES.values() if on_gpu and runtime.beside == name)
    return (RUNTIMES[name], *beside)
