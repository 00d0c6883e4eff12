"""Training on a GPU: the CPU's results, and nothing lost. The CPU runs the same bodies, which proves them."""

import contextlib
import gc
import math
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DEVICES
from distill_samples import DATA, Splits, load_splits, make_plan, make_records, make_student, open_store, read_lines
from torch import Tensor, nn

from toolkit import console
from toolkit.data.batches import TrainingViews
from toolkit.distill.features import TappedNetwork
from toolkit.distill.logit_store import LogitStore
from toolkit.distill.objective import NetworkOutput, learn_from_labels, learn_from_teacher
from toolkit.distill.optimization import Optimization
from toolkit.distill.plan import Plan
from toolkit.distill.precision import FloatArithmetic, autocast
from toolkit.distill.rehearsal import Rehearsal
from toolkit.distill.step import Stepper
from toolkit.distill.teachers import LiveTeacher
from toolkit.distill.trainer import train
from toolkit.distill.training import Training
from toolkit.errors import Interrupted
from toolkit.machine.devices import fp32_products_in
from toolkit.networks import registry
from toolkit.networks.classifier import Classifier
from toolkit.networks.depthwise import DepthwiseStudent
from toolkit.networks.small_maps import place
from toolkit.recipe import Recipe
from toolkit.settings import DataRecipe, Mix

METHODS = ("kd", "dkd", "dist", "hard", "fitnets", "attention", "similarity")
SIDE, BATCH, CLASSES = 64, 8, 10
ON_ONE_DEVICE = 1e-6
BETWEEN_DEVICES = 1e-3
"""relative; sums are taken in another order. Between AVX2 and AVX-512 it was 3e-6 at most."""
BETWEEN_PRECISIONS = {"logits": 0.05, "loss": 0.05, "gradient": 0.5}
"""relative; bfloat16 has 8 bits, and a gradient is a sum of numbers that nearly cancel: 0.34 on a CPU"""


@pytest.fixture(scope="module")
def splits(class_folders: Path) -> Splits:
    return load_splits(class_folders)


def make_plan_on(device: str, **settings: Any) -> Plan:
    plan = make_plan(**settings)
    return Plan(plan.role, plan.section, plan.image_size, "fp32", plan.seed, device, teacher_views=plan.teacher_views)


def make_views_on(device: str, splits: Splits, data: DataRecipe = DATA, mixup: float = 0.0) -> TrainingViews:
    return TrainingViews(splits[0], data, 3, seed=3, mix=Mix(mixup), device=device)


# Views.


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("padding_mode", ["symmetric", "constant"])
@pytest.mark.parametrize(("rotation", "side"), [(0.0, 32), (15.0, 32), (0.0, 16), (15.0, 24)])
def test_views_and_targets_are_the_cpus(
    splits: Splits, device: str, padding_mode: str, rotation: float, side: int
) -> None:
    changes = {"rotation_degrees": rotation, "crop_padding": 4, "padding_mode": padding_mode}
    data = DataRecipe.model_validate(DATA.model_dump() | changes)
    here, there = (make_views_on(where, splits, data, mixup=0.4) for where in ("cpu", device))
    for view, indices in ((0, np.arange(12)), (2, np.array([35, 3, 3, 0]))):
        found = there.render(indices, view, side)
        assert found.device.type == torch.device(device).type
        assert found.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(found.cpu(), here.render(indices, view, side), rtol=0, atol=1e-3)
        assert torch.equal(there.labels(indices).cpu(), here.labels(indices))
        torch.testing.assert_close(there.targets(indices, view).cpu(), here.targets(indices, view), rtol=0, atol=1e-6)


# Computations.


Step = dict[str, Tensor]


