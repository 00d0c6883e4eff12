"""Parameters and multiply-adds against numbers worked out by hand."""

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from toolkit.bench.measure.cost import count_macs
from toolkit.networks.registry import count_parameters


def test_a_convolution() -> None:
    # 3 → 8 channels, 3×3, padding 1, stride 2, on 10×10: 5·5 places × 8 filters × 3·3·3 products
    network = nn.Conv2d(3, 8, 3, padding=1, stride=2)
    assert count_macs(network, 10) == 5 * 5 * 8 * 27
    assert count_parameters(network) == 8 * 27 + 8


def test_a_depthwise_convolution_a_norm_and_a_linear_layer() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 3, 3, padding=1, groups=3, bias=False),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(48, 7),
    )
    assert count_macs(network, 4) == 4 * 4 * 3 * 9 + 48 * 7
    assert count_parameters(network) == 3 * 9 + 2 * 3 + 48 * 7 + 7  # running mean and variance are no parameters


def test_resnet18_is_the_published_size() -> None:
    network = resnet18(weights=None)
    assert count_parameters(network) == 11_689_512
    assert count_macs(network, 224) == pytest.approx(1.814e9, rel=1e-3)


def test_counting_leaves_the_network_as_it_was() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    count_macs(network, 8)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
