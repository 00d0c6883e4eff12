"""The notebook's loop against this engine, in turns; the last line printed is one JSON object.

    python benchmarks/distill_speed.py --data DIR --teacher FILE                images per second at equal resolution
    python benchmarks/distill_speed.py --data DIR --teacher FILE --epochs 15    and time to the notebook's best accuracy

Speed: both train on the same images at the same size with the same teacher, the engine with the teacher live and with
stored logits. The notebook's loop runs in a process of its own (notebook_loop.py), as a notebook does, and waits while
the engine trains. Rounds alternate, the first one warms up, medians and ratios are of the others. Only the training
pass is timed, as the notebook has it; the images are in memory for both. The live teacher answers in the arithmetic
that `toolkit distill` would choose for such a training of 15 epochs.

Accuracy (--epochs): the notebook's loop for so many epochs, then `toolkit distill` with --recipe, as many epochs, from
nothing: decoding the images, choosing the precision and filling the store of teacher logits count. Its time to the
notebook's best validation accuracy is that of the first epoch that reaches it.

--teacher is a state dict of torchvision's resnet18 for images in 0..1; without it the teacher is random, which is
enough for speed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from limits import ELEMENT_BYTES, count_forward_flop, measure_limits
from notebook_loop import Epoch, subset
from torch import nn

from toolkit import console
from toolkit.data.batches import TrainingViews
from toolkit.data.dataset import Dataset
from toolkit.data.pixels import load_pixels
from toolkit.data.preprocess import Preprocess
from toolkit.data.sources import load_dataset
from toolkit.distill.checkpoint import Checkpoint
from toolkit.distill.features import TappedNetwork
from toolkit.distill.logit_store import LogitStore
from toolkit.distill.objective import learn_from_teacher
from toolkit.distill.plan import Plan
from toolkit.distill.precision import NetworkStep, choose_precision
from toolkit.distill.quantized import choose_teacher
from toolkit.distill.teachers import LiveTeacher, Teacher
from toolkit.distill.trainer import Records, train
from toolkit.distill.training import Training
from toolkit.machine.devices import keep_freed_memory, pick_device
from toolkit.machine.hardware import describe_hardware, describe_versions
from toolkit.machine.limits import available_cores
from toolkit.networks import registry
from toolkit.networks.classifier import Classifier
from toolkit.networks.tensor_files import read_tensors
from toolkit.networks.weights import load_into
from toolkit.pipeline import distill_student, make_teacher
from toolkit.recipe import Recipe
from toolkit.settings import Mix
from toolkit.stage_setup import prepare_training

BATCH_SIZE = 64
IMAGES, GPU_IMAGES = 1024, 16_384
"""per epoch of the engine: with fewer, the beginning of the epoch is most of what is timed on a GPU"""
EPOCHS = 15
"""epochs of the training that this stands for: the live teacher's arithmetic is chosen for all of them"""
NO_NORMALISATION = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def main() -> None:
    options = _parse()
    torch.set_num_threads(available_cores())
    keep_freed_memory()
    device = pick_device(options.device)
    folder = Path(tempfile.mkdtemp(prefix="distill_speed."))
    os.environ["KD_TOOLKIT_CACHE"] = str(folder / "cache")
    recipe = Recipe().with_overrides(
        [
            *(f"data.source={json.dumps(str(options.data))}", f"data.image_size={options.size}", "data.resize=0"),
            *("data.mean=[0, 0, 0]", "data.std=[1, 1, 1]", "data.rotation_degrees=15.0"),
            *(f"distill.batch_size={BATCH_SIZE}", "distill.epochs=1"),
        ]
    )
    dataset = load_dataset(recipe.data)
    options.images = options.images or default_images(device, len(dataset.train))
    teacher = registry.build("resnet18", len(dataset.classes))
    if options.teacher:
        load_into(teacher, read_tensors(options.teacher), options.teacher, len(dataset.classes))
    result: dict[str, Any] = {"size_px": options.size, "device": device, "batch_size": BATCH_SIZE}
    result |= measure_speed(options, recipe, dataset, teacher, device, folder)
    if options.epochs:
        result |= measure_accuracy(options, teacher, device, folder)
    versions = describe_versions()
    result |= {"hardware": describe_hardware(device), "torch": versions["torch"], "toolkit": versions["toolkit"]}
    sys.stdout.write(json.dumps(result) + "\n")


