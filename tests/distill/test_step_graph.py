"""Steps that are captured and replayed: which ones, and that they compute what any step does.

Without a GPU a stand-in for the graph leaves its results at the same addresses at every replay, as a graph does.
"""

import gc
import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from distill_samples import flatten
from test_device_step import BATCH, COUNT, SETTINGS, SIDE, make_stepper
from torch import Tensor, nn

from toolkit.data.device_views import DeviceViews
from toolkit.distill import step_graph
from toolkit.distill.features import TappedNetwork
from toolkit.distill.logit_store import StoredTeacher
from toolkit.distill.step import Stepper
from toolkit.distill.step_graph import StepGraph, Sums
from toolkit.machine.devices import fp32_products_in, same_imports


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Counts what is captured, replayed and watched; `error` is raised by a capture, `waits` told by a watch."""
    counts = SimpleNamespace(captured=0, replayed=0, watched=0, error=None, waits=False, parameters=[])

    def capture(work: Callable[[], Sums], device: torch.device) -> tuple[Sums, Callable[[], None]]:
        if counts.error:
            raise counts.error
        counts.captured += 1
        parameters = counts.parameters
        gradients = [torch.full_like(parameter, torch.nan) for parameter in parameters]
        sums = torch.full((), torch.nan), torch.tensor(-1)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient

        def replay() -> None:
            counts.replayed += 1
            with monkeypatch.context() as patch:  # of Python, a replay runs nothing: it takes what is shown
                patch.setattr(DeviceViews, "show", lambda *_: None)
                patch.setattr(StoredTeacher, "show", lambda *_: None)
                values = work()
            for place, value in zip(sums, values, strict=True):
                place.copy_(value)
            for gradient, parameter in zip(gradients, parameters, strict=True):
                gradient.copy_(parameter.grad)
                parameter.grad = None  # where a replay leaves it is no concern of Python's

        return sums, replay

    def watch(work: Callable[[], Sums]) -> tuple[Sums, bool]:
        counts.watched += 1
        return work(), counts.waits

    monkeypatch.setattr(step_graph, "capture", capture)
    monkeypatch.setattr(step_graph, "watch", watch)
    return counts


def make_graphed(graphs: SimpleNamespace, how: str, *settings: str) -> tuple[Stepper, TappedNetwork]:
    """A stepper on the CPU that does what it would on a GPU."""
    stepper, learner = make_stepper(how, "cpu", *settings, as_on_gpu=True)
    stepper._graph = StepGraph(learner)
    graphs.parameters = list(learner.parameters())
    return stepper, learner


@pytest.mark.parametrize("how", ["live", "stored"])
@pytest.mark.parametrize("name", list(SETTINGS))
def test_an_epoch_of_replayed_steps_ends_in_the_weights_of_the_cpu_s(
    graphs: SimpleNamespace, how: str, name: str
) -> None:
    """Two epochs at one size and one at another, of six batches each, the last of which is smaller."""
    ends = []
    for stepper, learner in (make_stepper(how, "cpu", *SETTINGS[name]), make_graphed(graphs, how, *SETTINGS[name])):
        sums = []
        for epoch, side in enumerate((SIDE // 2, SIDE // 2, SIDE)):
            order = stepper._views.upload(np.random.default_rng(epoch).permutation(COUNT))
            sums += [stepper.take(order[start : start + 12], epoch, side) for start in range(0, COUNT, 12)]
        ends.append((flatten(learner.state_dict()), sums, stepper.state()["optimizer"]["state"]))
    assert (graphs.captured, graphs.watched) == (2, 2)
    assert graphs.replayed == 2 + 5 + 2
    assert torch.equal(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]
    for key, state in ends[0][2].items():
        assert torch.equal(state["momentum_buffer"], ends[1][2][key]["momentum_buffer"])


class Body:
    """A step that adds its images' numbers up, and has memory for `most` of them."""

    def __init__(self, network: nn.Module) -> None:
        self.network, self.ran = network, 0

    def __call__(self, indices: Tensor, view: int, side: int) -> Sums:
        self.ran += 1
        for parameter in self.network.parameters():
            parameter.grad = torch.full_like(parameter, float(indices.sum()))
        return indices.sum().float(), torch.tensor(len(indices))


