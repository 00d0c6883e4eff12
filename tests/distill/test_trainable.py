"""Batch norm and a single image: what is refused before any work, and what a training does instead of a traceback."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distill_samples import DATA, load_splits, make_plan, make_records, make_views, tapped
from torch import Tensor, nn
from torch.nn import functional as F

import toolkit
from toolkit import pipeline
from toolkit.cli import app
from toolkit.distill import distributed
from toolkit.distill.objective import learn_from_labels
from toolkit.distill.optimization import Optimization
from toolkit.distill.step import Stepper
from toolkit.distill.trainable import least_batch, require_trainable
from toolkit.distill.trainer import train
from toolkit.distill.training import Training
from toolkit.errors import RecipeError, TrainingError
from toolkit.networks.registry import build
from toolkit.recipe import Recipe
from toolkit.stage_setup import prepare_training


class OwnNorm(nn.Module):
    """Calls the function, not the module."""

    def forward(self, features: Tensor) -> Tensor:
        return F.batch_norm(features, None, None, training=self.training)


def pooled(*norm: nn.Module) -> nn.Sequential:
    """Global pooling, then `norm`: one value per channel, whatever the size of the images."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), *norm, nn.Flatten(), nn.Linear(4, 3))


@pytest.mark.parametrize(
    ("network", "size", "least"),
    [
        (lambda: build("resnet18", 3), 32, 2),
        (lambda: build("resnet18", 3), 33, 1),
        (lambda: build("resnet18", 3, enlarge=2), 32, 1),
        (lambda: build("depthwise", 3, base=2), 31, 2),
        (lambda: build("depthwise", 3, base=2), 32, 1),
        (lambda: build("mobilenet_v3_small", 3), 32, 2),
        (lambda: build("squeezenet1_1", 3), 32, 1),
        (lambda: pooled(nn.BatchNorm2d(4)), 64, 2),
        (lambda: pooled(nn.Flatten(), nn.BatchNorm1d(4)), 64, 2),
        (lambda: pooled(OwnNorm()), 64, 2),
        (lambda: pooled(nn.Dropout(), nn.GroupNorm(2, 4)), 64, 1),
        (lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), 8, 1),
    ],
)
def test_how_many_images_a_network_needs_at_once(network: Callable[[], nn.Module], size: int, least: int) -> None:
    assert least_batch(network(), size) == least


def test_to_look_changes_nothing() -> None:
    torch.manual_seed(0)
    network = pooled(nn.BatchNorm2d(4), nn.Dropout())
    network(torch.rand(4, 3, 16, 16))
    state = {name: value.clone() for name, value in network.state_dict().items()}
    random = torch.get_rng_state()
    for _ in range(2):
        least_batch(network, 16)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def require(network: nn.Module, *settings: str) -> str:
    recipe = Recipe().with_overrides(["data.image_size=48", *settings])
    with pytest.raises(RecipeError) as caught:
        require_trainable(network, recipe, "student")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_refusal_says_what_where_and_what_is_allowed() -> None:
    assert require(pooled(nn.BatchNorm2d(4)), "distill.batch_size=1") == (
        "distill.batch_size = 1 is too small: of an image of 48 px, a batch norm of depthwise sees one value per"
        " channel, and it needs two to train; use --set distill.batch_size=2 or more, or a larger data.image_size"
    )
    growing = require(build("depthwise", 3, base=2), "distill.batch_size=1", "distill.start_image_size=24")
    assert "of an image of 24 px" in growing
    assert growing.endswith("or a larger distill.start_image_size")
    for network, batch in ((pooled(nn.BatchNorm2d(4)), 2), (build("depthwise", 3, base=2), 1)):
        recipe = Recipe().with_overrides(["data.image_size=48", f"distill.batch_size={batch}"])
        require_trainable(network, recipe, "student")


def test_what_no_batch_can_mend_names_the_size() -> None:
    """Instance norm, which has nothing but the map."""
    told = require(pooled(nn.InstanceNorm2d(4)))
    assert told.startswith("student: the network cannot take images of 48 px (data.image_size): Expected more than 1")
    assert told.endswith("; use a larger data.image_size, or another architecture")


def test_several_processes_need_as_many_times_more_where_a_norm_cannot_be_shared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    assert "use --set distill.batch_size=6 or more" in require(pooled(OwnNorm()), "distill.batch_size=5")


SMALL = [
    *("data.image_size=16", "data.resize=16", "training.precision=fp32", "teacher.architecture=depthwise"),
    *("teacher.base=2", "student.base=2", "teacher.epochs=1", "distill.epochs=1"),
]