def compute_step(method: str, device: str, precision: FloatArithmetic) -> Step:
    """Logits of both networks, loss and gradients of one batch."""
    recipe = Recipe().with_overrides([f"distill.method={method}"])
    torch.manual_seed(0)
    data = recipe.data
    student, teacher = (
        Classifier(registry.build(name, CLASSES), data.mean, data.std) for name in ("depthwise", "resnet18")
    )
    if recipe.distill.feature_method:
        channels = [128] if method == "fitnets" else None
        learner = TappedNetwork(student, ("cnn.4",), project_to=channels, image_size=SIDE)
        oracle = TappedNetwork(teacher, ("layer2",))
    else:
        learner, oracle = TappedNetwork(student), TappedNetwork(teacher)
    images, labels = torch.rand(BATCH, 3, SIDE, SIDE), torch.arange(BATCH) % CLASSES
    place(learner, device)
    place(oracle, device)
    given = images.to(device).contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), autocast(device, precision):
        logits, features = oracle.eval()(given)
    taught = NetworkOutput(logits.float(), features)
    with autocast(device, precision):
        logits, features = learner.train()(given)
    loss = learn_from_teacher(recipe.distill)(NetworkOutput(logits.float(), features), labels.to(device), taught)
    loss.backward()
    gradients = [parameter.grad.flatten() for parameter in learner.parameters() if parameter.grad is not None]
    assert gradients
    both = torch.cat((logits.detach().float(), taught.logits))
    return {"logits": both.cpu(), "loss": loss.detach().cpu(), "gradient": torch.cat(gradients).cpu()}


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", METHODS)
def test_logits_loss_and_gradients_are_the_cpus(device: str, method: str) -> None:
    with fp32_products_in("ieee"):
        found = compute_step(method, device, "fp32")
    expected = compute_step(method, "cpu", "fp32")
    bound = ON_ONE_DEVICE if device == "cpu" else BETWEEN_DEVICES
    assert {name: relative(found[name], expected[name]) for name in expected} == {
        name: pytest.approx(0, abs=bound) for name in expected
    }
    half = compute_step(method, device, "bf16")
    for name, most in BETWEEN_PRECISIONS.items():
        assert relative(half[name], expected[name]) < most, name


# A training from its beginning to its end.


@pytest.mark.parametrize("device", DEVICES)
def test_stored_answers_train_as_a_live_teacher_does(
    splits: Splits, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KD_TOOLKIT_CACHE", str(tmp_path / "cache"))
    losses = []
    for how in ("live", "stored"):
        (tmp_path / how).mkdir()
        plan = make_plan_on(device, epochs=2, batch_size=8, teacher_views=2)
        views, teacher = make_views_on(device, splits), make_student(seed=5)
        if how == "live":
            answering: Any = LiveTeacher(teacher, views, splits[1], "fp32")
        else:
            answering = open_store(LogitStore("t", "d", views, splits[1], 2), teacher)
        with fp32_products_in("ieee"):
            objective = learn_from_teacher(plan.section)
            training = Training(make_student(), objective, views, splits[1], plan, answering)
            train(training, make_records(tmp_path / how))
        losses.append([line["train_loss"] for line in read_lines(tmp_path / how / "metrics.jsonl")])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


@contextlib.contextmanager
def stopping_after(steps: int) -> Iterator[None]:
    """Ctrl-C for this process after so many steps of training, and one only."""
    taken = 0

    @contextlib.contextmanager
    def progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
        def advance(images: int) -> None:
            nonlocal taken
            taken += 1
            if taken == steps:
                signal.raise_signal(signal.SIGINT)

        yield advance

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(console, "progress", progress)
        yield
    assert taken >= steps


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("stop", [3, 5, 7])
def test_a_training_that_was_stopped_goes_on_to_the_same_losses(
    splits: Splits, device: str, stop: int, tmp_path: Path
) -> None:
    """36 images in batches of 8 are 5 steps per epoch."""

    def go_on(folder: Path) -> list[dict[str, Any]]:
        plan = make_plan_on(device, epochs=3, batch_size=8, schedule="one-cycle", warm_up=0.25, ema=0.9)
        state = make_records(folder).checkpoint.open(resume=True, force=False)
        objective, views = learn_from_labels(0.1), make_views_on(device, splits, mixup=0.3)
        with fp32_products_in("ieee"):
            train(Training(make_student(), objective, views, splits[1], plan), make_records(folder, state))
        return read_lines(folder / "metrics.jsonl")

    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    with stopping_after(stop), pytest.raises(Interrupted):
        go_on(tmp_path / "stopped")
    found, expected = go_on(tmp_path / "stopped"), go_on(tmp_path / "whole")
    assert [line["epoch"] for line in found] == [0, 1, 2]
    for name in ("train_loss", "valid_loss"):
        bound = ON_ONE_DEVICE if device == "cpu" else BETWEEN_DEVICES
        assert [line[name] for line in found] == pytest.approx([line[name] for line in expected], rel=bound)


@contextlib.contextmanager
def scarce_memory(device: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Too little for a training step of so many images of 160 px, on a GPU by a limit of torch's allocator."""
    if device == "cpu":
        forward = DepthwiseStudent.forward

        def refuse_many(self: nn.Module, images: Tensor) -> Tensor:
            if self.training and len(images) > 4:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return forward(self, images)  # type: ignore[arg-type]

        monkeypatch.setattr(DepthwiseStudent, "forward", refuse_many)
        yield 16
        return
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.mem_get_info(device)[1]
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(device) + 2**30) / total, device)
    try:
        yield 1024
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


