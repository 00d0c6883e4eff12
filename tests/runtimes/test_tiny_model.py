"""The tiny classifier that providers are tried with: its answer by another library, and its operators."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch.nn import functional as F

from toolkit.graphs.build import build_graph
from toolkit.networks.classifier import Classifier
from toolkit.networks.registry import build
from toolkit.sessions import tiny_model


def answer_in_torch() -> torch.Tensor:
    """In float64, by the formulas of the layers."""
    weights = {name: torch.from_numpy(value).double() for name, value in tiny_model.weights().items()}
    planes = torch.from_numpy(tiny_model.images()).permute(0, 3, 1, 2).double()
    wide = F.conv2d((planes - 127.5) / 127.5, weights["first"], padding=1)
    clipped = F.max_pool2d(wide, 2).clamp(0, 1.5)
    deep = F.conv2d(clipped, weights["depthwise"], padding=1, groups=tiny_model.CHANNELS).relu()
    pooled = (F.conv2d(deep, weights["pointwise"]) + clipped).mean((2, 3))
    return (pooled @ weights["last"].T).softmax(1)


def test_its_answer_is_what_the_layers_give() -> None:
    np.testing.assert_allclose(tiny_model.PROBABILITIES, answer_in_torch(), rtol=0, atol=1e-5)


def test_onnxruntime_gives_it() -> None:
    onnx.checker.check_model(onnx.load_model_from_string(tiny_model.build()), full_check=True)
    session = onnxruntime.InferenceSession(tiny_model.build(), providers=["CPUExecutionProvider"])
    (probabilities,) = session.run(["probabilities"], {"image": tiny_model.images()})
    np.testing.assert_allclose(probabilities, tiny_model.PROBABILITIES, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_it_has_every_operator_of_what_is_deployed() -> None:
    """Of the student, and of the teacher that ships."""
    deployed = set()
    for network in (build("depthwise", 3, base=2), build("resnet18", 3)):
        classifier = Classifier(network, (0.5,) * 3, (0.5,) * 3).eval()
        deployed |= {node.op_type for node in build_graph(classifier, 32, 20).graph.node}
    assert {node.op_type for node in onnx.load_model_from_string(tiny_model.build()).graph.node} == deployed
