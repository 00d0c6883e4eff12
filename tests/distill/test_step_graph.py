"""Steps that are captured and replayed: which ones, and with the results of any other step.

Without a GPU a stand-in for the graph leaves its results at the same addresses at every replay, as a graph does.
"""

import gc
import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from distill_samples import differences, flatten, load_splits, make_plan, make_records, make_student, make_views
from test_device_step import BATCH, COUNT, SETTINGS, SIDE, STRONG, make_stepper
from test_on_a_gpu import stopping_after
from torch import Tensor, nn

from toolkit.data.device_views import DeviceViews
from toolkit.data.resident import ResidentPixels
from toolkit.distill import step as step_module
from toolkit.distill import step_graph
from toolkit.distill.features import TappedNetwork
from toolkit.distill.logit_store import StoredTeacher
from toolkit.distill.memory import free_cache
from toolkit.distill.objective import learn_from_teacher
from toolkit.distill.step import Stepper
from toolkit.distill.step_graph import StepGraph, Sums
from toolkit.distill.teachers import LiveTeacher
from toolkit.distill.trainer import train
from toolkit.distill.training import Training
from toolkit.errors import Interrupted
from toolkit.machine.devices import fp32_products_in, same_imports


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Counts what is captured, replayed and watched; `error` is raised by a capture, `waits` is a watch's finding."""
    counts = SimpleNamespace(captured=0, replayed=0, watched=0, error=None, waits=False)

    def capture(work: Callable[[], Sums], device: torch.device) -> tuple[Sums, Callable[[], None]]:
        if counts.error:
            raise counts.error
        counts.captured += 1
        sums = torch.full((), torch.nan), torch.tensor(-1)

        def replay() -> None:
            counts.replayed += 1
            with monkeypatch.context() as patch:  # a replay runs no Python: it takes the teacher's view that is shown
                patch.setattr(DeviceViews, "show", lambda *_: None)
                patch.setattr(StoredTeacher, "show", lambda *_: None)
                values = work()
            for place, value in zip(sums, values, strict=True):
                place.copy_(value)

        return sums, replay

    def watch(work: Callable[[], Sums]) -> tuple[Sums, bool]:
        counts.watched += 1
        return work(), counts.waits

    monkeypatch.setattr(step_graph, "capture", capture)
    monkeypatch.setattr(step_graph, "watch", watch)
    return counts


@pytest.fixture
def _no_collector() -> Iterator[None]:
    """Without the cyclic collector, so that objects are freed at once or not at all."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def make_graphed(how: str, *settings: str) -> tuple[Stepper, TappedNetwork]:
    """A stepper on the CPU that does what it would on a GPU."""
    stepper, learner = make_stepper(how, "cpu", *settings, as_on_gpu=True)
    stepper._use_graph()
    return stepper, learner


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("how", ["live", "stored"])
@pytest.mark.parametrize("name", [*SETTINGS, *STRONG])
def test_an_epoch_of_replayed_steps_ends_as_one_of_eager_ones(
    graphs: SimpleNamespace, how: str, name: str, optimizer: str
) -> None:
    """Two epochs at one size and one at another, of six batches each, the last of which is smaller.

    To the bit: weights, sums, average, and the states of optimiser and schedule.
    """
    ends = []
    for replays in (True, False):
        stepper, _ = make_graphed(how, *(SETTINGS | STRONG)[name], f"distill.optimizer={optimizer}")
        if not replays:
            stepper._graph = None
        sums = []
        for epoch, side in enumerate((SIDE // 2, SIDE // 2, SIDE)):
            order = stepper._views.upload(np.random.default_rng(epoch).permutation(COUNT))
            sums += [stepper.take(order[start : start + 12], epoch, side) for start in range(0, COUNT, 12)]
        ends.append({"state": vars(stepper.state()), "sums": sums})
    assert (graphs.captured, graphs.watched) == (2, 2)
    assert graphs.replayed == 2 + 5 + 2
    assert list(differences(*ends)) == []


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("name", list(SETTINGS))
def test_replayed_steps_are_those_of_torch_s_own_optimiser_but_for_rounding(
    graphs: SimpleNamespace, name: str, optimizer: str
) -> None:
    """Three eager steps and two replays; checkpoints have the same content."""
    settings = *SETTINGS[name], f"distill.optimizer={optimizer}", "distill.learning_rate=0.001"
    steppers = make_stepper("stored", "cpu", *settings)[0], make_graphed("stored", *settings)[0]
    sums, states = [], []
    for stepper in steppers:
        order = stepper._views.upload(np.random.default_rng(0).permutation(COUNT))
        sums.append([stepper.take(order[start : start + 12], 0, SIDE) for start in range(0, 60, 12)])
        states.append(stepper.state())
    expected, state = states
    assert graphs.replayed == 2
    torch.testing.assert_close(sums[1], sums[0], rtol=1e-3, atol=1e-3)
    assert state.optimizer["param_groups"] == expected.optimizer["param_groups"]
    assert state.scheduler == expected.scheduler
    assert {key: list(kept) for key, kept in state.optimizer["state"].items()} == {
        key: list(kept) for key, kept in expected.optimizer["state"].items()
    }
    if optimizer == "adamw":  # divides what is but rounding, like gradients of biases before a batch norm, by itself
        return
    torch.testing.assert_close(state.learner, expected.learner, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(state.average or {}, expected.average or {}, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(state.optimizer["state"], expected.optimizer["state"], rtol=1e-2, atol=1e-2)


class Body:
    """A step that adds its images' numbers up, and has memory for `most` of them."""

    def __init__(self, network: nn.Module) -> None:
        self.network, self.ran, self.updated = network, 0, 0

    def __call__(self, indices: Tensor, view: int, side: int) -> Sums:
        self.ran += 1
        for parameter in self.network.parameters():
            parameter.grad = torch.full_like(parameter, float(indices.sum()))
        return indices.sum().float(), torch.tensor(len(indices))

    def update(self) -> None:
        self.updated += 1


