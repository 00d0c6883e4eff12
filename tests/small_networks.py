"""Networks small enough for a test, whose answers nonetheless differ between images; and their graphs."""

from functools import cache

import onnx
import torch
from torch import nn

from toolkit.graphs.build import build_graph
from toolkit.networks.classifier import Classifier
from toolkit.networks.registry import build

SIDE = 40
MEAN, STD = (0.45, 0.4, 0.35), (0.2, 0.25, 0.3)
CLASSES = ("crème brûlée", "ramen", "tacos", "waffles")


def settled_network(architecture: str, seed: int = 0, num_classes: int = len(CLASSES)) -> nn.Module:
    """A network whose batch norms have seen images, so that its logits differ between images."""
    torch.manual_seed(seed)
    settings = {"base": 4} if architecture == "depthwise" else {}
    network = build(architecture, num_classes, **settings)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.7
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    for _ in range(4):
        network.train()(torch.randn(8, 3, SIDE, SIDE))
    return network.eval()


def settled_graph(architecture: str = "depthwise") -> onnx.ModelProto:
    """The graph of a settled network, built once and copied: torch's exporter takes seconds."""
    return onnx.ModelProto.FromString(_settled_graph(architecture))


@cache
def _settled_graph(architecture: str) -> bytes:
    return graph_of(settled_network(architecture), SIDE).SerializeToString()


def graph_of(network: nn.Module, side: int) -> onnx.ModelProto:
    """The graph of any network in evaluation mode, with the normalisation of these tests."""
    return build_graph(Classifier(network, MEAN, STD).eval(), side, opset=20)
