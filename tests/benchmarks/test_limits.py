"""The cost of a training image, against numbers that were worked out by hand."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from toolkit.networks import registry

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import limits
from limits import count_forward_flop, count_training_flop, measure_limits

PLAIN = 2 * 8 * 3 * 3 * 3 * 10 * 10
"""operations of one forward pass: a multiply-add is 2; 8 channels from 3 by 3×3 weights at 10×10 places"""
DEPTHWISE = 2 * 8 * 1 * 3 * 3 * 10 * 10
"""8 channels, each from one"""


def plain() -> nn.Module:
    return nn.Conv2d(3, 8, 3, padding=1)


def depthwise() -> nn.Module:
    return nn.Conv2d(8, 8, 3, padding=1, groups=8)


def test_a_plain_layer_costs_its_forward_pass_and_the_gradient_of_its_weight() -> None:
    """The images need no gradient."""
    assert count_forward_flop(plain(), 10) == PLAIN
    assert count_training_flop(plain(), 10) == 2 * PLAIN


def test_a_depthwise_layer_costs_an_eighth_of_one_without_groups_in_both_gradients() -> None:
    network = nn.Sequential(plain(), depthwise())
    assert count_forward_flop(network, 10) == PLAIN + DEPTHWISE
    assert count_training_flop(network, 10) == 2 * PLAIN + 3 * DEPTHWISE
    whole = nn.Sequential(plain(), nn.Conv2d(8, 8, 3, padding=1))
    assert count_training_flop(whole, 10) == 2 * PLAIN + 3 * 8 * DEPTHWISE


def test_a_grouped_layer_that_enlarges_is_counted_at_its_inputs_places() -> None:
    network = nn.Sequential(plain(), nn.ConvTranspose2d(8, 4, 2, stride=2, groups=4))
    assert count_training_flop(network, 10) == 2 * PLAIN + 3 * (2 * 8 * 1 * 2 * 2 * 10 * 10)


def test_the_student_costs_what_its_layers_do() -> None:
    """All of them three times, but the first one twice; 654 MFLOP at 256 px."""
    student = registry.build("depthwise", 10)
    costs: list[int] = []

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        places = output[0, 0].numel() if isinstance(layer, nn.Conv2d) else 1
        costs.append(2 * layer.weight.numel() * places)

    for layer in student.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    with torch.no_grad():
        student.eval()(torch.rand(1, 3, 256, 256))
    by_hand = 3 * sum(costs) - costs[0]
    costs.clear()
    assert count_training_flop(student, 256) == by_hand == pytest.approx(653.7e6, rel=1e-3)


def test_bytes_are_those_of_the_precision_that_was_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "product_flop_s", lambda device, precision: 1e9)
    monkeypatch.setattr(limits, "copy_bytes_s", lambda device: 1e9)
    elements = 3 * 10 * 10 + 8 * 10 * 10
    assert measure_limits(plain(), 10, "cpu", "fp32").bytes == 3 * 4 * elements
    half = measure_limits(plain(), 10, "cpu", "bf16")
    assert half.bytes == 3 * 2 * elements
    assert half.images_s == pytest.approx(1e9 / max(half.flop, half.bytes))
