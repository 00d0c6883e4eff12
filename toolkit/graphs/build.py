"""From a classifier to an ONNX graph: uint8 images in, logits and probabilities out, normalisation inside.

N images, S px their side, C classes.
"""

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional

from toolkit.errors import ArtifactError, GateError, one_line
from toolkit.networks.classifier import Classifier

INPUT = "image"
OUTPUTS = ("logits", "probabilities")
BATCH_AXIS = "N"

NOISY = ("torch", "onnxscript", "onnx_ir")
"""Packages that log while a graph is made."""

LARGEST_BYTES = 2**31 - 2**20
"""The weights that a single ONNX file can hold: protobuf's 2 GiB, less room for the graph itself."""

FOLDED_VALUES = 2**24
"""Numbers in the largest tensor that is worked out once, if it is made of constants alone, as Swin's tables are."""


class DeployedGraph(nn.Module):
    """uint8 images (N, S, S, 3) → float32 logits (N, C) and their softmax."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        # contiguous: a channels-last tensor makes the exporter write pooling as a chain of gathers
        planes = image.permute(0, 3, 1, 2).contiguous().to(torch.float32)
        # (planes / 255 - mean) / std as one node; three element by element cost a tenth of an int8 ResNet18
        mean, std = (255 * values.flatten() for values in (self.classifier.mean, self.classifier.std))
        logits = self.classifier.network(functional.batch_norm(planes, mean, std**2, eps=0.0))
        return logits, torch.softmax(logits, dim=1)


def build_graph(classifier: Classifier, image_size: int, opset: int) -> onnx.ModelProto:
    """Trace the classifier, on the CPU and in evaluation mode, for any N ≥ 1 of images with S = `image_size` px.

    Raises ArtifactError if torch's exporter cannot write this network in this opset, or it would not fit into one
    file. The graph carries no traces of this machine's paths.
    """
    size_bytes = sum(tensor.nbytes for tensor in classifier.state_dict().values())
    if size_bytes > LARGEST_BYTES:
        raise ArtifactError(
            f"the network's weights ({size_bytes / 1e9:.1f} GB) do not fit into one ONNX file, which holds 2.1 GB",
            "export a smaller architecture",
        )
    importlib.import_module("torch._dynamo")  # torch swallows a Ctrl-C while it imports this, and fails afterwards
    example = torch.zeros(2, image_size, image_size, 3, dtype=torch.uint8)
    try:
        with _silence():
            program = torch.onnx.export(
                DeployedGraph(classifier).eval(),
                (example,),
                dynamo=True,
                verbose=False,
                opset_version=opset,
                external_data=False,
                input_names=[INPUT],
                output_names=list(OUTPUTS),
                dynamic_shapes={INPUT: {0: torch.export.Dim(BATCH_AXIS, min=1)}},
            )
    except torch.onnx.OnnxExporterError as error:
        reason = one_line(error.__cause__ or error)
        raise ArtifactError(
            f"torch {torch.__version__} cannot export this network to ONNX opset {opset}: {reason}",
            "try another export.opset (18 to 23), or another architecture",
        ) from error
    assert program is not None
    from onnxscript.optimizer import fold_constants  # here, as a training that exports nothing need not wait for it

    with _silence():
        fold_constants(program.model, input_size_limit=FOLDED_VALUES, output_size_limit=FOLDED_VALUES)
    model: onnx.ModelProto = program.model_proto
    # older runtimes refuse newer ones
    model.ir_version = onnx.helper.find_min_ir_version_for(model.opset_import, ignore_unknown=True)
    _strip_traces(model)
    _require_opset(model, opset)
    return model


def set_metadata(model: onnx.ModelProto, metadata: Mapping[str, str]) -> None:
    """Put the strings into the model's metadata, in the order of their names."""
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, dict(sorted(metadata.items())))


def check_graph(model: onnx.ModelProto, image_size: int, num_classes: int) -> None:
    """Raise GateError unless the model is valid ONNX, whole in itself, with the inputs and outputs it should have."""
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer):
        raise _faulty("keeps weights outside of itself")
    try:
        onnx.checker.check_model(model, full_check=True)
        onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise _faulty(f"is not valid: {one_line(error)}") from error
    square = [image_size, image_size, 3]
    expected = [(INPUT, onnx.TensorProto.UINT8, [BATCH_AXIS, *square])]
    expected += [(name, onnx.TensorProto.FLOAT, [BATCH_AXIS, num_classes]) for name in OUTPUTS]
    found = [_signature(value) for value in (*model.graph.input, *model.graph.output)]
    if found != expected:
        raise _faulty(f"has inputs and outputs {found} instead of {expected}")


def _signature(value: onnx.ValueInfoProto) -> tuple[str, int, list[str | int]]:
    tensor = value.type.tensor_type
    return value.name, tensor.elem_type, [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]


def _faulty(problem: str) -> GateError:
    return GateError(f"the exported graph {problem}", "nothing was written; try another export.opset (18 to 23)")


def _strip_traces(model: onnx.ModelProto) -> None:
    """Remove the exporter's notes about source files and torch's internals, which no runtime needs."""
    model.doc_string = ""
    graph = model.graph
    graph.doc_string = ""
    noted: list[Any] = [graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer]
    for part in noted:
        del part.metadata_props[:]
        part.doc_string = ""


def _require_opset(model: onnx.ModelProto, opset: int) -> None:
    made = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if made != opset:
        raise ArtifactError(
            f"torch {torch.__version__} wrote this network in ONNX opset {made}, not {opset}",
            f"use export.opset={made}",
        )


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep the exporter's warnings, its log records and the graph that it prints on stderr from the user.

    Problems are raised. Other threads keep stdout and all other loggers; stderr and warnings are the whole process's.
    """
    known = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] in NOISY]
    loggers = [logging.getLogger(name) for name in {*known, *NOISY}]  # those to come take their level from NOISY
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
