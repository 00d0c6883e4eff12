"""Compiled training of images that grow: as many sizes as there is room for, and no silent way back."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distill_samples import load_splits, make_plan, make_views, tapped
from torch import nn
from torch._dynamo import config
from torch._dynamo.testing import CompileCounter

from toolkit.data.sources import load_dataset
from toolkit.distill import job
from toolkit.distill.compilation import make_room, require_few_sizes
from toolkit.distill.job import TrainingData, TrainingOptions
from toolkit.distill.objective import learn_from_labels
from toolkit.distill.optimization import Optimization
from toolkit.distill.plan import Plan
from toolkit.distill.step import Stepper
from toolkit.distill.student import train_control
from toolkit.distill.training import Training
from toolkit.errors import RecipeError
from toolkit.modeldir import ModelDir
from toolkit.recipe import Recipe
from toolkit.stage_setup import prepare_training

GROWING = ("start_image_size=32", "epochs=40", "learning_rate=0.05")
"""From 32 to 256 px in steps of 8: 29 sizes."""


def recipe(*settings: str) -> Recipe:
    return Recipe().with_overrides(["data.image_size=256", *settings])


def growing(section: str) -> list[str]:
    return [f"{section}.{setting}" for setting in GROWING]


@pytest.mark.parametrize("section", ["teacher", "distill"])
def test_more_sizes_than_eight_are_refused_before_the_work_begins(section: str) -> None:
    message = (
        rf"training\.compile = default: images grow through 29 sizes \({section}\.start_image_size\), each of which is"
        rf" compiled by itself; at most 8 are allowed; use a larger {section}\.start_image_size, 0 for full size"
        r" throughout, or training\.compile=off"
    )
    with pytest.raises(RecipeError, match=message) as caught:
        require_few_sizes(recipe("training.compile=default", *growing(section)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        growing("distill"),
        ["training.compile=default"],
        ["training.compile=default", "distill.start_image_size=144", "distill.epochs=40"],  # to 256 px by 16: 8 sizes
        ["training.compile=default", "teacher.weights=fashion-mnist", *growing("teacher")],  # nothing trains it
    ],
)
def test_other_recipes_are_not(settings: list[str]) -> None:
    require_few_sizes(recipe(*settings))


def test_a_command_refuses_them_when_it_is_called(class_folders: Path, tmp_path: Path) -> None:
    settings = ["data.image_size=256", "training.compile=default", *growing("distill")]
    with pytest.raises(RecipeError, match="29 sizes"):
        prepare_training(None, str(class_folders), tmp_path / "m", settings, device="cpu")


def test_a_stage_makes_room_before_it_trains(
    class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(
        f"data.source={class_folders}",
        "data.image_size=32",
        "data.resize=0",
        "student.base=4",
        "training.precision=fp32",
    )
    images = TrainingData(load_dataset(made.data), *load_splits(class_folders))
    monkeypatch.setattr(job, "make_room", lambda plan: called.append("room"))
    monkeypatch.setattr(job, "train", lambda *rest: called.append("train") or 1 / 0)
    called: list[str] = []
    with pytest.raises(ZeroDivisionError):
        train_control(made, ModelDir(tmp_path), images, TrainingOptions())
    assert called == ["room", "train"]


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Iterator[CompileCounter]:
    """torch.compile that generates no code, and counts the graphs that it would have generated code for."""
    torch._dynamo.reset()
    real, counter = torch.compile, CompileCounter()
    monkeypatch.setattr(torch, "compile", lambda network, mode, **rest: real(network, backend=counter, **rest))
    limits = config.recompile_limit, config.accumulated_recompile_limit
    yield counter
    config.recompile_limit, config.accumulated_recompile_limit = limits
    torch._dynamo.reset()


def take_a_step_of_each_size(plan: Plan, channels: int, class_folders: Path) -> None:
    layers = nn.Conv2d(3, channels, 3), nn.BatchNorm2d(channels), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    learner = tapped(nn.Sequential(*layers, nn.Linear(channels, 3))).train()
    pixels, valid = load_splits(class_folders)
    training = Training(learner, learn_from_labels(0.0), make_views(pixels), valid, plan)
    stepper = Stepper(training, Optimization.of(learner, plan.section, 100))
    for epoch in range(plan.section.epochs):
        stepper.take(np.arange(plan.section.batch_size), 0, plan.image_size_of(epoch))


def test_every_size_of_every_stage_of_a_process_is_compiled(class_folders: Path, counter: Any) -> None:
    """Without room, the second network is not compiled at all: the first one, the teacher, has used it up."""
    section = make_plan(start_image_size=16, epochs=12).section
    plan = Plan("distill", section, 72, "fp32", 0, "cpu", compile="default")  # 16 to 72 px by 8: 8 sizes
    for number in (1, 2):
        make_room(plan)
        take_a_step_of_each_size(plan, 2 + 2 * number, class_folders)
        assert counter.frame_count == 8 * number