@pytest.fixture
def body(graphs: SimpleNamespace) -> Body:
    return Body(nn.Linear(2, 2))


def test_the_kind_that_comes_often_is_replayed_and_what_comes_in_between_is_not(
    graphs: SimpleNamespace, body: Body
) -> None:
    graph, replayed = StepGraph(body.update), []
    for size in (4, 4, 3, 4, 4, 4, 4, 3, 4, 4):
        before = graphs.replayed
        (loss, hits), is_updated = graph.run(body, torch.arange(size), 0, 32)
        replayed.append(graphs.replayed > before)
        assert is_updated == replayed[-1]
        assert (loss.item(), hits.item()) == (sum(range(size)), size)
        assert all((p.grad == loss).all() for p in body.network.parameters())
    assert replayed == [False] * 6 + [True, False, True, True]
    assert (graphs.captured, body.updated) == (1, 3), "by replays alone: otherwise it is the caller's turn"


def test_the_last_batch_of_each_epoch_never_takes_the_place_of_the_others(graphs: SimpleNamespace, body: Body) -> None:
    graph = StepGraph(body.update)
    for _ in range(8):
        for size in (4, 4, 4, 4, 3):
            graph.run(body, torch.arange(size), 0, 32)
    assert (graphs.watched, graphs.captured, graphs.replayed) == (1, 1, 7 * 4 + 1)


def test_sums_of_one_step_outlive_the_next(graphs: SimpleNamespace, body: Body) -> None:
    graph = StepGraph(body.update)
    sums = [graph.run(body, torch.arange(4) + step, 0, 32)[0][0] for step in range(6)]
    assert [loss.item() for loss in sums] == [6, 10, 14, 18, 22, 26]


