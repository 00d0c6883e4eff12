"""Static int8 quantization of an ONNX graph: QDQ format, weights per channel, ranges calibrated on images.

Krishnamoorthi 2018, "Quantizing deep convolutional networks for efficient inference" (arXiv:1806.08342), by
onnxruntime's quantizer. Weights have 7 bits, so that a graph gives the same answers on every CPU (see REDUCE_RANGE).
N images, S px their side.
"""

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from toolkit.graphs.layers import LAYERS, find_layers, find_sources
from toolkit.settings import Calibration

CALIBRATIONS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}

BETWEEN = (
    "Add", "AveragePool", "Clip", "Concat", "GlobalAveragePool", "MaxPool", "Mul", "Relu",
    "Reshape", "Resize", "Sigmoid", "Squeeze", "Transpose", "Unsqueeze",
)  # fmt: skip
"""Node types between layers that are quantized too, so that data stays int8 from layer to layer."""

REDUCE_RANGE = True
"""Weights are whole numbers from -64 to 64, not -127 to 127.

A CPU without VNNI multiplies uint8 activations with int8 weights by `vpmaddubsw`, which adds every two products in 16
bits and saturates (Intel SDM volume 2B, PMADDUBSW). The largest sum is then 2·255·64 = 32,640, within 32,767; 8 bits
reach 2·255·127 = 64,770. On a CPU with VNNI sums have 32 bits, so without this a file proven there is wrong elsewhere.
onnxruntime multiplies two activations, as in attention, in 32 bits everywhere.
"""

STRIDE = 8
"""images whose activations are held at a time while ranges are found, at most"""


class Quantizer:
    """Makes int8 versions of one float32 graph, which answer alike on CPUs with and without VNNI.

    Ranges are calibrated once, by the first version.

    A context manager, as it keeps them in a temporary folder::

        with Quantizer(model, images, "minmax") as quantizer:
            model_int8 = quantizer.quantize(keep_float={"node_linear"})
    """

    def __init__(self, model: onnx.ModelProto, images: NDArray[Any], method: Calibration) -> None:
        """`images` (N, S, S, 3) go into the graph's one input as they are. ValueError if the graph has no layers."""
        self._model = onnx.ModelProto()
        self._model.CopyFrom(model)
        # the quantizer's own preparation, shapes and folded batch norms, is what the exporter has done already
        onnx.helper.set_model_props(self._model, {"onnx.quant.pre_process": "onnxruntime.quant"})
        self._metadata = {entry.key: entry.value for entry in model.metadata_props}
        self._images, self._method = images, CALIBRATIONS[method]
        self.layers = find_layers(model.graph)
        """Names of the nodes with weights, in the order of the data."""
        if not self.layers:
            raise ValueError(f"the graph has no {', '.join(LAYERS)} to quantize")
        self._sources = find_sources(self._model.graph)

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="kd-toolkit.int8.")
        onnx.save_model(self._model, self._file("float.onnx"))  # a graph in memory is changed by the quantizer
        return self

    def __exit__(self, *exception: object) -> None:
        self._folder.cleanup()

    def quantize(self, keep_float: Collection[str] = ()) -> onnx.ModelProto:
        """The int8 graph, of the same inputs, outputs and metadata; layers named in `keep_float` stay float32.

        So do the nodes between such a layer and the next one, the nodes before the first layer (normalisation), the
        logits themselves and their softmax.
        """
        path = self._file("int8.onnx")
        in_float = [*keep_float, *(name for name, sources in self._sources.items() if sources <= set(keep_float))]
        with _silence():
            quantize_static(
                self._file("float.onnx"),
                path,
                _Reader(self._model.graph.input[0].name, self._images),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=[*LAYERS, *BETWEEN],
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                reduce_range=REDUCE_RANGE,
                nodes_to_exclude=in_float,
                calibrate_method=self._method,
                extra_options={
                    "CalibStridedMinMax": _stride(len(self._images)),
                    "OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"],
                },
                calibration_cache_path=self._file("ranges.json"),
            )
        quantized = onnx.load_model(path)
        quantized.ir_version = self._model.ir_version
        del quantized.metadata_props[:]
        onnx.helper.set_model_props(quantized, self._metadata)
        return quantized

    def _file(self, name: str) -> Path:
        return Path(self._folder.name) / name


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Images a stride at a time, as onnxruntime asks for them."""

    def __init__(self, input_name: str, images: NDArray[Any]) -> None:
        self._name, self._images = input_name, images
        self._waiting: list[NDArray[Any]] = []

    def __len__(self) -> int:
        return len(self._images)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._waiting = [np.ascontiguousarray(self._images[start_index:end_index])]

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        return {self._name: self._waiting.pop()} if self._waiting else None


def _stride(images: int) -> int:
    """The largest stride without a remainder: onnxruntime would leave those images out."""
    return max(stride for stride in range(1, STRIDE + 1) if images % stride == 0)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep the quantizer's advice and progress from the user; problems are raised."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
