"""A step on a GPU, without one: torch's meta device stands for it, or the CPU does what a GPU would.

On meta nothing is computed, and reading a value back raises. On every machine that proves: no tensor of the host meets
one of the device, nothing is read back within a step, little crosses the bus, and no large tensor is made on the host.
On the CPU, steps that are taken as on a GPU end in the same weights to the bit.

torch's meta device lacks two things of a GPU. HalfProducts stands for autocast, and torch's SGD in a few operations
over all parameters stands for the fused one. It has the fused AdamW, once torch is asked to use it.
"""

import contextlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distill_samples import flatten, load_splits, make_plan, make_records, make_student, make_views
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from toolkit.data.batches import TrainingViews
from toolkit.data.device_views import DeviceViews
from toolkit.data.host_crops import HostCrops
from toolkit.data.mixed_views import MixedViews, Portions
from toolkit.data.pixels import Pixels
from toolkit.data.preprocess import Preprocess
from toolkit.data.resident import ResidentPixels
from toolkit.distill import step as step_module
from toolkit.distill import teachers as teaching_module
from toolkit.distill.features import TappedNetwork
from toolkit.distill.frozen import FrozenClassifier, freeze
from toolkit.distill.logit_store import StoredTeacher
from toolkit.distill.objective import learn_from_labels, learn_from_teacher
from toolkit.distill.optimization import Optimization, make_average, make_optimizer, make_scheduler, update_average
from toolkit.distill.plan import Plan
from toolkit.distill.precision import FloatArithmetic
from toolkit.distill.step import Stepper
from toolkit.distill.step_graph import Order
from toolkit.distill.teachers import LiveTeacher, MixedTeacher, Teacher
from toolkit.distill.trainer import train
from toolkit.distill.training import Training
from toolkit.networks.classifier import Classifier
from toolkit.networks.registry import NetworkSpec
from toolkit.recipe import Recipe

COUNT, BATCH, SIDE, CANVAS, CLASSES = 64, 16, 32, 36, 5
MOST_COPIES = 1
"""from the host to the device, per step: the images' numbers"""
MOST_BYTES = 2**16
"""of a tensor that a step makes on the host or sends over"""

SETTINGS = {
    "kd": (),
    "dkd": ("distill.method=dkd",),
    "dist": ("distill.method=dist",),
    "hard": ("distill.method=hard",),
    "standardize": ("distill.standardize=true",),
    "mixup": ("distill.mixup=0.3",),
    "rotation": ("data.rotation_degrees=15.0",),
    "black border": ("data.padding_mode=constant", "data.crop_padding=4"),
    "resized crop": ("data.crop_scale=[0.3, 0.9]",),
    "cutmix": ("distill.cutmix=1.0", "distill.mixup=0.3"),
    "ema": ("distill.ema=0.9",),
    "all at once": ("distill.mixup=0.3", "data.rotation_degrees=15.0", "distill.ema=0.9", "distill.method=dist"),
}

STRONG = {
    "colours": ("data.color_jitter=[0.4, 0.4, 0.4, 0.1]", "data.grey=0.2", "data.blur=0.3", "data.erasing=0.3"),
    "randaugment": ("data.augment=randaugment", "data.augment_operations=3", "data.crop_scale=[0.3, 1]"),
    "trivialaugment": ("data.augment=trivialaugment", "data.rotation_degrees=10.0", "distill.cutmix=1.0"),
}
"""Views whose draws decide what is done to each: on a device, all is done to all of them."""


class Crossings(TorchDispatchMode):
    """Copies between devices, the largest tensor made on the host, and what ran, with its first result's type."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: set[tuple[str, torch.dtype | None]] = set()
        self.sent: list[int] = []
        self.read = 0
        self.on_host = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        results = [value.dtype for value in tree_leaves(out) if isinstance(value, torch.Tensor)]
        self.ran.add((func.overloadpacket.__name__, results[0] if results else None))
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
        before = {value.device.type for value in given}
        for value in tree_leaves(out):
            if not isinstance(value, torch.Tensor):
                continue
            if value.device.type == "cpu":
                self.on_host = max(self.on_host, value.nbytes)
                self.read += "meta" in before
            elif before == {"cpu"}:
                self.sent.append(value.nbytes)
            elif "cpu" in before:  # into a tensor of the device
                self.sent.extend(value.nbytes for value in given if value.device.type == "cpu")
        return out


class HalfProducts(TorchFunctionMode):
    """As under autocast, convolutions and linear layers take bfloat16."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.conv2d, functional.linear):
            args, kwargs = tree_map_only(torch.Tensor, lambda value: value.to(torch.bfloat16), (args, kwargs))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def _meta_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ResidentPixels, "where_it_fits", classmethod(lambda cls, pixels, device: cls(pixels, device)))
    for module in (step_module, teaching_module):
        monkeypatch.setattr(
            module,
            "autocast",
            lambda device, precision: HalfProducts() if precision == "bf16" else contextlib.nullcontext(),
        )
    optimizers = sys.modules[torch.optim.Optimizer.__module__]
    monkeypatch.setattr(optimizers, "_get_fused_kernels_supported_devices", lambda: ["meta"])