@pytest.fixture
def body(graphs: SimpleNamespace) -> Body:
    network = nn.Linear(2, 2)
    graphs.parameters = list(network.parameters())
    return Body(network)


def test_the_kind_that_comes_often_is_replayed_and_what_comes_in_between_is_not(
    graphs: SimpleNamespace, body: Body
) -> None:
    graph, replayed = StepGraph(body.network), []
    for size in (4, 4, 3, 4, 4, 4, 4, 3, 4, 4):
        before = graphs.replayed
        loss, hits = graph.run(body, torch.arange(size), 0, 32)
        replayed.append(graphs.replayed > before)
        assert (loss.item(), hits.item()) == (sum(range(size)), size)
        assert all((p.grad == loss).all() for p in body.network.parameters())
    assert replayed == [False] * 6 + [True, False, True, True]
    assert graphs.captured == 1


def test_the_last_batch_of_each_epoch_never_takes_the_place_of_the_others(graphs: SimpleNamespace, body: Body) -> None:
    graph = StepGraph(body.network)
    for _ in range(8):
        for size in (4, 4, 4, 4, 3):
            graph.run(body, torch.arange(size), 0, 32)
    assert (graphs.watched, graphs.captured, graphs.replayed) == (1, 1, 7 * 4 + 1)


def test_sums_of_one_step_outlive_the_next(graphs: SimpleNamespace, body: Body) -> None:
    graph = StepGraph(body.network)
    sums = [graph.run(body, torch.arange(4) + step, 0, 32)[0] for step in range(6)]
    assert [loss.item() for loss in sums] == [6, 10, 14, 18, 22, 26]


