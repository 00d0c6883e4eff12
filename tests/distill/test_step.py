"""One optimiser step: in parts if memory runs out, and through torch.compile if that works."""

import copy
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distill_samples import (
    Splits,
    flatten,
    load_splits,
    make_plan,
    make_records,
    make_student,
    make_views,
    tapped,
)
from torch import Tensor, nn

from toolkit.distill import distributed
from toolkit.distill.features import TappedNetwork
from toolkit.distill.objective import learn_from_labels
from toolkit.distill.optimization import Optimization
from toolkit.distill.plan import Plan
from toolkit.distill.step import Stepper
from toolkit.distill.trainer import train
from toolkit.distill.training import Training
from toolkit.errors import TrainingError

LABELS = learn_from_labels(0.1)

OUT_OF_MEMORY = {
    "gpu": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "cpu": lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"
        " allocate 18014398509481984 bytes. Error code 12 (Cannot allocate memory)"
    ),
}


class Greedy(nn.Module):
    """A network without batch norm that has memory for `most` images at once."""

    def __init__(self, most: int, error: Callable[[], Exception]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 3)
        )
        self.most, self.error = most, error
        self.sizes: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        if self.training and len(images) > self.most:
            raise self.error()
        self.sizes.append(len(images))
        logits: Tensor = self.body(images)
        return logits


@pytest.fixture(scope="module")
def splits(class_folders: Path) -> Splits:
    return load_splits(class_folders)


def make_stepper(splits: Splits, learner: TappedNetwork, plan: Plan) -> Stepper:
    views = make_views(splits[0], mixup=plan.section.mixup)
    training = Training(learner.train(), LABELS, views, splits[1], plan)
    return Stepper(training, Optimization.of(learner, plan.section, 100))


