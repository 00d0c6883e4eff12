"""A Triton Inference Server model repository from exported files: serving beyond one machine is Triton's job.

    <repository>/<name>/config.pbtxt   labels.txt   1/model.onnx

The fields of config.pbtxt are those of Triton's model_config.proto.
"""

import json
import re
from pathlib import Path

import onnx

from toolkit.errors import ArtifactError
from toolkit.files import write_atomically

MAX_BATCH = 64
PREFERRED_BATCHES = (8, 32)
QUEUE_DELAY_US = 1000
"""µs that a request may wait for others to share its batch"""

TYPES = {onnx.TensorProto.UINT8: "TYPE_UINT8", onnx.TensorProto.FLOAT: "TYPE_FP32"}
LABELLED = "probabilities"
"""The output whose places Triton's classification extension names after the classes."""


def write_triton_model(repository: Path, name: str, onnx_file: Path, *, force: bool = False) -> Path:
    """Write `<repository>/<name>` from a file of this toolkit, config last, so that a server never loads half a model.

    What Triton does not take in a name becomes `_`. Raises ArtifactError if another file lies there and `force` is
    not given.
    """
    name = re.sub(r"[^A-Za-z0-9_-]", "_", name)
    folder = repository / name
    copy, content = folder / "1" / "model.onnx", onnx_file.read_bytes()
    if copy.exists() and not force and copy.read_bytes() != content:
        raise ArtifactError(
            f"{copy} exists and is another model", "replace it with --force, or give --triton another directory"
        )
    model = onnx.load_model_from_string(content)
    classes = json.loads({entry.key: entry.value for entry in model.metadata_props}["classes"])
    for path, text in (
        (copy, content),
        (folder / "labels.txt", "".join(f"{' '.join(label.split())}\n" for label in classes).encode()),
        (folder / "config.pbtxt", render_config(name, model).encode()),
    ):
        with write_atomically(path) as temporary:
            temporary.write_bytes(text)
    return folder


def render_config(name: str, model: onnx.ModelProto) -> str:
    """config.pbtxt for a graph whose inputs and outputs have the batch as their first axis."""
    return "\n".join(
        (
            f"name: {_quote(name)}",
            'backend: "onnxruntime"',
            f"max_batch_size: {MAX_BATCH}",
            *(_tensor("input", value) for value in model.graph.input),
            *(_tensor("output", value) for value in model.graph.output),
            "dynamic_batching {",
            f"  preferred_batch_size: [ {', '.join(map(str, PREFERRED_BATCHES))} ]",
            f"  max_queue_delay_microseconds: {QUEUE_DELAY_US}",
            "}",
            "version_policy { latest { num_versions: 1 } }",
            "",
        )
    )


def _tensor(kind: str, value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    dims = ", ".join(str(dim.dim_value) for dim in tensor.shape.dim[1:])  # Triton adds the batch itself
    lines = [f"{kind} {{", f"  name: {_quote(value.name)}"]
    lines += [f"  data_type: {TYPES[tensor.elem_type]}", f"  dims: [ {dims} ]"]
    if value.name == LABELLED:
        lines.append('  label_filename: "labels.txt"')
    return "\n".join([*lines, "}"])


def _quote(text: str) -> str:
    """A string of protobuf's text format, whose escapes are JSON's."""
    return json.dumps(text, ensure_ascii=False)
