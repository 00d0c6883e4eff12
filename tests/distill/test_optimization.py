"""Schedules by their closed forms, image sizes that grow, optimisers with the recipe's settings, averaged weights."""

import math

import pytest
import torch
from torch import nn

from toolkit.distill.optimization import make_average, make_optimizer, make_scheduler
from toolkit.distill.plan import image_size_of
from toolkit.settings import DistillRecipe


def section(**values: object) -> DistillRecipe:
    return DistillRecipe.model_validate({"learning_rate": 0.05, **values})


def rates(settings: DistillRecipe, steps: int) -> list[float]:
    optimizer = make_optimizer(nn.Linear(1, 1), settings)
    scheduler = make_scheduler(optimizer, settings, steps)
    found = []
    for step in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step < steps - 1:
            scheduler.step()
    return found


def test_optimizers_are_torch_s_own_with_the_recipe_s_settings() -> None:
    adamw = make_optimizer(nn.Linear(2, 2), section(optimizer="adamw", weight_decay=0.01))
    assert isinstance(adamw, torch.optim.AdamW)
    assert (adamw.param_groups[0]["weight_decay"], adamw.param_groups[0]["lr"]) == (0.01, 0.05)
    sgd = make_optimizer(nn.Linear(2, 2), section(optimizer="sgd"))
    assert isinstance(sgd, torch.optim.SGD)
    assert (sgd.param_groups[0]["momentum"], sgd.param_groups[0]["nesterov"]) == (0.9, True)
    assert all(optimizer.param_groups[0]["fused"] for optimizer in (adamw, sgd))


def test_constant_without_warm_up_never_changes() -> None:
    assert set(rates(section(schedule="constant", warm_up=0.0), 50)) == {0.05}


def test_cosine_climbs_in_a_straight_line_then_falls_to_nothing() -> None:
    found = rates(section(schedule="cosine", warm_up=0.2), 101)
    assert found[:20] == pytest.approx([0.05 * (step + 1) / 21 for step in range(20)])
    expected = [0.025 * (1 + math.cos(math.pi * (step - 20) / 81)) for step in range(20, 101)]
    assert found[20:] == pytest.approx(expected)


def test_one_cycle_peaks_when_warm_up_ends() -> None:
    found = rates(section(schedule="one-cycle", warm_up=0.3), 101)
    assert found.index(max(found)) == pytest.approx(29, abs=1)
    assert max(found) == pytest.approx(0.05, rel=1e-3)
    assert found[0] == pytest.approx(0.05 / 25)
    assert found[-1] < 1e-6


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_one_cycle_moves_the_momentum_against_the_rate_and_the_others_leave_it(optimizer: str) -> None:
    for schedule in ("one-cycle", "cosine", "constant"):
        settings = section(optimizer=optimizer, schedule=schedule, warm_up=0.3)
        moved = make_optimizer(nn.Linear(1, 1), settings)
        scheduler = make_scheduler(moved, settings, 101)
        found = []
        for _ in range(100):
            group = moved.param_groups[0]
            found.append(group["momentum"] if optimizer == "sgd" else group["betas"][0])
            moved.step()
            scheduler.step()
        if schedule == "one-cycle":
            assert (found[0], min(found), found[-1]) == pytest.approx((0.95, 0.85, 0.95), abs=1e-3)
            assert found.index(min(found)) == pytest.approx(29, abs=1)
        else:
            assert set(found) == {0.9}


@pytest.mark.parametrize("schedule", ["constant", "cosine", "one-cycle"])
def test_a_single_step_is_no_special_case(schedule: str) -> None:
    assert len(rates(section(schedule=schedule, warm_up=0.25), 1)) == 1


@pytest.mark.parametrize(("warm_up", "steps"), [(0.25, 4), (0.5, 2), (0.2, 5), (1 / 3, 3), (0.0, 10), (0.9, 10)])
def test_one_cycle_of_few_steps_works_though_one_alone_climbs(warm_up: float, steps: int) -> None:
    settings = section(schedule="one-cycle", warm_up=warm_up)
    optimizer = make_optimizer(nn.Linear(1, 1), settings)
    scheduler = make_scheduler(optimizer, settings, steps)
    found = []
    for _ in range(steps):  # training steps the schedule after the last step too
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert all(0 < rate <= 0.05 for rate in found[:-1])
    assert found[-1] < 0.01


def test_images_grow_in_steps_and_reach_full_size_in_time() -> None:
    settings = section(epochs=15, start_image_size=96, grow_until=0.8)
    sizes = [image_size_of(epoch, settings, 160) for epoch in range(15)]
    assert sizes[0] == 96
    assert sizes == sorted(sizes)
    assert sizes[12:] == [160, 160, 160]
    assert all(size % 16 == 0 for size in sizes)
    assert len(set(sizes)) == 5
    small = section(epochs=4, start_image_size=16, grow_until=0.5)
    assert [image_size_of(epoch, small, 32) for epoch in range(4)] == [16, 24, 32, 32]


@pytest.mark.parametrize("full", [32, 50, 161, 224])
@pytest.mark.parametrize("epochs", [1, 2, 30])
def test_images_never_exceed_full_size_and_end_with_it(full: int, epochs: int) -> None:
    for start in (0, 16, full - 1, full):
        settings = section(epochs=epochs, start_image_size=start, grow_until=0.5)
        sizes = [image_size_of(epoch, settings, full) for epoch in range(epochs)]
        assert max(sizes) <= full
        assert sizes == sorted(sizes)
        if epochs > 1 or start == 0:
            assert sizes[-1] == full


def test_the_average_is_the_moving_mean_of_weights_and_statistics() -> None:
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = make_average(network, section(ema=0.75))
    assert average is not None
    assert make_average(network, section()) is None
    expected = None
    for step in range(4):
        with torch.no_grad():
            for value in network.state_dict().values():
                value.copy_(torch.full_like(value, step + 1))
        average.update_parameters(network)
        expected = float(step + 1) if expected is None else 0.75 * expected + 0.25 * (step + 1)
    shipped = average.module.state_dict()
    for name in ("0.weight", "1.running_mean", "1.running_var"):
        assert shipped[name].flatten()[0].item() == pytest.approx(expected), name