@pytest.mark.parametrize("where", list(OUT_OF_MEMORY))
@pytest.mark.parametrize(("most", "parts"), [(8, [6, 6]), (5, [3, 3, 3, 3]), (2, [2] * 6), (1, [1] * 12)])
def test_out_of_memory_halves_the_parts_and_gradients_stay_those_of_the_batch(
    splits: Splits, where: str, most: int, parts: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    plan = make_plan(batch_size=12, mixup=0.3)
    whole, greedy = Greedy(99, OUT_OF_MEMORY[where]), Greedy(most, OUT_OF_MEMORY[where])
    sums, learners = [], [tapped(whole), tapped(greedy)]
    for learner in learners:
        sums.append(make_stepper(splits, learner, plan).take(np.arange(12), 0, 32))
    assert whole.sizes == [12]
    assert sum(greedy.sizes[-len(parts) :]) == 12
    assert max(greedy.sizes[-len(parts) :]) <= most
    for ours, theirs in zip(greedy.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(sums[1], sums[0], rtol=1e-5, atol=1e-5)
    said = capsys.readouterr().err
    assert f"out of memory: going on with {max(greedy.sizes[-2:])} images at a time; " in said
    assert "gradients add up to the same batches of 12" in said


def test_it_is_halved_once_and_stays_so_through_a_checkpoint(
    splits: Splits, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = make_plan(batch_size=12, ema=0.5)
    greedy = Greedy(6, OUT_OF_MEMORY["gpu"])
    stepper = make_stepper(splits, tapped(greedy), plan)
    for step in range(3):
        stepper.take(np.arange(12 * step, 12 * step + 12), 0, 32)
    assert stepper.part_size == 6
    assert capsys.readouterr().err.count("out of memory") == 1

    resumed = Greedy(6, OUT_OF_MEMORY["gpu"])
    other = make_stepper(splits, tapped(resumed), plan)
    other.restore(copy.deepcopy(stepper.state()))
    other.take(np.arange(12), 1, 32)
    stepper.take(np.arange(12), 1, 32)
    assert resumed.sizes == [6, 6]
    assert "out of memory" not in capsys.readouterr().err
    assert torch.equal(flatten(resumed.state_dict()), flatten(greedy.state_dict()))


def test_a_whole_batch_is_tried_again_if_a_checkpoint_was_never_short_of_memory(
    splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of two processes sees half a batch at a time; a single one that goes on takes it whole."""
    plan = make_plan(batch_size=12)
    with monkeypatch.context() as patch:
        patch.setattr(distributed, "replicate", lambda network, device: network)  # there is no other process
        patch.setattr(distributed, "world_size", lambda: 2)
        half = Greedy(99, OUT_OF_MEMORY["gpu"])
        stepper = make_stepper(splits, tapped(half), plan)
        stepper.take(np.arange(12), 0, 32)
        state = copy.deepcopy(stepper.state())
    assert half.sizes == [6]
    whole = Greedy(99, OUT_OF_MEMORY["gpu"])
    alone = make_stepper(splits, tapped(whole), plan)
    alone.restore(state)
    alone.take(np.arange(12), 0, 32)
    assert whole.sizes == [12]


def test_training_goes_on_after_it_ran_out_of_memory(splits: Splits, tmp_path: Path) -> None:
    learner = tapped(Greedy(4, OUT_OF_MEMORY["cpu"]))
    plan = make_plan(epochs=2, batch_size=16)
    result = train(Training(learner, LABELS, make_views(splits[0]), splits[1], plan), make_records(tmp_path))
    assert result.images_seen == 2 * 36
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["part_size"] == 4


def test_out_of_memory_with_one_image_is_reported_in_one_line(splits: Splits) -> None:
    stepper = make_stepper(splits, tapped(Greedy(0, OUT_OF_MEMORY["cpu"])), make_plan(batch_size=12))
    message = (
        "student: out of memory with one image at a time; use a smaller distill.batch_size, data.image_size or net"
    )
    with pytest.raises(TrainingError, match=message):
        stepper.take(np.arange(12), 0, 32)


def test_another_error_is_a_bug_and_is_not_swallowed(splits: Splits, capsys: pytest.CaptureFixture[str]) -> None:
    stepper = make_stepper(splits, tapped(Greedy(0, lambda: RuntimeError("shapes differ"))), make_plan(batch_size=12))
    with pytest.raises(RuntimeError, match="shapes differ"):
        stepper.take(np.arange(12), 0, 32)
    assert "memory" not in capsys.readouterr().err


class TestCompile:
    @pytest.fixture
    def _reset(self) -> Iterator[None]:
        torch._dynamo.reset()
        yield
        torch._dynamo.reset()

    def test_if_it_cannot_work_the_error_is_one_line_with_its_remedy(
        self, splits: Splits, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from torch._inductor.exc import InvalidCxxCompiler

        def compile_nothing(*_: Any, **__: Any) -> Callable[..., Any]:
            def fail(images: Tensor) -> None:
                raise InvalidCxxCompiler

            return fail

        monkeypatch.setattr(torch, "compile", compile_nothing)
        plan = Plan(**{**vars(make_plan(batch_size=12)), "compile": "default"})
        stepper = make_stepper(splits, make_student(), plan)
        with pytest.raises(
            TrainingError, match=r"torch.compile cannot be used here: No working C\+\+ compiler"
        ) as caught:
            stepper.take(np.arange(12), 0, 32)
        assert "use training.compile=off" in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_an_error_of_the_network_itself_is_not_taken_for_the_compiler_s(
        self, splits: Splits, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch, "compile", lambda network, **_: network)
        plan = Plan(**{**vars(make_plan(batch_size=12)), "compile": "default"})
        stepper = make_stepper(splits, tapped(Greedy(0, lambda: ValueError("a bug"))), plan)
        with pytest.raises(ValueError, match="a bug"):
            stepper.take(np.arange(12), 0, 32)

    @pytest.mark.slow
    @pytest.mark.usefixtures("_reset")
    @pytest.mark.filterwarnings("default")  # torch's own, of the compiler's inside
    @pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
    def test_compiled_training_ends_near_the_eager_one(self, splits: Splits, tmp_path: Path) -> None:
        ends = []
        for mode in ("off", "default"):
            torch.manual_seed(0)
            body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
            learner = tapped(nn.Sequential(body, nn.Flatten(), nn.Linear(8, 3)))
            plan = Plan(**{**vars(make_plan(epochs=2, batch_size=16)), "compile": mode})
            training = Training(learner, LABELS, make_views(splits[0]), splits[1], plan)
            result = train(training, make_records(tmp_path / mode))
            ends.append(learner.state_dict())
            assert result.images_seen == 72
        assert list(ends[0]) == list(ends[1]), "checkpoints fit either way"
        torch.testing.assert_close(ends[1], ends[0], rtol=1e-3, atol=1e-4)


def test_the_message_of_the_cpu_s_allocator_is_still_what_the_step_looks_for() -> None:
    with pytest.raises(RuntimeError, match=re.escape("can't allocate memory")):
        torch.empty(2**55)