class TestBeforeAnyWork:
    @pytest.fixture(autouse=True)
    def _nothing_is_trained(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def work(*_: Any) -> None:
            raise AssertionError("something was trained")

        monkeypatch.setattr("toolkit.distill.job.train", work)

    @pytest.mark.parametrize(
        ("command", "section"),
        [
            *(("teacher", "teacher"), ("distill", "teacher"), ("distill", "distill"), ("run", "distill")),
            *(("plan", "teacher"), ("plan", "distill")),
        ],
    )
    def test_every_command_says_so(self, command: str, section: str, class_folders: Path, tmp_path: Path) -> None:
        settings = [*SMALL, f"{section}.batch_size=1"]
        flags = ["--data", str(class_folders), "--out", str(tmp_path / "m"), "--device", "cpu"]
        flags += [word for setting in settings for word in ("--set", setting)]
        with pytest.raises(RecipeError, match=rf"{section}\.batch_size = 1 is too small: of an image of 16 px"):
            app.app([command, *flags], standalone_mode=False)

    @pytest.mark.parametrize("stage", ["distill", "run"])
    def test_and_python_does_before_the_teacher_is_trained(
        self, stage: str, class_folders: Path, tmp_path: Path
    ) -> None:
        settings = dict(setting.split("=") for setting in SMALL)
        numbers: dict[str, Any] = {key: int(value) if value.isdigit() else value for key, value in settings.items()}
        opened = toolkit.open(
            tmp_path / "m", data=class_folders, settings=numbers | {"distill.batch_size": 1}, device="cpu", quiet=True
        )
        with pytest.raises(toolkit.RecipeError, match=r"distill\.batch_size = 1 is too small"):
            getattr(opened, stage)()

    def test_a_teacher_that_is_there_or_given_is_not_asked(self, class_folders: Path, tmp_path: Path) -> None:
        torch.save(build("depthwise", 3, base=2).state_dict(), tmp_path / "given.pth")
        settings = [*SMALL, "teacher.batch_size=1", f'teacher.weights="{tmp_path / "given.pth"}"']
        for _ in range(2):
            setup = prepare_training(None, str(class_folders), tmp_path / "m", settings, device="cpu")
            pipeline.make_teacher(setup)


LABELS = learn_from_labels(0.0)


def test_the_rest_of_an_epoch_of_one_image_joins_the_batch_before(class_folders: Path, tmp_path: Path) -> None:
    """36 images in batches of 7 leave one."""
    train_pixels, valid = load_splits(class_folders)
    learner = tapped(pooled(nn.BatchNorm2d(4)))
    training = Training(learner, LABELS, make_views(train_pixels), valid, make_plan(epochs=1, batch_size=7))
    assert train(training, make_records(tmp_path)).images_seen == 36


class Short(nn.Module):
    """Pooling and `norm`, with memory for `most` images at once."""

    def __init__(self, most: int, *norm: nn.Module) -> None:
        super().__init__()
        self.body, self.most = pooled(*norm), most
        self.sizes: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            if len(images) > self.most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            self.sizes.append(len(images))
        logits: Tensor = self.body(images)
        return logits


def take_a_step(class_folders: Path, network: nn.Module) -> None:
    train_pixels, valid = load_splits(class_folders)
    learner, plan = tapped(network), make_plan(batch_size=7)
    training = Training(learner.train(), LABELS, make_views(train_pixels), valid, plan)
    Stepper(training, Optimization.of(learner, plan.section, 10)).take(np.arange(7), 0, DATA.image_size)


@pytest.mark.parametrize(
    ("most", "norm", "parts"),
    [(2, nn.BatchNorm2d(4), [2, 2, 3]), (1, nn.GroupNorm(2, 4), [1] * 7), (3, nn.BatchNorm2d(4), [2, 2, 3])],
)
def test_halving_stops_where_the_network_bears_no_less(
    class_folders: Path, most: int, norm: nn.Module, parts: list[int]
) -> None:
    short = Short(max(most, parts[-1]), norm)
    take_a_step(class_folders, short)
    assert short.sizes[-len(parts) :] == parts


def test_too_little_memory_for_two_is_one_line(class_folders: Path) -> None:
    message = (
        r"student: out of memory with two images at a time, and batch norm needs two of 32 px; use a smaller network"
    )
    with pytest.raises(TrainingError, match=message):
        take_a_step(class_folders, Short(1, nn.BatchNorm2d(4)))


def test_so_is_too_little_memory_to_find_that_out(class_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("toolkit.distill.step.least_batch", fail)
    with pytest.raises(TrainingError, match="out of memory with one image at a time"):
        take_a_step(class_folders, Short(0, nn.BatchNorm2d(4)))
