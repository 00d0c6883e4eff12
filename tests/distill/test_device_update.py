"""The optimiser's step of tensors alone against torch's fused one, over a schedule that moves rate and momentum."""

import pytest
import torch
from torch import nn

from toolkit.distill.features import TappedNetwork
from toolkit.distill.optimization import Optimization, make_rates
from toolkit.networks.classifier import Classifier
from toolkit.settings import DistillRecipe

STEPS = 12


def make_optimization(section: DistillRecipe, device: str = "cpu") -> Optimization:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    network.add_module("unused", nn.Linear(2, 2))
    learner = TappedNetwork(Classifier(network, (0.5,) * 3, (0.5,) * 3)).to(device)
    return Optimization.of(learner, section, STEPS)


def give_gradients(optimization: Optimization, step: int) -> None:
    """The same to every training at the same step; none to what is not used."""
    generator = torch.Generator().manual_seed(step)
    for name, parameter in optimization.network.named_parameters():
        if not name.startswith("unused"):
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.device)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda:0", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("schedule", ["one-cycle", "cosine", "constant"])
@pytest.mark.parametrize("decay", [0.0, 0.01])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.filterwarnings("error")
def test_every_step_is_torch_s_also_after_a_checkpoint(
    optimizer: str, decay: float, schedule: str, device: str
) -> None:
    section = DistillRecipe.model_validate(
        {"learning_rate": 0.05, "optimizer": optimizer, "weight_decay": decay, "schedule": schedule, "ema": 0.9}
    )
    expected, found = (make_optimization(section, device) for _ in range(2))
    found.tabulate(device, section)
    for step in range(STEPS):
        for optimization in (expected, found):
            give_gradients(optimization, step)
            optimization.step()
        assert expected.average is not None
        assert found.average is not None
        torch.testing.assert_close(found.network.state_dict(), expected.network.state_dict())
        torch.testing.assert_close(found.average.state_dict(), expected.average.state_dict())
        torch.testing.assert_close(found.optimizer.state_dict()["state"], expected.optimizer.state_dict()["state"])
        assert found.optimizer.state_dict()["param_groups"] == expected.optimizer.state_dict()["param_groups"]
        assert found.scheduler.state_dict() == expected.scheduler.state_dict()
        if step == STEPS // 2:
            found = resume(found, section, device)


def resume(optimization: Optimization, section: DistillRecipe, device: str) -> Optimization:
    """Another one that goes on from its state."""
    other = make_optimization(section, device)
    other.tabulate(device, section)
    other.network.load_state_dict(optimization.network.state_dict())
    assert optimization.average is not None
    other.restore(
        optimization.optimizer.state_dict(), optimization.scheduler.state_dict(), optimization.average.state_dict()
    )
    return other


def test_rates_are_known_ahead_and_draw_nothing_at_random() -> None:
    section = DistillRecipe.model_validate({"learning_rate": 0.05, "schedule": "one-cycle"})
    optimization, seen = make_optimization(section), []
    before = torch.get_rng_state()
    rates = make_rates(section, STEPS)
    assert torch.equal(torch.get_rng_state(), before)
    for _ in range(STEPS):
        group = optimization.optimizer.param_groups[0]
        seen.append((group["lr"], group["momentum"] if "momentum" in group else group["betas"][0]))
        optimization.step()
    assert rates == seen
    assert len({momentum for _, momentum in rates}) > 2