def test_a_step_that_cannot_be_captured_runs_kernel_by_kernel_and_that_is_said_once(
    graphs: SimpleNamespace, body: Body, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = StepGraph(body.network)
    graphs.error = RuntimeError("CUDA error: operation failed due to a previous error during capture\nSearch for ...")
    graphs.error.__context__ = RuntimeError("CUDA error: operation not permitted when capturing\nCompile ...")
    for step in range(8):
        assert graph.run(body, torch.arange(4) + step, 0, 32)[0].item() == 6 + 4 * step
    assert body.ran == 8
    assert capsys.readouterr().err.splitlines() == [
        "steps run kernel by kernel, not as one CUDA graph: CUDA error: operation not permitted when capturing"
    ]


def test_a_step_that_waits_for_the_gpu_is_not_tried(
    graphs: SimpleNamespace, body: Body, capsys: pytest.CaptureFixture[str]
) -> None:
    graph, graphs.waits = StepGraph(body.network), True
    for _ in range(8):
        graph.run(body, torch.arange(4), 0, 32)
    assert (graphs.watched, graphs.captured, body.ran) == (1, 0, 8)
    assert capsys.readouterr().err.splitlines() == [
        "steps run kernel by kernel, not as one CUDA graph: the host waits for the GPU within a step"
    ]


def test_if_memory_runs_out_the_graph_goes_before_a_batch_is_halved(
    graphs: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stepper, _ = make_graphed(graphs, "stored")
    order = torch.arange(COUNT)
    for start in range(4):
        stepper.take(order[start : start + BATCH], 0, SIDE)
    assert graphs.replayed == 1
    compute, failures = stepper._compute_gradients, [torch.OutOfMemoryError("CUDA out of memory")]

    def run_out_once(*given: Any) -> Sums:
        if failures:
            raise failures.pop()
        return compute(*given)

    monkeypatch.setattr(stepper, "_compute_gradients", run_out_once)
    stepper.take(order[:5], 0, SIDE)
    assert stepper.part_size == BATCH
    assert capsys.readouterr().err.splitlines() == [
        "steps run kernel by kernel, not as one CUDA graph: there is no memory for it"
    ]
    for _ in range(5):
        stepper.take(order[:BATCH], 0, SIDE)
    assert (graphs.captured, graphs.replayed) == (1, 1)
    failures.append(torch.OutOfMemoryError("CUDA out of memory"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    stepper.take(order[:BATCH], 0, SIDE)
    assert stepper.part_size == BATCH // 2, "without a graph there is nothing else to let go of"


def test_a_step_that_runs_out_of_memory_as_it_warms_up_is_watched_before_it_is_captured(
    graphs: SimpleNamespace, body: Body
) -> None:
    graph = StepGraph(body.network)

    def run_out(*_: Any) -> Sums:
        raise torch.OutOfMemoryError

    for each in (body, body, run_out, run_out, body, body):
        try:
            graph.run(each, torch.arange(4), 0, 32)
        except torch.OutOfMemoryError:
            assert not graph.release()
    assert (graphs.watched, graphs.captured) == (3, 1)


@pytest.mark.usefixtures("graphs")
def test_a_stepper_and_its_graph_are_freed_without_the_cyclic_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph holds gigabytes, which the next stage needs."""
    monkeypatch.setattr(step_graph, "capture", lambda work, device: (work(), lambda: None))
    stepper, learner = make_stepper("stored", "cpu", as_on_gpu=True)
    stepper._graph = StepGraph(learner)
    for _ in range(4):
        stepper.take(np.arange(BATCH), 0, SIDE)
    assert stepper._graph._captured is not None
    gone = weakref.ref(stepper._graph), weakref.ref(stepper._graph._captured)
    gc.disable()
    try:
        del stepper
        assert [ref() for ref in gone] == [None, None]
    finally:
        gc.enable()


def test_only_what_lies_on_one_gpu_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    stepper, learner = make_stepper("stored", "cpu", as_on_gpu=True)
    assert stepper._graph is None
    plans = {device: type(stepper._plan)(**vars(stepper._plan) | {"device": device}) for device in ("cpu", "cuda:1")}
    stepper._plan = plans["cuda:1"]
    assert stepper._is_capturable()
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
@pytest.mark.parametrize("how", ["live", "stored"])
@pytest.mark.parametrize("name", list(SETTINGS))
def test_on_a_gpu_replayed_steps_are_eager_ones(how: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """fp32 without TF32, with cuDNN's deterministic kernels: the same ones run either way."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    ends = []
    for graphed in (False, True):
        stepper, learner = make_stepper(how, "cuda:0", *SETTINGS[name])
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
    graph, indices = StepGraph(nn.Linear(2, 2).cuda()), torch.arange(4, device="cuda")
    assert [graph.run(read_back, indices, 0, 32)[0].item() for _ in range(6)] == [6.0] * 6
    assert "the host waits for the GPU within a step" in capsys.readouterr().err


def fail_to_capture() -> None:
    step_graph.watch = lambda work: (work(), False)
    graph, indices = StepGraph(nn.Linear(2, 2).cuda()), torch.arange(4, device="cuda")
    assert [graph.run(read_back, indices, 0, 32)[0].item() for _ in range(6)] == [6.0] * 6


@pytest.mark.gpu
def test_on_a_gpu_a_capture_that_fails_is_survived() -> None:
    """In a process of its own: torch's allocator does not recover, and no later test could capture anything."""
    command = [sys.executable, "-c", "import test_step_graph; test_step_graph.fail_to_capture()"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | same_imports())
    assert done.returncode == 0, done.stderr
    assert "steps run kernel by kernel, not as one CUDA graph: " in done.stderr


@pytest.mark.gpu
def test_on_a_gpu_dropout_draws_anew_at_every_replay() -> None:
    network, images = nn.Linear(1, 1).cuda(), torch.ones(10_000, device="cuda")

    def drop(indices: Tensor, view: int, side: int) -> Sums:
        return nn.functional.dropout(images, 0.5).sum(), indices.sum()

    graph, indices = StepGraph(network), torch.arange(4, device="cuda")
    sums = [graph.run(drop, indices, 0, 32)[0].item() for _ in range(8)]
    assert graph._captured is not None
    assert len(set(sums)) > 4
