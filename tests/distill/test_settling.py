"""Running statistics settle within an epoch, in networks made for a training of millions of steps too."""

import pytest
import torch
from torch import nn

from toolkit.distill.settling import has_statistics, settle_in_time
from toolkit.networks.registry import build


def settled(momentum: float | None, steps: int) -> float | None:
    norm = nn.BatchNorm2d(2, momentum=momentum)
    settle_in_time(nn.Sequential(norm), steps)
    return norm.momentum


@pytest.mark.parametrize("steps", [1, 6, 7, 30, 1000])
@pytest.mark.parametrize("momentum", [0.1, 0.3, 1.0, None])
def test_ordinary_ones_stay_as_they_are(momentum: float | None, steps: int) -> None:
    assert settled(momentum, steps) == momentum


@pytest.mark.parametrize(("momentum", "steps"), [(0.01, 70), (0.01, 1000), (0.0003, 5000)])
def test_slow_ones_with_enough_steps_stay_too(momentum: float, steps: int) -> None:
    assert settled(momentum, steps) == momentum


@pytest.mark.parametrize(("momentum", "steps"), [(0.01, 60), (0.0003, 100), (0.0003, 2000), (1e-6, 100_000)])
def test_slow_ones_forget_their_initial_statistics_within_an_epoch(momentum: float, steps: int) -> None:
    raised = settled(momentum, steps)
    assert raised is not None
    assert momentum < raised <= 0.1
    assert (1 - raised) ** steps == pytest.approx(0.01) or raised == 0.1


def test_of_few_steps_they_are_as_fast_as_torch_s() -> None:
    assert settled(0.0003, 6) == 0.1


def test_an_mnasnet_has_the_variances_of_its_images_after_an_epoch() -> None:
    torch.manual_seed(0)
    images, variances = 3 * torch.randn(8, 3, 32, 32), []
    for settle in (False, True):
        network = build("mnasnet0_5", 3, image_size=32)
        settle_in_time(network, 50 if settle else 10**6)
        norm, layer = network.layers[1], network.layers[0]
        with torch.no_grad():
            maps = layer(images)
            for _ in range(50):
                norm(maps)
        variances.append((norm.running_var / maps.var((0, 2, 3))).median().item())
    assert abs(variances[0] - 1) > 0.1
    assert variances[1] == pytest.approx(1, abs=0.05)


def test_what_has_statistics() -> None:
    assert has_statistics(build("mnasnet0_5", 3, image_size=32))
    assert not has_statistics(nn.Sequential(nn.GroupNorm(1, 2), nn.BatchNorm2d(2, track_running_stats=False)))
