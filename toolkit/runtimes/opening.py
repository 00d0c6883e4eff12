"""Opens weights or an ONNX file in the runtime of that name."""

from pathlib import Path

from toolkit.modeldir import FilePrecision
from toolkit.recipe import Runtime
from toolkit.runtimes.base import IO_BINDING, Predictor, RowRuntime
from toolkit.runtimes.onnxruntime import OnnxPredictor
from toolkit.runtimes.openvino import OpenVinoPredictor
from toolkit.runtimes.pytorch import CompiledPredictor, TorchPredictor

ONNX_RUNTIMES: tuple[Runtime, ...] = ("onnxruntime", "openvino")
"""Those that read the ONNX file; the others read the weights."""


def open_predictor(
    runtime: RowRuntime, path: Path, place: str, threads: int, precision: FilePrecision = "fp32"
) -> Predictor:
    """Open weights or an ONNX file in any runtime.

    `place` is a torch device, or onnxruntime's provider by its short name; OpenVINO takes the CPU. `precision` is that
    of torch's arithmetic; in an ONNX file it is settled. Raises what the predictors raise.
    """
    if runtime == "onnxruntime":
        return OnnxPredictor(path, place, threads)
    if runtime == IO_BINDING:
        from toolkit.runtimes.io_binding import IoBindingPredictor

        return IoBindingPredictor(path, place, threads)
    if runtime == "openvino":
        return OpenVinoPredictor(path, threads)
    kind = CompiledPredictor if runtime == "torch.compile" else TorchPredictor
    return kind(path, place, threads, "fp16" if precision == "fp16" else "fp32")