def make_pixels(device: str, count: int = COUNT) -> Pixels:
    sizes = np.full(count, CANVAS)
    starts = np.arange(count, dtype=np.int64) * CANVAS * CANVAS * 3
    preprocess = Preprocess(SIDE, CANVAS, (0.5,) * 3, (0.25,) * 3)
    data = np.random.default_rng(0).integers(0, 256, count * CANVAS * CANVAS * 3, dtype=np.uint8)
    return Pixels(tuple(map(str, range(count))), np.arange(count) % CLASSES, sizes, sizes, data, starts, preprocess)


def make_stepper(
    how: str,
    device: str,
    *settings: str,
    as_on_gpu: bool = False,
    has_room: bool = True,
    precision: FloatArithmetic = "fp32",
    unlabelled: int = 0,
) -> tuple[Stepper, TappedNetwork]:
    """A stepper of the depthwise student, and the student; its teacher is `live`, `folded` or `stored`.

    With `unlabelled` images, its batches are of both kinds, by distill.unlabelled_ratio.
    """
    recipe = Recipe().with_overrides(
        [f"data.image_size={SIDE}", f"data.resize={CANVAS}", f"distill.batch_size={BATCH}", *settings]
    )
    section, data, pixels = recipe.distill, recipe.data, make_pixels(device)
    torch.manual_seed(0)
    small = NetworkSpec("depthwise", {"base": 4})
    learner, teacher = (
        TappedNetwork(Classifier(spec.build(CLASSES), data.mean, data.std))
        for spec in (small, NetworkSpec("resnet18") if device == "meta" else small)
    )
    labelled, others = (
        TrainingViews(of, data, CLASSES, seed=0, mix=section.mix, device=device)
        for of in (pixels, make_pixels(device, unlabelled or 1))
    )
    for each in (labelled, others) if as_on_gpu or not has_room else ():
        each.on_device = DeviceViews(each, ResidentPixels(each.pixels, device) if has_room else None)
    portions = Portions(section.unlabelled_ratio, COUNT, unlabelled, BATCH)
    views = MixedViews(labelled, others, portions) if unlabelled else labelled
    logits = np.random.default_rng(1).normal(size=(2, COUNT, CLASSES)).astype(np.float32)
    if how == "folded":
        teacher = TappedNetwork(freeze(teacher.classifier.eval(), precision, SIDE))
    answering: Teacher = LiveTeacher(teacher, views, pixels, precision)
    if how == "stored":
        answering = stored = StoredTeacher(logits, logits[0, :4], device)
        if unlabelled:
            answering = MixedTeacher(stored, StoredTeacher(logits[:, :unlabelled] + 1, logits[0, :0], device), portions)
    learner.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = (
        make_optimizer(learner, section)
        if section.optimizer == "adamw"
        else torch.optim.SGD(learner.parameters(), lr=0.1, momentum=0.9, nesterov=True, foreach=True)
    )
    network = learner.classifier.network
    optimization = Optimization(
        network, optimizer, make_scheduler(optimizer, section, 20), make_average(network, section), 20
    )
    plan = Plan("student", section, SIDE, precision, 0, device)
    training = Training(learner, learn_from_teacher(section), views, pixels, plan, answering)
    return Stepper(training, optimization), learner