def default_images(device: str, available: int) -> int:
    return IMAGES if device == "cpu" else min(GPU_IMAGES, available)


def measure_speed(
    options: argparse.Namespace, recipe: Recipe, dataset: Dataset, teacher: nn.Module, device: str, folder: Path
) -> dict[str, Any]:
    """Training images per second of the notebook, the engine with a live teacher, and with stored logits, in turns."""
    train = subset(dataset.train, min(options.images, len(dataset.train)))
    engine = EngineSpeed(recipe, replace(dataset, train=train, valid=subset(dataset.valid, 8)), teacher, device, folder)
    notebook = NotebookProcess(options, device, epochs=options.rounds + 1, images=options.images // 4)
    contestants: dict[str, Callable[[], float]] = {
        "notebook": lambda: notebook.train_epoch().train_img_s,
        "live": lambda: engine.images_per_second(engine.live),
        "stored": lambda: engine.images_per_second(engine.stored),
    }
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(options.rounds + 1):
        for name, contest in contestants.items():
            speed = contest()
            console.say(f"round {number} of {options.rounds}: {name} {speed:.1f} img/s{'' if number else ' (warm-up)'}")
            if number:
                speeds[name].append(speed)
    pairs = {
        name: [ours / theirs for ours, theirs in zip(speeds[name], speeds["notebook"], strict=True)]
        for name in ("live", "stored")
    }
    student = registry.build("depthwise", len(dataset.classes))
    teacher_flop = count_forward_flop(teacher.cpu(), options.size)
    limits = measure_limits(student, options.size, device, engine.precision)
    # a vector register holds twice as many numbers of half the size, so that the teacher's products take half as long
    teacher_cost = ELEMENT_BYTES[engine.teacher_precision] / ELEMENT_BYTES[engine.precision]
    with_teacher = replace(limits, flop=limits.flop + teacher_cost * teacher_flop)
    return {
        "precision": engine.precision,
        "teacher_precision": engine.teacher_precision,
        "rounds": options.rounds,
        "train_img_s": {name: _spread(values) for name, values in speeds.items()},
        "times_notebook": {name: _spread(values) for name, values in pairs.items()},
        "gflop_an_image": {"stored": limits.flop / 1e9, "live": (limits.flop + teacher_flop) / 1e9},
        "mb_an_image_at_least": limits.bytes / 1e6,
        "measured_peak": {"tflop_s": limits.peak_flop_s / 1e12, "gb_s": limits.peak_bytes_s / 1e9},
        "share_of_limit": {
            "stored": statistics.median(speeds["stored"]) / limits.images_s,
            "live": statistics.median(speeds["live"]) / with_teacher.images_s,
        },
    }


class NotebookProcess:
    """The notebook's loop in a process of its own: an epoch when asked, on `images` training images (0: all)."""

    def __init__(self, options: argparse.Namespace, device: str, *, epochs: int, images: int) -> None:
        script = str(Path(__file__).with_name("notebook_loop.py"))
        flags = {"--data": options.data, "--size": options.size, "--images": images, "--epochs": epochs}
        teacher = [f"--teacher={options.teacher}"] if options.teacher else []
        command = [sys.executable, script, "--wait", f"--device={device}", *teacher]
        self._process = subprocess.Popen(
            [*command, *(f"{flag}={value}" for flag, value in flags.items())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )

    def train_epoch(self) -> Epoch:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the notebook's loop ended early, exit code {self._process.wait()}")
        return Epoch(**json.loads(line))


class EngineSpeed:
    """One epoch of this engine, again and again, with a live teacher or with stored logits."""

    def __init__(self, recipe: Recipe, dataset: Dataset, teacher: nn.Module, device: str, folder: Path) -> None:
        self._recipe, self._device, self._folder = recipe, device, folder
        preprocess = Preprocess.from_recipe(recipe.data)
        train_pixels, self._valid = (load_pixels(dataset, split, preprocess) for split in ("train", "valid"))
        self._num_classes = len(dataset.classes)
        self._views = TrainingViews(train_pixels, recipe.data, self._num_classes, seed=0, mix=Mix(), device=device)
        frozen = Classifier(teacher, *NO_NORMALISATION).requires_grad_(False)
        size = (BATCH_SIZE, recipe.data.image_size, device)
        self.precision = choose_precision("auto", NetworkStep(self._new_student().classifier, *size))
        answering, self.teacher_precision = choose_teacher(
            recipe.with_overrides([f"distill.epochs={EPOCHS}"]),
            lambda: choose_precision("auto", NetworkStep(frozen, *size, training=False)),
            frozen,
            self._views,
        )
        tapped, views, arithmetic = TappedNetwork(answering), self._views, self.teacher_precision
        self.live = LiveTeacher(tapped, views, self._valid, arithmetic)
        store = LogitStore("teacher", dataset.sha256, views, self._valid, num_views=1)
        self.stored = store.open(lambda: self.live, arithmetic)

    def images_per_second(self, teacher: Teacher) -> float:
        plan = Plan(
            role="student",
            section=self._recipe.distill,
            image_size=self._recipe.data.image_size,
            precision=self.precision,
            seed=0,
            device=self._device,
        )
        records = Records(self._folder / "metrics.jsonl", Checkpoint(self._folder / "checkpoint.pt", {"stage": "x"}))
        objective = learn_from_teacher(self._recipe.distill)
        training = Training(self._new_student(), objective, self._views, self._valid, plan, teacher)
        return train(training, records).train_img_s

    def _new_student(self) -> TappedNetwork:
        torch.manual_seed(0)
        return TappedNetwork(Classifier(registry.build("depthwise", self._num_classes), *NO_NORMALISATION))


def measure_accuracy(options: argparse.Namespace, teacher: nn.Module, device: str, folder: Path) -> dict[str, Any]:
    """Best validation accuracies, and how long each took to the notebook's."""
    notebook = NotebookProcess(options, device, epochs=options.epochs, images=0)
    epochs = []
    for _ in range(options.epochs):
        epochs.append(epoch := notebook.train_epoch())
        console.say(
            f"notebook {epoch.epoch + 1}/{options.epochs}: valid acc {epoch.valid_accuracy:.4f}, {epoch.seconds:.0f} s"
        )
    best = max(epochs, key=lambda epoch: epoch.valid_accuracy)
    weights = folder / "teacher.pt"
    torch.save({name: value.cpu() for name, value in teacher.state_dict().items()}, weights)
    start = time.perf_counter()
    overrides = [f"teacher.weights={json.dumps(str(weights))}", f"distill.epochs={options.epochs}"]
    job = prepare_training(options.recipe, str(options.data), folder / "model", overrides, device=device)
    make_teacher(job)
    distill_student(job)
    seconds = time.perf_counter() - start
    lines = [json.loads(line) for line in job.model_dir.metrics.read_text(encoding="utf-8").splitlines()]
    before_training_s = seconds - lines[-1]["seconds"]
    reached = next((line for line in lines if line["valid_accuracy"] >= best.valid_accuracy), None)
    ours_s = before_training_s + reached["seconds"] if reached else None
    return {
        "epochs": options.epochs,
        "recipe": options.recipe,
        "best_valid_accuracy": {
            "notebook": best.valid_accuracy,
            "toolkit": max(line["valid_accuracy"] for line in lines),
        },
        "all_epochs_s": {"notebook": epochs[-1].seconds, "toolkit": seconds},
        "seconds_to_notebook_best": {"notebook": best.seconds, "toolkit": ours_s},
        "times_faster_to_notebook_best": best.seconds / ours_s if ours_s else None,
    }


def _spread(values: list[float]) -> dict[str, float]:
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a directory of images that toolkit data can read")
    parser.add_argument("--teacher", type=Path, help="a resnet18 state dict for images in 0..1")
    parser.add_argument("--size", type=int, default=256, help="px, of both at the speed measurement")
    parser.add_argument(
        "--images",
        type=int,
        help="for the engine at the speed measurement, a quarter for the notebook; 1,024, or 16,384 on a GPU",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=0, help="of the accuracy measurement, 0 leaves it out")
    parser.add_argument("--recipe", default="food11-fast", help="of the accuracy measurement")
    parser.add_argument("--device", default="auto")
    return parser.parse_args()


if __name__ == "__main__":
    main()
