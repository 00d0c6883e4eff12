"""Layers of a graph: their list, the nodes between them, and their names in the network."""

import pytest
from onnx import helper
from small_networks import settled_graph

from toolkit.graphs.layers import find_layers, find_sources, name_layer


def test_sources_of_a_graph_with_a_branch() -> None:
    """cast → conv a → relu → conv b → add(b, relu) → gemm c → softmax"""
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], name="cast", to=1),
        helper.make_node("Conv", ["x", "wa"], ["a"], name="a"),
        helper.make_node("Relu", ["a"], ["r"], name="relu"),
        helper.make_node("Conv", ["r", "wb"], ["b"], name="b"),
        helper.make_node("Add", ["b", "r"], ["sum"], name="add"),
        helper.make_node("Gemm", ["sum", "wc"], ["logits"], name="c"),
        helper.make_node("Softmax", ["logits"], ["p"], name="softmax"),
    ]
    graph = helper.make_graph(nodes, "g", [], [])
    assert find_layers(graph) == ("a", "b", "c")
    assert find_sources(graph) == {"cast": set(), "relu": {"a"}, "add": {"a", "b"}, "softmax": {"c"}}


@pytest.mark.parametrize(
    ("architecture", "named"), [("depthwise", {"cnn.0.0", "cnn.3.3", "fc.0"}), ("resnet18", {"layer2.0.conv1", "fc"})]
)
def test_layers_are_called_as_the_network_calls_them(architecture: str, named: set[str]) -> None:
    graph = settled_graph(architecture).graph
    names = [name_layer(graph, layer) for layer in find_layers(graph)]
    assert named <= set(names)
    assert len(set(names)) == len(names)


def test_a_layer_without_a_name_is_called_as_its_node() -> None:
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"], name="node_7")], "g", [], [])
    assert name_layer(graph, "node_7") == "node_7"