@pytest.mark.usefixtures("_meta_is_a_gpu")
@pytest.mark.parametrize("how", ["live", "stored"])
@pytest.mark.parametrize("name", [*SETTINGS, *STRONG])
def test_a_step_stays_on_the_device(how: str, name: str) -> None:
    stepper, _ = make_stepper(how, "meta", *(SETTINGS | STRONG)[name])
    stepper.take(np.arange(BATCH), 0, SIDE)
    stepper.take(np.arange(BATCH), 0, SIDE)  # the average's first step copies, its second one averages
    with Crossings() as crossings:
        loss, hits = stepper.take(np.arange(BATCH), 0, SIDE)
    assert loss.device.type == hits.device.type == "meta"
    assert crossings.read == 0
    assert len(crossings.sent) <= MOST_COPIES, crossings.sent
    assert max(crossings.sent) <= MOST_BYTES
    assert crossings.on_host <= MOST_BYTES


@pytest.mark.usefixtures("_meta_is_a_gpu")
@pytest.mark.parametrize("how", ["folded", "stored"])
@pytest.mark.parametrize("name", ["kd", "all at once"])
def test_a_step_in_bfloat16_with_a_fused_optimiser_stays_on_the_device(how: str, name: str) -> None:
    stepper, _ = make_stepper(how, "meta", *SETTINGS[name], "distill.optimizer=adamw", precision="bf16")
    order = torch.arange(COUNT, device="meta")
    for start in (0, BATCH):
        stepper.take(order[start : start + BATCH], 0, SIDE)
    with Crossings() as crossings:
        loss, hits = stepper.take(order[2 * BATCH : 3 * BATCH], 0, SIDE)
    assert loss.device.type == hits.device.type == "meta"
    assert crossings.sent == []
    assert crossings.read == 0
    assert {dtype for name, dtype in crossings.ran if name == "convolution"} == {torch.bfloat16}
    assert "_fused_adamw_" in {name for name, _ in crossings.ran}


@pytest.mark.usefixtures("_meta_is_a_gpu")
def test_the_folded_teacher_of_a_step_in_bfloat16_is_one_and_has_such_weights() -> None:
    stepper, _ = make_stepper("folded", "meta", precision="bf16")
    teacher = stepper._teacher
    assert isinstance(teacher, LiveTeacher)
    assert isinstance(teacher._network.classifier, FrozenClassifier)
    modules = list(teacher._network.modules())
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in modules)
    assert {m.weight.dtype for m in modules if isinstance(m, torch.nn.Conv2d)} == {torch.bfloat16}


