"""The teacher in int8: on CPUs that multiply int8 faster than bfloat16, a live teacher costs half as much.

B images of a batch, C classes, S px the side of an image.
"""

import hashlib
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from toolkit import console
from toolkit.data.batches import TrainingViews
from toolkit.data.dataset import spread
from toolkit.distill import distributed
from toolkit.distill.precision import Arithmetic, FloatArithmetic, autocast, least_times
from toolkit.errors import DeviceError, one_line
from toolkit.graphs.build import INPUT, OUTPUTS, build_graph
from toolkit.graphs.quantize import Quantizer
from toolkit.networks.classifier import Classifier
from toolkit.recipe import Recipe
from toolkit.sessions.session import NO_SPINNING, open_session
from toolkit.settings import DistillRecipe

OPSET = 20
CALIBRATION_IMAGES = 64
"""images, spread over the training split; their view 0 calibrates, on their view 1 the answers are compared"""

FARTHEST = 0.03
"""Mean total variation distance of int8's probabilities from the float network's that `auto` accepts."""

INT8_SHARE = 0.5
"""share of the float teacher's time that int8 takes, for a forecast: 0.3 to 0.6 was measured"""

FEW, MANY = 2, 32
"""images of the batches that both are timed on"""

WORTH_S = 60.0
"""s of a float teacher's work below which `auto` does not try int8: making it takes some seconds itself"""


class QuantizedClassifier(Classifier):
    """A classifier's stand-in on the CPU: float images (B, 3, S, S) in 0..1 → float32 logits (B, C), computed in int8.

    Images are rounded to uint8 first: the graph is the one that `toolkit export --int8` writes. Weights (7 bits, so
    that answers are the same on every CPU) and activations are quantized. Their ranges are calibrated on view 0 of some
    training images. It cannot be trained, and only takes images of the size it was made for.
    """

    def __init__(self, classifier: Classifier, views: TrainingViews) -> None:
        super().__init__(torch.nn.Identity(), classifier.mean.flatten().tolist(), classifier.std.flatten().tolist())
        model = build_graph(classifier.cpu(), views.data.image_size, OPSET)
        with Quantizer(model, _as_pixels(views.render(_some_images(views), view=0)), "minmax") as quantizer:
            quantized = quantizer.quantize().SerializeToString()
        # torch's threads need the cores
        self._session = open_session(quantized, torch.get_num_threads(), settings=NO_SPINNING)

    def forward(self, images: Tensor) -> Tensor:
        (logits,) = self._session.run([OUTPUTS[0]], {INPUT: _as_pixels(images)})
        return torch.tensor(logits)  # a copy: onnxruntime's array must not outlive its session


def teacher_in(precision: Arithmetic, teacher: Classifier, views: TrainingViews) -> Classifier:
    """The network that answers in `precision`, for float `teacher` itself. Raises DeviceError for int8 on a GPU."""
    if precision != "int8":
        return teacher
    if views.device != "cpu":
        raise DeviceError(
            f"distill.teacher_precision: an int8 teacher runs on the CPU, not on {views.device}",
            "use auto, fp32 or bf16",
        )
    return QuantizedClassifier(teacher, views)


