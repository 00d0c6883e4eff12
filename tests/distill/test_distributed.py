"""Several processes train one network: on this machine's cores over gloo, with the result of one process."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import make_class_folders
from distill_samples import (
    SMALL,
    ToolkitCommands,
    load_splits,
    make_plan,
    make_student,
    make_views,
    read_lines,
    start_two,
)
from safetensors.torch import load_file
from toolkit_process import other_processes
from torch import Tensor, nn

from toolkit.cli import ending
from toolkit.data.batches import batches
from toolkit.distill import distributed
from toolkit.distill.evaluation import compute_logits
from toolkit.distill.objective import learn_from_labels
from toolkit.distill.optimization import Optimization
from toolkit.distill.step import Stepper
from toolkit.distill.training import Training

HANG_S = 600.0
"""s after which a test gives up; it says nothing about the machine's speed"""
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "toolkit"]


@pytest.fixture(scope="module")
def toolkit(tmp_path_factory: pytest.TempPathFactory) -> ToolkitCommands:
    return ToolkitCommands(tmp_path_factory.mktemp("logs"))


# Two processes without a command, for the parts.


def together(work: Callable[[], Any], folder: Path) -> list[Any]:
    """The results of `work`, a function of this file, in each of two processes."""
    context = other_processes()
    queue = context.SimpleQueue()
    rest = (folder / "meeting", queue, dict(os.environ))
    processes = [context.Process(target=_join, args=(work, rank, *rest)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(HANG_S)
        assert process.exitcode == 0, process.exitcode
    results = dict(queue.get() for _ in processes)
    return [torch.load(results[rank], weights_only=True) for rank in range(2)]


def _join(work: Callable[[], Any], rank: int, meeting: Path, queue: Any, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    result = meeting.with_name(f"{rank}.pt")
    torch.save(work(), result)
    queue.put((rank, str(result)))
    dist.destroy_process_group()


def share_and_gather() -> list[list[list[float]]]:
    gathered = []
    for count in (1, 2, 5, 8):
        items = np.arange(count) * 10
        rows = torch.from_numpy(distributed.own_share(items)).float().view(-1, 1).repeat(1, 3)
        gathered.append(distributed.gather_shares(rows, count).tolist())
    return gathered


def test_shares_come_together_in_order(tmp_path: Path) -> None:
    expected = [[[10.0 * i] * 3 for i in range(count)] for count in (1, 2, 5, 8)]
    assert together(share_and_gather, tmp_path) == [expected, expected]


def add_agree_and_compare() -> list[Any]:
    rank = dist.get_rank()
    return [
        distributed.add_up(torch.tensor([1.0 + rank, 2.0])).tolist(),
        distributed.greatest(torch.tensor([rank, 5 - rank])).tolist(),
        distributed.agree(f"of {rank}"),
        [distributed.is_main(), distributed.world_size(), distributed.rank()],
    ]


def test_processes_add_up_agree_and_know_their_place(tmp_path: Path) -> None:
    common: list[Any] = [[3.0, 4.0], [1, 5], "of 0"]
    got = together(add_agree_and_compare, tmp_path)
    assert got == [[*common, [True, 2, 0]], [*common, [False, 2, 1]]]


@pytest.mark.parametrize(
    ("device", "backend", "gpu"), [("cpu", "gloo", None), ("cuda:1", "nccl", torch.device("cuda:1"))]
)
def test_processes_wait_for_one_that_decodes_for_hours(
    monkeypatch: pytest.MonkeyPatch, device: str, backend: str, gpu: torch.device | None
) -> None:
    """nccl's default is ten minutes; a GPU is bound from the start, or its number is guessed at the first barrier."""
    joined: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(dist, "init_process_group", lambda name, **rest: joined.append((name, rest)))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(distributed.atexit, "register", lambda function: None)
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    distributed.join(device)
    ((name, rest),) = joined
    assert name == backend
    assert rest["timeout"] >= timedelta(hours=6)
    assert rest["device_id"] == gpu


def part_late() -> list[bool]:
    """The first process waits for the second, which comes later."""
    came = dist.group.WORLD.get_group_store()
    if distributed.rank() == 1:
        time.sleep(0.5)
        came.set("the second came", "")
    distributed.part()
    return [came.check(["the second came"]), distributed._all_at_the_end.is_set()]


def test_processes_wait_for_each_other_before_they_end(tmp_path: Path) -> None:
    assert together(part_late, tmp_path) == [[True, True], [True, True]]


def part_alone() -> bool:
    distributed.PART_SECONDS = 0.2
    if distributed.rank() == 0:
        distributed.part()
    return distributed._all_at_the_end.is_set()


def test_a_process_does_not_wait_for_one_that_never_comes(tmp_path: Path) -> None:
    assert together(part_alone, tmp_path) == [False, False]


def part_without_collectives() -> bool:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a collective at the end")

    dist.barrier = dist.all_reduce = refuse
    distributed.part()
    return distributed._all_at_the_end.is_set()


def test_the_end_is_agreed_on_without_a_gpu_s_kernels(tmp_path: Path) -> None:
    """If a barrier of nccl times out, its watchdog ends the process."""
    assert together(part_without_collectives, tmp_path) == [True, True]


@pytest.mark.parametrize(
    ("backend", "all_at_the_end", "ending"),
    [("nccl", True, "destroyed"), ("nccl", False, "aborted"), ("gloo", False, "destroyed")],
)
def test_nccl_waits_for_its_kernels_only_if_all_processes_came_to_their_end(
    monkeypatch: pytest.MonkeyPatch, backend: str, all_at_the_end: bool, ending: str
) -> None:
    """A process that failed leaves the others in a collective, and would wait for them at its own end."""
    did: list[str] = []
    came = threading.Event()
    if all_at_the_end:
        came.set()
    monkeypatch.setattr(distributed, "_all_at_the_end", came)
    monkeypatch.setattr(distributed.signal, "signal", lambda *_: None)
    monkeypatch.setattr(dist, "get_backend", lambda: backend)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: did.append("destroyed"))
    monkeypatch.setattr(dist, "group", SimpleNamespace(WORLD=SimpleNamespace(abort=lambda: did.append("aborted"))))
    distributed._leave()
    assert did == [ending]


def test_alone_nothing_is_shared() -> None:
    items = np.arange(5)
    assert distributed.own_share(items).tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(distributed.gather_shares(torch.arange(5), 5), torch.arange(5))
    assert distributed.agree(3) == 3
    assert distributed.is_main()
    network = nn.Sequential(nn.BatchNorm2d(2))
    assert distributed.synchronize_batch_norms(network, "cpu") is network
    assert type(network[0]) is nn.BatchNorm2d


def make_normed_network() -> nn.Sequential:
    """In float64, as the gradients of what comes before a norm are small differences of large sums."""
    torch.manual_seed(1)
    norm, cumulative = nn.BatchNorm2d(6), nn.BatchNorm2d(2, affine=False, momentum=None)
    nn.init.uniform_(norm.weight)
    nn.init.uniform_(norm.bias)
    return nn.Sequential(nn.Sequential(nn.Conv2d(3, 6, 3), norm), nn.ReLU(), nn.Conv2d(6, 2, 1), cumulative).double()


def make_batch(step: int) -> tuple[Tensor, Tensor]:
    """7 images, an odd number, whose third channel is far from 0; and weights of the outputs."""
    torch.manual_seed(100 + step)
    images = torch.randn(7, 3, 8, 8, dtype=torch.float64) * torch.tensor([1.0, 3.0, 0.5]).view(3, 1, 1)
    return images + torch.tensor([0.0, -2.0, 30.0]).view(3, 1, 1), torch.randn(7, 2, 6, 6, dtype=torch.float64)


def train_normed_network(network: nn.Sequential, mine: Callable[[np.ndarray], np.ndarray]) -> dict[str, Any]:
    """Two batches, of which this process has the images `mine`; gradients are the sums over them."""
    network.train()
    outputs, gradients = [], []
    for step in range(2):
        images, weights = make_batch(step)
        images.requires_grad_()
        share = mine(np.arange(7))
        output = network(images[share])
        network.zero_grad()
        (output * weights[share]).pow(2).sum().backward()
        outputs.append(output.detach())
        gradients.append(images.grad[share])
    parameters = [distributed.add_up(parameter.grad.clone()) for parameter in network.parameters()]
    with torch.no_grad():
        evaluated = network.eval()(make_batch(9)[0])
    return {
        "outputs": outputs,
        "gradients": gradients,
        "parameters": parameters,
        "buffers": dict(network.named_buffers()),
        "names": list(network.state_dict()),
        "evaluated": evaluated,
    }


def train_normed_share() -> dict[str, Any]:
    network = make_normed_network()
    distributed.synchronize_batch_norms(network, "cpu")
    return train_normed_network(network, distributed.own_share)


def test_batch_norms_on_the_cpu_have_the_statistics_and_gradients_of_the_whole_batch(tmp_path: Path) -> None:
    expected = train_normed_network(make_normed_network(), lambda items: items)
    one, other = together(train_normed_share, tmp_path)
    close = {"rtol": 1e-6, "atol": 1e-6}
    for step in range(2):
        for what in ("outputs", "gradients"):
            whole = torch.empty_like(expected[what][step])
            whole[0::2], whole[1::2] = one[what][step], other[what][step]
            torch.testing.assert_close(whole, expected[what][step], **close, msg=lambda m, w=what: f"{w}: {m}")
    for got in (one, other):
        assert got["names"] == expected["names"]
        torch.testing.assert_close(got["parameters"], expected["parameters"], **close)
        torch.testing.assert_close(got["buffers"], expected["buffers"], **close)
        torch.testing.assert_close(got["evaluated"], expected["evaluated"], **close)


def norm_vectors_of_one_image() -> Tensor:
    """A share of one image, after global pooling: alone, torch's own norm would refuse it."""
    torch.manual_seed(0)
    network = distributed.synchronize_batch_norms(nn.Sequential(nn.BatchNorm1d(3)), "cpu")
    values = torch.randn(2, 3)
    shared = network(values[distributed.rank() :: 2]).detach()
    assert network.eval()(values).shape == (2, 3)
    return shared


def test_batch_norms_of_vectors_are_shared_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    expected = nn.BatchNorm1d(3)(torch.randn(2, 3)).detach()
    for rank, got in enumerate(together(norm_vectors_of_one_image, tmp_path)):
        torch.testing.assert_close(got, expected[rank::2])


def norm_far_from_zero() -> Tensor:
    torch.manual_seed(0)
    network = distributed.synchronize_batch_norms(nn.Sequential(nn.BatchNorm2d(1)), "cpu")
    values = torch.randn(8, 1, 16, 16) * 0.1 + 100
    return network(values[distributed.rank() :: 2]).detach()


def test_batch_norms_on_the_cpu_stay_exact_if_the_mean_is_large(tmp_path: Path) -> None:
    torch.manual_seed(0)
    values = torch.randn(8, 1, 16, 16) * 0.1 + 100
    expected = nn.BatchNorm2d(1).double()(values.double())
    for rank, got in enumerate(together(norm_far_from_zero, tmp_path)):
        torch.testing.assert_close(got.double(), expected[rank::2].detach(), rtol=0, atol=0.01)


def take_steps() -> dict[str, Tensor]:
    """12 steps on 35 images in batches of 8, 8, 8 and 11, so that shares differ; in float64, as rounding grows.

    In float32 a rounding that turns a ReLU or a maximum the other way makes a jump that has nothing to do with us.
    """
    pixels = load_splits(Path(os.environ["IMAGES_OF_STEPS"]))[0]
    student = make_student()
    distributed.synchronize_batch_norms(student, "cpu")
    student.to(torch.float64, memory_format=torch.channels_last)
    plan, views = make_plan(batch_size=8, weight_decay=1e-3, ema=0.8), make_views(pixels, mixup=0.3)
    training = Training(student, learn_from_labels(0.1), views, pixels, plan)
    optimization = Optimization.of(student, plan.section, 12)
    stepper = Stepper(training, optimization)
    results = {}
    for epoch in range(3):
        order = np.random.default_rng(epoch).permutation(35)
        for number, indices in enumerate(batches(order, 8, 4)):
            loss, hits = stepper.take(indices, epoch, 32)
            results[f"{epoch}.{number}"] = torch.stack([distributed.add_up(loss), distributed.add_up(hits)])
    results |= {f"gradient of {name}": p.grad.clone() for name, p in student.named_parameters()}
    assert optimization.average is not None
    averaged = {f"average {name}": value for name, value in optimization.average.state_dict().items()}
    return results | student.state_dict() | averaged


def test_steps_are_those_of_the_whole_batch_though_shares_differ(
    class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGES_OF_STEPS", str(class_folders))
    expected = take_steps()
    assert len(expected) > 100
    for got in together(take_steps, tmp_path):
        assert list(got) == list(expected)
        for name, value in expected.items():
            torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def compute_logits_of_few() -> list[Tensor]:
    pixels, network = load_splits(Path(os.environ["IMAGES_OF_STEPS"]))[1], make_student().classifier
    logits = []
    for count in (1, 2, 7):
        parts = {name: getattr(pixels, name)[:count] for name in ("names", "labels", "heights", "widths", "starts")}
        logits.append(compute_logits(network, dataclasses.replace(pixels, **parts), "fp32", "cpu").clone())
    return logits


def test_logits_of_a_split_are_complete_in_each_process_though_it_is_smaller_than_they_are_many(
    class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGES_OF_STEPS", str(class_folders))
    expected = compute_logits_of_few()
    assert [len(logits) for logits in expected] == [1, 2, 7]
    for got in together(compute_logits_of_few, tmp_path):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_every_batch_has_two_images_for_each_process() -> None:
    for count in range(4, 40):
        sizes = [len(batch) for batch in batches(np.arange(count), 8, 4)]
        assert sum(sizes) == count
        assert min(sizes) >= 4


# The command under torchrun.


def torchrun(*arguments: str | Path, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*TORCHRUN, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def finish(process: "subprocess.Popen[str]", code: int = 0) -> tuple[str, str]:
    try:
        out, err = process.communicate(timeout=HANG_S)
    finally:
        process.kill()
    assert process.returncode == code, f"exit {process.returncode}\n{out}\n{err}"
    return out, err


@pytest.fixture(scope="module")
def odd_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """33 training and 9 validation images: odd numbers of both, and with batches of 8 a last one of 1."""
    return make_class_folders(tmp_path_factory.mktemp("odd"), (11, 3, 2))


TWO = [
    *(*SMALL, "--set", "distill.teacher_views=2", "--set", "distill.control=true", "--set", "distill.mixup=0.2"),
    # few and small steps: rounding grows (see take_steps)
    *("--set", "distill.learning_rate=0.05", "--set", "distill.schedule=constant", "--set", "distill.epochs=2"),
]


@pytest.mark.slow
def test_two_processes_reach_the_result_of_one(toolkit: ToolkitCommands, odd_folders: Path, tmp_path: Path) -> None:
    caches = [tmp_path / "cache 1", tmp_path / "cache 2"]
    flags = ["distill", "--data", odd_folders, *TWO]
    toolkit.start(*flags, "--out", tmp_path / "one", environment={"KD_TOOLKIT_CACHE": str(caches[0])}).end()
    two = tmp_path / "two"
    two.mkdir()
    # one and the same teacher, so that what is compared is the student and the store
    (two / "teacher.safetensors").write_bytes((tmp_path / "one" / "teacher.safetensors").read_bytes())
    out, err = finish(torchrun(*flags, "--out", two, "--json", KD_TOOLKIT_CACHE=str(caches[1])))

    assert "Warning" not in err, err
    assert json.loads(out)["role"] == "student", "one JSON document: one process speaks"
    assert len(re.findall(r"^student +2/2 ", err, re.MULTILINE)) == 1
    assert len(re.findall(r"^teacher logits: 2 views of 33 images to compute once", err, re.MULTILINE)) == 1
    fresh = make_student().classifier.network.state_dict()
    for role in ("student", "control"):
        ours, theirs = (load_file(folder / f"{role}.safetensors") for folder in (two, tmp_path / "one"))
        assert list(ours) == list(theirs)
        assert (theirs["fc.0.weight"] - fresh["fc.0.weight"]).abs().max() > 0.005, "it did learn"
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-3, msg=lambda m, n=name: f"{n}: {m}")
    expected = [line for line in read_lines(tmp_path / "one" / "metrics.jsonl") if line["stage"] != "teacher"]
    lines = read_lines(two / "metrics.jsonl")
    assert [(line["stage"], line["epoch"]) for line in lines] == [(line["stage"], line["epoch"]) for line in expected]
    for ours, theirs in zip(lines, expected, strict=True):
        for figure in ("train_loss", "valid_loss", "learning_rate"):
            assert ours[figure] == pytest.approx(theirs[figure], rel=0.02), figure
        assert ours["train_accuracy"] == pytest.approx(theirs["train_accuracy"], abs=3.1 / 33), (
            "a few images are near the border"
        )
        assert ours["valid_accuracy"] == pytest.approx(theirs["valid_accuracy"], abs=1.1 / 9)
    stores = [next((cache / "logits").iterdir()) for cache in caches]
    assert stores[0].name == stores[1].name
    one, other = (np.fromfile(store, np.float32).reshape(9 + 2 * 33, 3) for store in stores)
    np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-4)


EPOCHS = 4


def hold_in_the_second_epoch(folder: Path) -> str:
    """A path for imports by which both processes wait there, in the fourth step, until they are asked to stop."""
    folder.mkdir()
    code = "import os\nif 'RANK' in os.environ:\n    import distill_samples\n    distill_samples.hold_training(4)\n"
    (folder / "sitecustomize.py").write_text(code)
    return os.pathsep.join([str(folder), *sys.path])


@pytest.mark.slow
def test_sigterm_to_torchrun_saves_and_two_processes_or_one_go_on(
    toolkit: ToolkitCommands, class_folders: Path, tmp_path: Path
) -> None:
    flags = ["teacher", "--data", class_folders, *SMALL, "--set", f"teacher.epochs={EPOCHS}"]
    metrics = tmp_path / "m" / "metrics.jsonl"
    process = torchrun(*flags, "--out", tmp_path / "m", PYTHONPATH=hold_in_the_second_epoch(tmp_path / "patches"))
    end = time.monotonic() + HANG_S
    while not metrics.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    err = process.communicate(timeout=HANG_S)[1]
    assert "toolkit/cli/" not in err, f"a traceback that is not torchrun's own:\n{err}"
    stopped = re.findall(r"^stopped in teacher, .*, and saved; go on with: (torchrun .*)$", err, re.MULTILINE)
    assert len(stopped) == 1, err
    assert stopped[0].startswith("torchrun --nproc-per-node 2 -m toolkit teacher ")
    assert stopped[0].endswith(" --resume")
    state = torch.load(tmp_path / "m" / "checkpoint.pt", weights_only=True)
    done = state["progress"]["epoch"]
    assert 1 <= done < EPOCHS

    (tmp_path / "alone").mkdir()
    for path in (tmp_path / "m").iterdir():
        (tmp_path / "alone" / path.name).write_bytes(path.read_bytes())
    alone = toolkit.run(*flags, "--out", tmp_path / "alone", "--resume")
    pair = start_two(toolkit, [*flags, "--out", tmp_path / "m", "--resume"])
    two, other = (running.end(timeout_s=HANG_S) for running in pair)
    for said in (alone, two):
        assert len(re.findall(rf"^teacher: resuming at epoch {done + 1}, ", said, re.MULTILINE)) == 1
        assert "images at a time" not in said
    assert (two.count("teacher: validation accuracy"), other) == (1, "")
    for folder in ("m", "alone"):
        assert [line["epoch"] for line in read_lines(tmp_path / folder / "metrics.jsonl")] == list(range(EPOCHS))
        assert not (tmp_path / folder / "checkpoint.pt").exists()


def wait_for_torchrun() -> None:
    ending.OTHERS_WAIT_S = HANG_S


def test_work_that_torchrun_cannot_share_is_refused_in_one_line(
    toolkit: ToolkitCommands, class_folders: Path, tmp_path: Path
) -> None:
    command = ["run", "--data", class_folders, "--out", tmp_path / "m"]
    main, other = start_two(toolkit, command, other=wait_for_torchrun)
    assert main.end(1, timeout_s=HANG_S).splitlines() == [
        "error: toolkit run works in one process, and torchrun started several; use torchrun for training alone:"
        " torchrun ... -m toolkit distill; then toolkit export and toolkit bench"
    ]
    other.send(signal.SIGTERM)  # as torchrun does
    other.process.join(HANG_S)
    assert other.said == ""
    assert not (tmp_path / "m").exists()