@pytest.mark.parametrize("device", DEVICES)
def test_memory_that_runs_out_halves_what_goes_through_at_once(
    device: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with scarce_memory(device, monkeypatch) as batch:
        (line,) = Rehearsal(device, 160, batch, 1).train(1)
    assert math.isfinite(line["train_loss"])
    assert f"images at a time; gradients add up to the same batches of {batch}" in capsys.readouterr().err


SETTINGS = {
    "live, features": ["distill.method=fitnets"],
    "mixup, ema, smoothing": ["distill.mixup=0.3", "distill.ema=0.9", "distill.label_smoothing=0.1"],
    "growing, adamw": ["distill.start_image_size=16", "distill.optimizer=adamw", "distill.learning_rate=0.001"],
    "stored, turned": ["distill.teacher_views=2", "data.rotation_degrees=10.0"],
    "stored, strong views": [
        *("distill.teacher_views=2", "distill.cutmix=1.0", "distill.mixup=0.2", "data.crop_scale=[0.3, 1]"),
        *("data.augment=randaugment", "data.erasing=0.3", "data.blur=0.2"),
    ],
    "live, growing, strong views": [
        *("distill.start_image_size=16", "teacher.cutmix=1.0", "data.augment=trivialaugment", "data.grey=0.2"),
        "data.color_jitter=[0.4, 0.4, 0.4, 0.1]",
    ],
    "standardize, black padding": ["distill.standardize=true", "data.padding_mode=constant", "data.crop_padding=4"],
}


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", list(SETTINGS))
def test_every_kind_of_training_comes_to_its_end(
    class_folders: Path, device: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from toolkit.pipeline import distill_student
    from toolkit.stage_setup import prepare_training

    monkeypatch.setenv("KD_TOOLKIT_CACHE", str(tmp_path / "cache"))
    threads = torch.get_num_threads()
    small = ["data.image_size=32", "data.resize=36", "teacher.architecture=depthwise", "teacher.base=4"]
    few = [
        "teacher.epochs=1",
        "teacher.batch_size=12",
        "distill.epochs=3",
        "distill.batch_size=12",
        "student.base=4",
        "distill.control=true",
    ]
    setup = prepare_training(None, str(class_folders), tmp_path / "m", [*small, *few, *SETTINGS[name]], device=device)
    try:
        made = distill_student(setup)
    finally:
        torch.set_num_threads(threads)
    assert made.info.extra["epochs"] == 3
    assert all(math.isfinite(line["train_loss"]) for line in read_lines(tmp_path / "m" / "metrics.jsonl"))


# Properties of a GPU alone.


@pytest.mark.gpu
def test_pixels_leave_the_gpu_with_those_who_use_them(splits: Splits) -> None:
    gc.collect()
    before = torch.cuda.memory_allocated()
    pixels = Rehearsal("cpu", 160, 64, 4)._pixels
    gc.disable()
    try:
        views = TrainingViews(pixels, DATA, CLASSES, seed=0, mix=Mix(), device="cuda:0")
        views.render(np.arange(4), 0)
        assert torch.cuda.memory_allocated() - before >= pixels.data.nbytes
        del views, pixels
        assert torch.cuda.memory_allocated() - before < 2**20
    finally:
        gc.enable()


@pytest.mark.gpu
@pytest.mark.parametrize("how", ["live", "stored"])
@pytest.mark.parametrize("rotation", [0.0, 15.0])
def test_a_step_does_not_wait_for_the_gpu(splits: Splits, how: str, rotation: float, tmp_path: Path) -> None:
    """torch raises an error at every wait: a number that is read back, or a copy from pages that may move."""
    data = DATA.model_copy(update={"rotation_degrees": rotation})
    device, plan = "cuda:0", make_plan_on("cuda:0", batch_size=12)
    views, teacher, learner = make_views_on(device, splits, data), make_student(seed=5), make_student()
    if how == "live":
        answering: Any = LiveTeacher(teacher, views, splits[1], "fp32")
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KD_TOOLKIT_CACHE", str(tmp_path))
            answering = open_store(LogitStore("t", "d", views, splits[1], 1), teacher)
    place(learner, device)
    training = Training(learner.train(), learn_from_teacher(plan.section), views, splits[1], plan, answering)
    stepper = Stepper(training, Optimization.of(learner, plan.section, 100))
    for start in (0, 12, 24, 0, 12):
        stepper.take(np.arange(start, start + 12), 0, 32)
    assert stepper._graph is not None
    assert stepper._graph._captured is not None, "the steps that follow are no replays"
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss, _ = stepper.take(np.arange(12), 0, 32)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert math.isfinite(loss.item())
