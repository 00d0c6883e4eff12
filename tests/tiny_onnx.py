"""ONNX files in the toolkit's format that are made in milliseconds and whose answers can be worked out by hand."""

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, save

from toolkit.data.preprocess import Preprocess

COLOURS = ("red", "green", "blue")


def save_colour_model(
    path: Path,
    classes: tuple[str, ...] = COLOURS,
    *,
    weight: NDArray[np.float32] | None = None,
    image_size: int = 32,
    resize: int = 36,
) -> Path:
    """A classifier: logits = mean R, G and B in 0..1 times `weight` (3, C); by default ten times the colours."""
    weight = 10 * np.eye(3, len(classes), dtype=np.float32) if weight is None else weight.astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "axes"], ["mean"], keepdims=0),
        helper.make_node("Div", ["mean", "full"], ["colour"]),
        helper.make_node("MatMul", ["colour", "weight"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "colour",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", image_size, image_size, 3])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", len(classes)]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", len(classes)]),
        ],
        [
            numpy_helper.from_array(np.array([1, 2], np.int64), "axes"),
            numpy_helper.from_array(np.array(255, np.float32), "full"),
            numpy_helper.from_array(weight, "weight"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    preprocess = Preprocess(image_size=image_size, resize=resize, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    metadata = {
        "classes": json.dumps(classes),
        "preprocess": preprocess.to_json(),
        "recipe_sha256": "0" * 64,
        "dataset_sha256": "1" * 64,
        "teacher_sha256": "2" * 64,
        "toolkit_version": "0.1.0",
    }
    helper.set_model_props(model, metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    save(model, path)
    return path
