"""What an ONNX file of any origin says of itself: the form of its input, its outputs and the names of its classes.

N images, S px their side, C classes. The file's own words come first: this toolkit's metadata, that of ultralytics, the
config files of Hugging Face beside it (Olive and optimum leave them there). Nothing is believed before the file has
answered a few images (of_onnx.py).
"""

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import onnx
from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped]

from toolkit.data.preprocess import Preprocess
from toolkit.errors import WeightsError, one_line
from toolkit.names import ONNX_SUFFIX
from toolkit.networks.families import Channels
from toolkit.networks.hub_directory import CONFIG, PREPROCESSOR, describe_config

LARGEST_BYTES = 2**31 - 1
"""bytes; protobuf holds no more in one message"""

Layout = Literal["nchw", "nhwc"]
ELEMENTS = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.DOUBLE: "float64",
    onnx.TensorProto.UINT8: "uint8",
    onnx.TensorProto.INT32: "int32",
    onnx.TensorProto.INT64: "int64",
}
"""Types of an input that images can be given in → numpy's name."""
WHOLE_NUMBERS = ("uint8", "int32", "int64")
"""Those of them that hold pixels of 0..255."""
ANSWERS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)

COLOUR_AXES = {"num_channels", "channels", "channel", "c"}
"""Names of an axis that is left open; the first is that of Hugging Face's exports."""

ZERO: Channels = (0.0, 0.0, 0.0)
ONE: Channels = (1.0, 1.0, 1.0)

Dims = tuple[int | None, ...]
"""Sizes of a tensor; None for one that the file leaves open."""


@dataclass(frozen=True)
class OnnxFile:
    """A file's content and what it says. None: it does not say.

    `layout`: the order of the input's axes; `element`: numpy's name of its type; `batch`: N if the file is made for one
    number of images; `size`: S, px; `outputs`: names of the outputs that may be the answer, the likeliest first;
    `mean` and `std` are for RGB in 0..1.
    """

    content: bytes
    layout: Layout | None
    element: str
    batch: int | None
    size: int | None
    outputs: tuple[str, ...]
    mean: Channels | None
    std: Channels | None
    classes: tuple[str, ...] | None

    @property
    def takes_whole_numbers(self) -> bool:
        """Whether its images are pixels of 0..255."""
        return self.element in WHOLE_NUMBERS


def read_onnx(path: Path) -> OnnxFile:
    """Raises WeightsError if the file cannot be read, or is no classifier of images."""
    return describe(_load(path), path)


def describe(model: onnx.ModelProto, path: Path) -> OnnxFile:
    """What `model`, from the file at `path`, says. Raises WeightsError if it is no classifier of images."""
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    if len(inputs) != 1 or len(dims := _dims(inputs[0])) != 4:
        raise _no_classifier(path, f"its inputs are {_describe(inputs)}")
    kind = inputs[0].type.tensor_type.elem_type
    if kind not in ELEMENTS:
        raise _no_classifier(path, f"its input holds {onnx.TensorProto.DataType.Name(kind).lower()}")
    layout = _layout(inputs[0])
    if layout is None and _has_no_colours(dims):
        raise _no_classifier(path, f"its input is {_describe(inputs)}, and images have three colours")
    outputs = [value for value in graph.output if _may_answer(value)]
    if not outputs:
        raise _no_classifier(path, f"its outputs are {_describe(graph.output)}")
    outputs.sort(key=lambda value: value.name != "logits")  # stable: else in the file's order
    said = _read_words(model, path)
    size = _size(dims, layout, path) or said.size
    return OnnxFile(
        model.SerializeToString(),
        layout,
        ELEMENTS[kind],
        dims[0],
        size,
        tuple(value.name for value in outputs),
        ZERO if ELEMENTS[kind] in WHOLE_NUMBERS else said.mean,
        ONE if ELEMENTS[kind] in WHOLE_NUMBERS else said.std,
        said.classes,
    )


def with_answer_of(described: OnnxFile, count: int) -> OnnxFile:
    """The file with the one output of `count` classes, if its first one is of another number (a feature, say).

    An output that is called logits is the answer.
    """
    if described.outputs[0] == "logits":
        return described
    model = onnx.load_model_from_string(described.content)
    widths = {value.name: _dims(value)[1] for value in model.graph.output if value.name in described.outputs}
    fitting = [name for name in described.outputs if widths[name] == count]
    if widths[described.outputs[0]] in (None, count) or not fitting:
        return described
    (chosen,) = [value for value in model.graph.output if value.name == fitting[0]]
    del model.graph.output[:]
    model.graph.output.append(chosen)
    return replace(described, content=model.SerializeToString(), outputs=(chosen.name,))