def test_a_step_that_cannot_be_captured_runs_kernel_by_kernel_and_that_is_said_once(
    graphs: SimpleNamespace, body: Body, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = StepGraph(body.update)
    graphs.error = RuntimeError("CUDA error: operation failed due to a previous error during capture\nSearch for ...")
    graphs.error.__context__ = RuntimeError("CUDA error: operation not permitted when capturing\nCompile ...")
    for step in range(8):
        assert graph.run(body, torch.arange(4) + step, 0, 32)[0][0].item() == 6 + 4 * step
    assert body.ran == 8
    assert capsys.readouterr().err.splitlines() == [
        "steps run kernel by kernel, not as one CUDA graph: CUDA error: operation not permitted when capturing"
    ]


def test_a_step_that_waits_for_the_gpu_is_not_tried(
    graphs: SimpleNamespace, body: Body, capsys: pytest.CaptureFixture[str]
) -> None:
    graph, graphs.waits = StepGraph(body.update), True
    for _ in range(8):
        graph.run(body, torch.arange(4), 0, 32)
    assert (graphs.watched, graphs.captured, body.ran) == (1, 0, 8)
    assert capsys.readouterr().err.splitlines() == [
        "steps run kernel by kernel, not as one CUDA graph: the host waits for the GPU within a step"
    ]


@pytest.fixture
def scarce(graphs: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> tuple[Stepper, Callable[..., None]]:
    """A stepper whose step is captured, and a function for steps of so many images, some of which run out of memory."""
    stepper, _ = make_graphed("stored")
    compute, failures = stepper._compute_gradients, [0]

    def run_out(*given: Any) -> Sums:
        if failures[0]:
            failures[0] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return compute(*given)

    def take(size: int, *, steps: int = 1, fail: int = 0) -> None:
        failures[0] = fail
        for _ in range(steps):
            stepper.take(torch.arange(size), 0, SIDE)

    monkeypatch.setattr(stepper, "_compute_gradients", run_out)
    take(BATCH, steps=4)
    assert (graphs.captured, graphs.replayed) == (1, 1)
    return stepper, take


def test_if_memory_runs_out_the_graph_goes_and_comes_back_once(
    graphs: SimpleNamespace, scarce: tuple[Stepper, Callable[..., None]], capsys: pytest.CaptureFixture[str]
) -> None:
    stepper, take = scarce
    take(5, fail=1)
    assert stepper.part_size == BATCH
    assert capsys.readouterr().err.splitlines() == [
        "out of memory: going on without the CUDA graph of a step; it is captured once more later"
    ]
    take(BATCH, steps=5)
    assert (graphs.watched, graphs.captured, graphs.replayed) == (2, 2, 3), "after it has warmed up again"
    take(5, fail=1)
    assert stepper.part_size == BATCH
    assert capsys.readouterr().err.splitlines() == [
        "steps run kernel by kernel, not as one CUDA graph: there is no memory for it"
    ]
    take(BATCH, steps=5)
    assert (graphs.captured, graphs.replayed) == (2, 3)
    take(BATCH, fail=1)
    assert stepper.part_size == BATCH // 2, "without a graph there is nothing else to let go of"


def test_if_the_room_of_the_graph_is_not_enough_the_batch_is_halved_and_captured_in_parts(
    graphs: SimpleNamespace, scarce: tuple[Stepper, Callable[..., None]]
) -> None:
    stepper, take = scarce
    take(BATCH, steps=4)
    take(5, fail=2)
    assert stepper.part_size == BATCH // 2
    take(BATCH, steps=3)
    assert (graphs.watched, graphs.captured) == (2, 1), "a step in parts is another one, and warms up first"
    take(BATCH)
    assert (graphs.captured, graphs.replayed) == (2, 6)


def test_no_gradient_is_left_after_memory_ran_out(
    scarce: tuple[Stepper, Callable[..., None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the cache is given back: a tensor that is left in a graph's memory keeps all of it."""
    stepper, take = scarce
    left: list[int] = []

    def count(_: str) -> None:
        left.append(sum(parameter.grad is not None for parameter in stepper._learner.parameters()))

    count("before memory runs out")
    monkeypatch.setattr(step_module, "free_cache", count)
    take(5, fail=1)
    assert left == [0, 0]


@pytest.mark.usefixtures("_no_collector")
def test_nothing_that_a_failed_capture_made_outlives_it(body: Body, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch unwinds such a capture when its graph goes, and the step that follows needs the memory."""
    gone = []

    def fail(work: Callable[[], Sums], device: torch.device) -> None:
        made = nn.Linear(2, 2)
        gone.append(weakref.ref(made))
        try:
            raise RuntimeError("operation not permitted when stream is capturing")
        except RuntimeError:
            raise RuntimeError("operation failed due to a previous error during capture") from None

    monkeypatch.setattr(step_graph, "capture", fail)
    graph = StepGraph(body.update)
    for _ in range(4):
        graph.run(body, torch.arange(4), 0, 32)
    assert [ref() for ref in gone] == [None]


def test_a_step_that_runs_out_of_memory_as_it_warms_up_is_watched_before_it_is_captured(
    graphs: SimpleNamespace, body: Body
) -> None:
    graph = StepGraph(body.update)

    def run_out(*_: Any) -> Sums:
        raise torch.OutOfMemoryError

    for each in (body, body, run_out, run_out, body, body, body, body):
        try:
            graph.run(each, torch.arange(4), 0, 32)
        except torch.OutOfMemoryError:
            assert not graph.release()
    assert (graphs.watched, graphs.captured) == (2, 1)


@pytest.mark.usefixtures("graphs", "_no_collector")
def test_a_stepper_and_its_graph_are_freed_without_the_cyclic_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph holds gigabytes, which the next stage needs."""
    monkeypatch.setattr(step_graph, "capture", lambda work, device: (work(), lambda: None))
    stepper, _ = make_graphed("stored")
    assert stepper._graph is not None
    for _ in range(4):
        stepper.take(np.arange(BATCH), 0, SIDE)
    assert stepper._graph._captured is not None
    gone = weakref.ref(stepper._graph), weakref.ref(stepper._graph._captured)
    del stepper
    assert [ref() for ref in gone] == [None, None]


class Graphed:
    """Trains with a live teacher on the CPU as a GPU would: 36 images, so 4 steps of 8 and one of 4 per epoch."""

    def __init__(self, graphs: SimpleNamespace, class_folders: Path) -> None:
        self._graphs = graphs
        self._splits = load_splits(class_folders)
        self._plan = make_plan(epochs=3, batch_size=8, schedule="one-cycle", warm_up=0.25, ema=0.9, mixup=0.3)

    def train(self, folder: Path) -> TappedNetwork:
        """Train from the beginning, or from the checkpoint in `folder`; returns the learner."""
        state = make_records(folder).checkpoint.open(resume=True, force=False)
        pixels, valid = self._splits
        learner, views = make_student(), make_views(pixels, mixup=0.3)
        views.on_device = DeviceViews(views, ResidentPixels(pixels, "cpu"))
        teacher = LiveTeacher(make_student(seed=5), views, valid, "fp32")
        training = Training(learner, learn_from_teacher(self._plan.section), views, valid, self._plan, teacher)
        train(training, make_records(folder, state))
        return learner


@pytest.fixture
def graphed(graphs: SimpleNamespace, class_folders: Path, monkeypatch: pytest.MonkeyPatch) -> Graphed:
    monkeypatch.setattr(Stepper, "_is_capturable", lambda _: True)
    return Graphed(graphs, class_folders)


@pytest.mark.parametrize("stop", [4, 8, 10, 13])
def test_a_training_that_was_stopped_between_replays_ends_as_one_that_was_not(
    graphs: SimpleNamespace, graphed: Graphed, stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 15 steps, the fourth is the first that is replayed, in a process that goes on as in one that begins."""
    graphed.train(tmp_path / "whole")
    assert graphs.replayed == 1 + 4 + 4
    with stopping_after(stop), pytest.raises(Interrupted):
        graphed.train(tmp_path / "stopped")
    assert graphs.replayed == 9 + stop - 3 - stop // 5
    before = graphs.replayed
    graphed.train(tmp_path / "stopped")
    assert (graphs.replayed > before) == (stop < 12)
    with monkeypatch.context() as patch:
        patch.setattr(StepGraph, "run", lambda _, body, *given: (body(*given), False))
        graphed.train(tmp_path / "eager")
    whole, *others = (
        torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("whole", "stopped", "eager")
    )
    assert [list(differences(other, whole)) for other in others] == [[], []]


def test_no_gradient_of_a_graph_outlives_the_training(
    graphs: SimpleNamespace, graphed: Graphed, tmp_path: Path
) -> None:
    """Optimiser and schedule are a cycle, and the network is still needed: both hold parameters with gradients."""
    learner = graphed.train(tmp_path)
    assert graphs.captured
    assert all(parameter.grad is None for parameter in learner.parameters())


def test_an_epoch_s_order_is_copied_once_and_its_place_is_found_by_counting(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = torch.randperm(20), torch.randperm(20)
    order, set_to = step_graph.Order(first[4:8]), []
    fill = Tensor.fill_
    monkeypatch.setattr(Tensor, "fill_", lambda self, value: (set_to.append(value), fill(self, value))[1])
    images = order._images.data_ptr()
    for batch in (first[4:8], first[8:12], first[16:20], second[:4], second[4:8], second[4:8], first[8:12]):
        order.seek(batch)
        assert torch.equal(order.take(), batch)
    assert set_to == [16, 0, 4], "after a batch that was left out, a new epoch, and a batch that comes again"
    assert order._images.data_ptr() == images


def test_only_what_lies_on_one_gpu_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    stepper, learner = make_stepper("stored", "cpu", as_on_gpu=True)
    assert stepper._graph is None
    plans = {device: type(stepper._plan)(**vars(stepper._plan) | {"device": device}) for device in ("cpu", "cuda:1")}
    stepper._plan = plans["cuda:1"]
    assert stepper._is_capturable()
    assert stepper._optimization.on_device is None
    for attribute, value in {
        "_plan": plans["cpu"],
        "_compiled": lambda images: images,
        "_learner": TappedNetwork(learner.classifier, ("cnn.3",)),
    }.items():
        with monkeypatch.context() as patch:
            patch.setattr(stepper, attribute, value)
            assert not stepper._is_capturable(), attribute
    with monkeypatch.context() as patch:
        patch.setattr(step_graph.torch.distributed, "is_initialized", lambda: True)
        patch.setattr(step_graph.torch.distributed, "get_world_size", lambda: 2)
        assert not stepper._is_capturable()
    assert stepper._views.on_device is not None
    stepper._views.on_device.resident = None
    assert not stepper._is_capturable()


@pytest.fixture
def fp32_throughout() -> Iterator[None]:
    with fp32_products_in("ieee"):
        yield


@pytest.mark.gpu
@pytest.mark.usefixtures("fp32_throughout")
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("how", ["live", "stored"])
@pytest.mark.parametrize("name", [*SETTINGS, *STRONG])
def test_on_a_gpu_replayed_steps_are_eager_ones(
    how: str, name: str, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fp32 without TF32, with cuDNN's deterministic kernels: the same ones run either way."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    ends = []
    for graphed in (False, True):
        stepper, learner = make_stepper(how, "cuda:0", *(SETTINGS | STRONG)[name], f"distill.optimizer={optimizer}")
        assert stepper._graph is not None
        if not graphed:
            stepper._graph = None
        sums = []
        for epoch, side in enumerate((SIDE // 2, SIDE // 2, SIDE)):
            order = stepper._views.upload(np.random.default_rng(epoch).permutation(COUNT))
            sums += [stepper.take(order[start : start + 12], epoch, side) for start in range(0, COUNT, 12)]
        assert (stepper._graph is not None and stepper._graph._captured is not None) == graphed
        losses = torch.tensor([[loss.item(), hits.item()] for loss, hits in sums])
        ends.append((flatten(learner.cpu().state_dict()), losses))
    torch.testing.assert_close(ends[1][0], ends[0][0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(ends[1][1][:, 0], ends[0][1][:, 0], rtol=1e-3, atol=1e-3)


def read_back(indices: Tensor, view: int, side: int) -> Sums:
    """A step that waits for the GPU."""
    return torch.tensor(float(indices.sum().item()), device="cuda"), indices.sum()


@pytest.mark.gpu
def test_on_a_gpu_a_step_that_waits_is_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    graph, indices = StepGraph(lambda: None), torch.arange(4, device="cuda")
    assert [graph.run(read_back, indices, 0, 32)[0][0].item() for _ in range(6)] == [6.0] * 6
    assert "the host waits for the GPU within a step" in capsys.readouterr().err


def fail_to_capture() -> None:
    step_graph.watch = lambda work: (work(), False)
    graph, indices = StepGraph(lambda: None), torch.arange(4, device="cuda")
    assert [graph.run(read_back, indices, 0, 32)[0][0].item() for _ in range(6)] == [6.0] * 6
    free_cache("cuda:0")
    assert torch.ones(2**24, device="cuda").sum().item() == 2**24


@pytest.mark.gpu
def test_on_a_gpu_a_capture_that_fails_is_survived() -> None:
    """In a process of its own: torch's allocator does not recover, and no later test could capture anything."""
    command = [sys.executable, "-c", "import test_step_graph; test_step_graph.fail_to_capture()"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | same_imports())
    assert done.returncode == 0, done.stderr
    assert "steps run kernel by kernel, not as one CUDA graph: " in done.stderr


@pytest.mark.gpu
def test_on_a_gpu_dropout_draws_new_numbers_at_every_replay() -> None:
    images = torch.ones(10_000, device="cuda")

    def drop(indices: Tensor, view: int, side: int) -> Sums:
        return nn.functional.dropout(images, 0.5).sum(), indices.sum()

    graph, indices = StepGraph(lambda: None), torch.arange(4, device="cuda")
    sums = [graph.run(drop, indices, 0, 32)[0][0].item() for _ in range(8)]
    assert graph._captured is not None
    assert len(set(sums)) > 4
