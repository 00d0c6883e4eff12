"""A channel that never varied in training answers its batch norm's bias, in every arithmetic."""

import pytest
import torch
from torch import Tensor, nn

from toolkit.distill.constant_channels import keep_constant
from toolkit.distill.precision import FloatArithmetic, autocast

BIAS = 1.217
"""bfloat16 has 1.21875 for it"""


def trained(precision: FloatArithmetic) -> tuple[nn.Sequential, Tensor]:
    """A convolution whose first channel is dead, and a batch norm that has seen it for long; and what it was shown."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    with torch.no_grad():
        network[0].weight[0] = 0
        network[0].bias[0] = BIAS
        network[1].bias[:] = torch.tensor([0.5, -0.5])
    images = torch.rand(8, 3, 4, 4)
    network.train()
    for _ in range(300):
        with torch.no_grad(), autocast("cpu", precision):
            network(images)
    return network.eval(), images


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_constant_channel_answers_its_bias_in_float32(precision: FloatArithmetic) -> None:
    network, images = trained(precision)
    before = network(images)
    keep_constant(network, precision)
    after = network(images)
    torch.testing.assert_close(after[:, 0], torch.full_like(after[:, 0], 0.5), atol=2e-3, rtol=0)
    torch.testing.assert_close(after[:, 1], before[:, 1])


def test_without_it_what_bfloat16_rounded_is_multiplied() -> None:
    network, images = trained("bf16")
    assert (network(images)[:, 0] - 0.5).abs().min() > 0.3


def test_a_channel_that_varies_little_is_none() -> None:
    norm = nn.BatchNorm2d(2)
    norm.running_mean[:] = torch.tensor([0.0, 1.0])
    norm.running_var[:] = torch.tensor([1e-8, 1e-3])
    keep_constant(norm, "bf16")
    torch.testing.assert_close(norm.running_var, torch.tensor([1e-8, 1e-3]))


def test_networks_without_running_statistics_stay_as_they_are() -> None:
    network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2, track_running_stats=False))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    keep_constant(network, "fp32")
    assert list(network.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