@pytest.mark.usefixtures("_meta_is_a_gpu")
@pytest.mark.parametrize("how", ["live", "stored"])
@pytest.mark.parametrize("side", [SIDE, SIDE // 2])
def test_a_step_of_images_that_are_there_sends_nothing_but_numbers(how: str, side: int) -> None:
    """As in an epoch, whose order goes up as a whole: no copy at all."""
    stepper, _ = make_stepper(how, "meta", *SETTINGS["all at once"])
    order = torch.arange(COUNT, device="meta")
    for start in (0, BATCH):
        stepper.take(order[start : start + BATCH], 1, side)
    with Crossings() as crossings:
        stepper.take(order[2 * BATCH : 3 * BATCH], 1, side)
    assert crossings.sent == []
    assert crossings.read == 0


@pytest.mark.usefixtures("_meta_is_a_gpu")
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("name", ["kd", "all at once", "resized crop", *STRONG])
def test_the_graph_of_a_step_needs_nothing_of_the_host(optimizer: str, name: str) -> None:
    """From the place in the epoch's order to the weights and their average: no copy to the device or back."""
    settings = *(SETTINGS | STRONG)[name], f"distill.optimizer={optimizer}"
    stepper, _ = make_stepper("stored", "meta", *settings)
    stepper._use_graph()
    whole = torch.arange(COUNT, device="meta")
    for start in (0, BATCH):
        stepper.take(whole[start : start + BATCH], 1, SIDE)
    order = Order(whole[:BATCH])
    with Crossings() as crossings:
        order.seek(whole[2 * BATCH : 3 * BATCH])
        stepper._compute_gradients(order.take(), 1, SIDE)
        stepper._optimization.update()
    assert crossings.sent == []
    assert crossings.read == 0
    assert crossings.on_host <= 8


@pytest.mark.usefixtures("_meta_is_a_gpu")
@pytest.mark.parametrize("how", ["live", "stored"])
def test_an_epoch_sends_some_bytes_per_image(how: str) -> None:
    stepper, _ = make_stepper(how, "meta", *SETTINGS["all at once"])
    for _ in range(2):
        stepper.take(np.arange(BATCH), 0, SIDE)
    with Crossings() as crossings:
        stepper.take(np.arange(BATCH), 1, SIDE)
    per_image = 8 + 8 + 1 + 16 + 8 + 4 + 4 * CLASSES  # corner, flip, warp, partner, its weight, stored logits
    assert sum(crossings.sent) <= COUNT * per_image + 8 * BATCH


@pytest.mark.usefixtures("_meta_is_a_gpu")
@pytest.mark.parametrize("how", ["live", "stored"])
@pytest.mark.parametrize("name", ["kd", "all at once"])
def test_if_pixels_stay_on_the_host_a_step_sends_its_crops_and_little_else(how: str, name: str) -> None:
    stepper, _ = make_stepper(how, "meta", *SETTINGS[name], has_room=False)
    for _ in range(2):
        stepper.take(np.arange(BATCH), 0, SIDE)
    with Crossings() as crossings:
        stepper.take(np.arange(BATCH), 0, SIDE)
    crops = BATCH * SIDE * SIDE * 3
    assert crossings.read == 0
    assert crossings.sent.count(crops) == (2 if name == "all at once" else 1), "with mixup, the partners' too"
    assert sum(nbytes for nbytes in crossings.sent if nbytes != crops) <= 8 * BATCH * 8
    assert crossings.on_host <= crops


@pytest.mark.parametrize("how", ["live", "stored"])
@pytest.mark.parametrize("name", list(SETTINGS))
@pytest.mark.parametrize("has_room", [True, False])
def test_steps_as_on_a_gpu_end_in_the_weights_of_the_cpu_s(how: str, name: str, has_room: bool) -> None:
    ends = []
    for as_on_gpu in (False, True):
        stepper, learner = make_stepper(
            how, "cpu", *SETTINGS[name], as_on_gpu=as_on_gpu, has_room=has_room or not as_on_gpu
        )
        order = stepper._views.upload(np.random.default_rng(2).permutation(COUNT))
        assert isinstance(order, torch.Tensor) == (as_on_gpu and has_room)
        stepper.expect([order[: BATCH + 3], order[BATCH:-1]], 0)
        sums = [stepper.take(order[: BATCH + 3], 0, SIDE), stepper.take(order[BATCH:-1], 1, SIDE // 2)]
        sums.append(stepper.take(order[5 : BATCH + 5], 2, SIDE))
        ends.append((flatten(learner.state_dict()), sums))
    assert torch.equal(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]


@pytest.mark.parametrize("has_room", [True, False])
def test_training_as_on_a_gpu_ends_in_the_weights_of_the_cpu_s(
    has_room: bool, class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_pixels, valid_pixels = load_splits(class_folders)
    plan = make_plan(epochs=3, batch_size=8, start_image_size=16, mixup=0.3, ema=0.9)
    begun: list[int] = []
    begin = HostCrops._begin

    def note(self: HostCrops, indices: np.ndarray, view: int) -> Any:
        begun.append(view)
        return begin(self, indices, view)

    monkeypatch.setattr(HostCrops, "_begin", note)
    ends = []
    for as_on_gpu in (False, True):
        views = make_views(train_pixels, mixup=0.3)
        if as_on_gpu:
            views.on_device = DeviceViews(views, ResidentPixels(train_pixels, "cpu") if has_room else None)
        training = Training(make_student(), learn_from_labels(0.1), views, valid_pixels, plan)
        result = train(training, make_records(tmp_path / str(as_on_gpu)))
        ends.append(flatten(result.state_dict))
    assert torch.equal(*ends)
    assert begun == ([] if has_room else [0] * 10 + [1] * 10 + [2] * 10), "each batch and its partners, cut once"


def test_the_average_on_a_gpu_is_torch_s(monkeypatch: pytest.MonkeyPatch) -> None:
    section = Recipe().with_overrides(["distill.ema=0.7"]).distill
    network = NetworkSpec("depthwise", {"base": 4}).build(CLASSES)
    expected, average = (make_average(network, section) for _ in range(2))
    assert expected is not None
    assert average is not None
    for step in range(4):
        with torch.no_grad():
            for values in (*network.parameters(), *network.buffers()):
                values.add_(step + 1)
        expected.update_parameters(network)
        with monkeypatch.context() as patch:
            patch.setattr(type(average), "update_parameters", lambda *_: pytest.fail("torch's, which waits"))
            update_average(average, network)
            average.n_averaged += 1
    assert torch.equal(flatten(average.state_dict()), flatten(expected.state_dict()))
