"""Samples for the tests of training: a small job in this process, and `toolkit` as a command in another one."""

import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from conftest import free_port
from toolkit_process import other_processes
from torch import Tensor, nn

from toolkit.data.batches import TrainingViews
from toolkit.data.pixels import Pixels, load_pixels
from toolkit.data.preprocess import Preprocess
from toolkit.data.sources import load_dataset
from toolkit.distill.checkpoint import Checkpoint, StepState, TrainingProgress, TrainingState
from toolkit.distill.features import TappedNetwork
from toolkit.distill.logit_store import LogitStore, StoredTeacher
from toolkit.distill.plan import Plan
from toolkit.distill.precision import Arithmetic
from toolkit.distill.step import Stepper
from toolkit.distill.teachers import LiveTeacher
from toolkit.distill.trainer import Records
from toolkit.networks.classifier import Classifier
from toolkit.networks.depthwise import DepthwiseStudent
from toolkit.settings import DataRecipe, DistillRecipe, Mix

DATA = DataRecipe(image_size=32, resize=0, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
SETTINGS = {"stage": "student", "recipe_sha256": "r", "dataset_sha256": "d"}
OF_PLAN = {"role", "seed", "teacher_views"}

Splits = tuple[Pixels, Pixels]
"""Training and validation images."""


def load_splits(class_folders: Path, data: DataRecipe = DATA) -> Splits:
    data = data.model_copy(update={"source": str(class_folders)})
    dataset, preprocess = load_dataset(data), Preprocess.from_recipe(data)
    return load_pixels(dataset, "train", preprocess), load_pixels(dataset, "valid", preprocess)


def make_plan(**settings: Any) -> Plan:
    """A plan of few steps; `settings` are of [distill], or stage, seed and teacher_views of the plan."""
    of_plan = {"role": "student", "seed": 0} | {key: settings.pop(key) for key in OF_PLAN & set(settings)}
    small = {"epochs": 4, "batch_size": 6, "learning_rate": 0.05, "schedule": "constant", "warm_up": 0.0}
    section = DistillRecipe.model_validate(small | settings)
    return Plan(section=section, image_size=DATA.image_size, precision="fp32", device="cpu", **of_plan)


def make_views(
    pixels: Pixels, data: DataRecipe = DATA, *, mixup: float = 0.0, cutmix: float = 0.0, seed: int = 0
) -> TrainingViews:
    return TrainingViews(pixels, data, num_classes=3, seed=seed, mix=Mix(mixup, cutmix), device="cpu")


def make_state(epoch: int = 0, learner: dict[str, Tensor] | None = None) -> TrainingState:
    """A possible checkpoint of a training that has `epoch` epochs behind it."""
    steps = StepState(learner or {}, {}, {}, None, None)
    progress, rng = TrainingProgress(epoch=epoch), torch.get_rng_state()
    return TrainingState(steps, progress, 0.1, [], None, {}, rng, None, "fp32", "fp32")


def make_records(folder: Path, state: TrainingState | None = None) -> Records:
    return Records(folder / "metrics.jsonl", Checkpoint(folder / "checkpoint.pt", SETTINGS), state)


def tapped(network: nn.Module, mean: float = 0.5, std: float = 0.25) -> TappedNetwork:
    return TappedNetwork(Classifier(network, (mean,) * 3, (std,) * 3), ())


def make_student(seed: int = 0) -> TappedNetwork:
    torch.manual_seed(seed)
    return tapped(DepthwiseStudent(3, base=4))


def open_store(store: LogitStore, network: TappedNetwork, precision: Arithmetic = "fp32") -> StoredTeacher:
    """The store, filled by a live teacher if it has to be."""
    assert store.valid is not None
    valid = store.valid
    return store.open(lambda: LiveTeacher(network, store.views, valid, precision), precision)


class Recorder(nn.Module):
    """A linear layer over mean colours, which remembers the images that it was shown; it has no batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []
        self.layer = nn.Linear(3, 3)

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images.detach().clone())
        logits: Tensor = self.layer(images.mean((2, 3)))
        return logits


def flatten(state_dict: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.double().flatten() for value in state_dict.values()])


def read_lines(metrics_file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in metrics_file.read_text().splitlines()]


def differences(one: Any, other: Any, place: str = "") -> Iterator[str]:
    """The values of two checkpoints that are not the same to the bit, without times and speeds, which never are."""
    if isinstance(one, Tensor):
        if not torch.equal(one, other):
            yield place
    elif isinstance(one, dict):
        if list(one) != list(other):
            yield f"{place}: {list(one)} and {list(other)}"
        for key in set(one) & set(other) - {"seconds", "epoch_s", "training_s", "train_img_s"}:
            yield from differences(one[key], other[key], f"{place}.{key}")
    elif isinstance(one, list | tuple):
        if len(one) != len(other):
            yield f"{place}: {len(one)} and {len(other)} items"
        for number, (mine, theirs) in enumerate(zip(one, other, strict=False)):
            yield from differences(mine, theirs, f"{place}[{number}]")
    elif one != other:
        yield f"{place}: {one!r} and {other!r}"


SMALL = [
    *("--device", "cpu", "--set", "data.image_size=32", "--set", "data.resize=36", "--set", "training.precision=fp32"),
    *("--set", "teacher.architecture=depthwise", "--set", "teacher.epochs=3", "--set", "teacher.batch_size=12"),
    *("--set", "distill.epochs=4", "--set", "distill.batch_size=8", "--set", "student.base=4"),
    *("--set", "teacher.base=4"),
]
"""Flags of a `toolkit distill` that takes a second."""


def hold_training(step: int) -> None:
    """From its `step`th step on (counted from 1) this process waits until a signal has asked it to stop.

    So that no signal comes too late, however much faster than the test a training is; for ToolkitCommands.start.
    """
    take, count = Stepper.take, itertools.count(1)

    def wait_and_take(self: Stepper, *arguments: Any) -> Any:
        if next(count) >= step:
            while not signal.getsignal(signal.SIGTERM).signal_number:  # type: ignore[union-attr]
                time.sleep(0.01)
        return take(self, *arguments)

    Stepper.take = wait_and_take  # type: ignore[method-assign]


@dataclass
class Running:
    """A `toolkit` that runs in another process, on one thread; `log` has its stdout and stderr."""

    process: BaseProcess
    log: Path

    @property
    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def wait_for(self, *texts: str, timeout_s: float = 600) -> None:
        """Wait until it has said one of `texts`."""
        end = time.monotonic() + timeout_s
        while not any(text in self.said for text in texts):
            assert self.process.is_alive(), f"it ended before it said {texts}:\n{self.said}"
            assert time.monotonic() < end, f"it never said {texts}:\n{self.said}"
            time.sleep(0.005)

    def send(self, signal_number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, signal_number)

    def end(self, code: int = 0, timeout_s: float = 600) -> str:
        """Wait for its end; everything it said."""
        self.process.join(timeout_s)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        assert self.process.exitcode == code, f"exit {self.process.exitcode}\n{self.said}"
        return self.said


class ToolkitCommands:
    """Starts `toolkit` in processes of their own, whose output goes to files in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._context = other_processes()
        self._folder = folder
        self._count = 0
        self.run("--version")  # the process that others are forked from takes seconds to start

    def start(
        self,
        *arguments: str | Path,
        save_seconds: float | None = None,
        environment: dict[str, str] | None = None,
        prepare: Callable[[], None] | None = None,
    ) -> Running:
        """`prepare`, a function of a module, runs in that process before the command."""
        self._count += 1
        log = self._folder / f"{self._count}.log"
        words = [str(argument) for argument in arguments]
        settings = {"KD_TOOLKIT_CACHE": os.environ["KD_TOOLKIT_CACHE"]} | (environment or {})
        process = self._context.Process(target=_be_toolkit, args=(words, log, save_seconds, settings, prepare))
        process.start()
        return Running(process, log)

    def run(self, *arguments: str | Path, code: int = 0) -> str:
        """Everything that such a command says until its end."""
        return self.start(*arguments).end(code)


def start_two(
    toolkit: ToolkitCommands,
    command: Sequence[str | Path],
    main: Callable[[], None] | None = None,
    other: Callable[[], None] | None = None,
) -> tuple[Running, Running]:
    """Two processes of one command as torchrun starts them, each prepared; but a signal can go to either alone."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    both = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", **meeting}
    ranks = [both | {"RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]
    return (
        toolkit.start(*command, environment=ranks[0], prepare=main),
        toolkit.start(*command, environment=ranks[1], prepare=other),
    )


def _be_toolkit(
    arguments: list[str],
    log: Path,
    save_seconds: float | None,
    environment: dict[str, str],
    prepare: Callable[[], None] | None,
) -> None:
    os.environ.update(environment)
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite that runs in the background has it ignored
    from toolkit.cli import ending
    from toolkit.distill import trainer
    from toolkit.machine import limits

    limits.available_cores = lambda: 1  # one thread, so that results repeat to the bit
    if save_seconds is not None:
        trainer.SAVE_SECONDS = save_seconds
    if prepare is not None:
        prepare()
    sys.argv = ["toolkit", *arguments]
    ending.main()