def choose_teacher(
    recipe: Recipe,
    choose_float: Callable[[], FloatArithmetic],
    teacher: Classifier,
    views: TrainingViews,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[Classifier, Arithmetic]:
    """The teacher that answers, and its arithmetic: by `teacher_precision`.

    `auto` takes the arithmetic of `choose_float`, unless int8 is allowed (no wish for a precision, a method of logits,
    on the CPU) and better. It is better if it is worth its making, faster, and within FARTHEST of the float
    probabilities. Raises DeviceError for int8 on a GPU.
    """
    if (wanted := recipe.distill.teacher_precision) != "auto":
        wished = teacher_in(wanted, teacher, views)
        if wanted == "int8":
            distance = _distance(wished, teacher, views.render(_some_images(views), view=1), "fp32")
            console.say(f"teacher in int8: its probabilities are {distance:.1%} off the float network's")
        return wished, wanted
    precision = choose_float()
    if not may_answer_in_int8(recipe, views.device):
        return teacher, precision
    section = recipe.distill
    key = (_fingerprint(teacher), views.data.image_size, len(views), views_to_answer(section), precision)
    if (remembered := _in_int8.get(key)) is None:
        quantized = _try_int8(section, teacher, views, precision, clock)
    else:
        quantized = _quantize_or_none(teacher, views) if remembered else None
    _in_int8[key] = quantized is not None
    return (quantized, "int8") if quantized is not None else (teacher, precision)


def may_answer_in_int8(recipe: Recipe, device: str) -> bool:
    """Whether `auto` may try it at all: no wish for another precision, a method of logits alone, on the CPU."""
    section = recipe.distill
    no_wish = section.teacher_precision == recipe.training.precision == "auto"
    return device == "cpu" and no_wish and bool(section.logit_method) and not section.feature_method


def views_to_answer(section: DistillRecipe) -> int:
    """How many views of each image the teacher answers."""
    return min(section.teacher_views or section.epochs, section.epochs)


def mean_distance(logits: Tensor, other_logits: Tensor) -> float:
    """Mean over images of the total variation distance, ½·Σ|p − q|, of two networks' softmax; 0 to 1."""
    return (logits.double().softmax(1) - other_logits.double().softmax(1)).abs().sum(1).mean().item() / 2


def forget() -> None:
    """Forget all choices: for tests, which have clocks of their own."""
    _in_int8.clear()


_in_int8: dict[tuple[object, ...], bool] = {}
"""The choice for a teacher, the size and number of its images, its views and its float arithmetic."""


def _try_int8(
    section: DistillRecipe,
    teacher: Classifier,
    views: TrainingViews,
    precision: FloatArithmetic,
    clock: Callable[[], float],
) -> QuantizedClassifier | None:
    """The teacher in int8 if that is worth its making, faster and near enough; a line compares both, if it was made."""
    work_s = _work_s(section, teacher, views, precision, clock)
    if not distributed.agree(work_s >= WORTH_S):
        return None
    made = _quantize_or_none(teacher, views)
    if distributed.greatest(torch.tensor(int(made is None))).item() or made is None:
        return None
    images = views.render(_some_images(views), view=1)
    networks: dict[str, Classifier] = {"float": teacher, "int8": made}
    works = {name: partial(_answer_some, network, images, precision) for name, network in networks.items()}
    few, many = min(FEW, len(images)), min(MANY, len(images))
    to_come = len(views) * views_to_answer(section) / distributed.world_size()
    times = least_times(works, few, many, images=to_come, clock=clock)
    distance = _distance(made, teacher, images, precision)
    faster = min(times, key=lambda name: times[name]) == "int8"
    taken = distributed.agree(faster and distance <= FARTHEST)
    texts = [
        f"{times[name] * 1e3:.4g} ms in {precision if name == 'float' else name}" for name in works if name in times
    ]
    console.say(
        f"teacher in {'int8' if taken else precision}: an image takes {', '.join(texts)}; in int8 its probabilities are"
        f" {distance:.1%} off the float network's"
    )
    return made if taken else None


def _quantize_or_none(teacher: Classifier, views: TrainingViews) -> QuantizedClassifier | None:
    """None if this network cannot be made in int8: a line says so, and training goes on in float."""
    try:
        return QuantizedClassifier(teacher, views)
    except Exception as error:  # of torch's exporter, onnxruntime's quantizer or the disk
        console.say(f"the teacher answers in float, because it cannot be made in int8: {one_line(error)}")
        return None


def _distance(quantized: Classifier, teacher: Classifier, images: Tensor, precision: FloatArithmetic) -> float:
    return mean_distance(_answer(quantized, images, precision), _answer(teacher, images, precision))


def _work_s(
    section: DistillRecipe,
    teacher: Classifier,
    views: TrainingViews,
    precision: FloatArithmetic,
    clock: Callable[[], float],
) -> float:
    """s that the float teacher will take for all images of this process."""
    images = views.render(_some_images(views)[: 4 * FEW], view=1)
    share = len(views) / distributed.world_size() * views_to_answer(section)
    works = {"float": partial(_answer_some, teacher, images, precision)}
    return least_times(works, min(FEW, len(images)), len(images), images=share, clock=clock)["float"] * share


def _fingerprint(teacher: Classifier) -> str:
    """SHA-256 of the weights: how near int8 comes depends on them."""
    total = hashlib.sha256()
    for name, value in teacher.state_dict().items():
        total.update(name.encode())
        total.update(value.detach().cpu().contiguous().numpy().data)
    return total.hexdigest()


def _answer_some(network: Classifier, images: Tensor, precision: FloatArithmetic, count: int) -> None:
    _answer(network, images[:count], precision)


def _answer(network: Classifier, images: Tensor, precision: FloatArithmetic) -> Tensor:
    with torch.inference_mode(), autocast("cpu", precision):
        logits: Tensor = network(images).float()
    return logits


def _some_images(views: TrainingViews) -> np.ndarray:
    return spread(len(views), CALIBRATION_IMAGES)


def _as_pixels(images: Tensor) -> np.ndarray:
    """(B, 3, S, S) in 0..1 → uint8 (B, S, S, 3), rounded."""
    pixels: np.ndarray = images.mul(255).add_(0.5).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    return pixels