def describe_content(content: bytes) -> OnnxFile:
    """What the content of a teacher's file says, which was read before."""
    return describe(onnx.load_model_from_string(content), Path(f"the teacher's {ONNX_SUFFIX} file"))


@dataclass(frozen=True)
class _Words:
    size: int | None = None
    mean: Channels | None = None
    std: Channels | None = None
    classes: tuple[str, ...] | None = None


def _load(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load_model(str(path))
    except (DecodeError, OSError, ValueError, onnx.checker.ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
        raise WeightsError(
            f"cannot read {path}: {reason or 'it is no ONNX file'}",
            "give an .onnx file that is whole, with the files that it keeps its weights in beside it",
        ) from None
    if not model.graph.node:
        raise WeightsError(f"cannot read {path}: it holds no graph", "give an .onnx file that is whole")
    try:
        too_large = model.ByteSize() > LARGEST_BYTES
    except EncodeError:
        too_large = True
    if too_large:
        raise WeightsError(f"{path} holds more than 2 GB", "store its answers in a file, and give that with --answers")
    return model


def _dims(value: onnx.ValueInfoProto) -> Dims:
    tensor = value.type.tensor_type
    return tuple(dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in tensor.shape.dim)


def _may_answer(value: onnx.ValueInfoProto) -> bool:
    """Whether it may be (N, C), or (N, C, 1, 1)."""
    dims = _dims(value)
    flat = len(dims) == 2 or (len(dims) == 4 and dims[2:] == (1, 1))
    return flat and dims[1] != 1 and value.type.tensor_type.elem_type in ANSWERS


def _layout(value: onnx.ValueInfoProto) -> Layout | None:
    """By the axis of three colours, or the one that the file calls so."""
    dims = value.type.tensor_type.shape.dim
    first, last = (dim.dim_value == 3 or dim.dim_param.lower() in COLOUR_AXES for dim in (dims[1], dims[3]))
    if first == last:
        return None
    return "nchw" if first else "nhwc"


def _has_no_colours(dims: Dims) -> bool:
    """Whether neither place can hold three colours; one of a single colour is the place of the colours."""
    places = (dims[1], dims[3])
    return 1 in places or (None not in places and 3 not in places)


def _size(dims: Dims, layout: Layout | None, path: Path) -> int | None:
    height, width = dims[1:3] if layout == "nhwc" else dims[2:]
    if layout is None or height is None or width is None:
        return None
    if height != width:
        raise _no_classifier(path, f"it takes images of {width}×{height} px, and squares are what it would get")
    return height


def _read_words(model: onnx.ModelProto, path: Path) -> _Words:
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    if "preprocess" in metadata and "classes" in metadata:
        return _of_toolkit(metadata)
    if "names" in metadata:
        return _of_ultralytics(metadata)
    for name in (PREPROCESSOR, CONFIG):
        if (path.parent / name).is_file():
            found = describe_config(path.parent)
            return _Words(found.image_size, found.mean, found.std, found.classes)
    return _Words()


def _of_toolkit(metadata: Mapping[str, str]) -> _Words:
    try:
        preprocess = Preprocess.from_json(metadata["preprocess"])
        classes = _names(json.loads(metadata["classes"]))
    except (WeightsError, ValueError, TypeError):
        return _Words()
    return _Words(preprocess.image_size, preprocess.mean, preprocess.std, classes)


def _of_ultralytics(metadata: Mapping[str, str]) -> _Words:
    """`names` is a table in Python's notation; images are RGB in 0..1."""
    names, size = _literal(metadata["names"]), _literal(metadata.get("imgsz", ""))
    if isinstance(names, dict):
        names = [names[key] for key in sorted(names)] if all(isinstance(key, int) for key in names) else None
    side = size[0] if isinstance(size, list) and size and isinstance(size[0], int) else None
    return _Words(side, ZERO, ONE, _names(names))


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _names(values: object) -> tuple[str, ...] | None:
    if isinstance(values, list) and values and all(isinstance(value, str) for value in values):
        return tuple(values)
    return None


def _describe(values: Sequence[onnx.ValueInfoProto]) -> str:
    """`x (N, 3, 224, 224), y (N)`; a size that the file leaves open is N or ?"""
    parts = []
    for value in values[:4]:
        sizes = ["?" if size is None else str(size) for size in _dims(value)]
        parts.append(f"{value.name} ({', '.join(sizes)})")
    return ", ".join(parts) + (", …" if len(values) > 4 else "") or "none"


def _no_classifier(path: Path, problem: str) -> WeightsError:
    return WeightsError(
        f"{path} is no classifier of images: {problem}",
        "give a file that takes one batch of images, (N, 3, S, S) or (N, S, S, 3), and answers with (N, classes)",
    )
