"""The speed of this machine with a recipe: real steps on few images, each kind measured once.

The steps are those that the choice of an arithmetic times (precision.py), so that nothing is measured twice. On a GPU
whole steps are timed, because training replays them from a CUDA graph, several times as fast as their kernels. No
measurement takes more than a few seconds or 2 % of the work that it stands for.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch

from toolkit import console
from toolkit.data.batches import TrainingViews
from toolkit.data.dataset import Dataset, spread
from toolkit.data.pixels import Pixels
from toolkit.data.preprocess import UNREADABLE, Preprocess
from toolkit.distill import distributed, provenance
from toolkit.distill.features import TappedNetwork
from toolkit.distill.objective import learn_from_labels
from toolkit.distill.optimization import Optimization
from toolkit.distill.plan import Plan
from toolkit.distill.precision import FloatArithmetic, NetworkStep, choose_precision, step_seconds
from toolkit.distill.quantized import views_to_answer
from toolkit.distill.step import Stepper
from toolkit.distill.step_graph import WARM_UP
from toolkit.distill.teacher import import_given
from toolkit.distill.trainable import require_trainable
from toolkit.distill.training import Training
from toolkit.errors import DataError
from toolkit.forecast.facts import Facts
from toolkit.modeldir import Role
from toolkit.networks import small_maps
from toolkit.networks.classifier import Classifier
from toolkit.networks.registry import NetworkSpec
from toolkit.recipe import Recipe
from toolkit.settings import DataRecipe, Mix, StageRecipe

SAMPLED_IMAGES = 24
"""training images that are decoded, and whose views are rendered"""
SAMPLE_S = 1.0
"""s after which no further image is decoded"""
SAMPLE_BYTES = 2**28
"""bytes of decoded images after which there are no more"""
VIEW_BATCH = 32
UNTIMED_STEPS = WARM_UP + 1
"""steps before a GPU replays: the last of them is captured"""
LEAST_OF = 3
"""timed calls; the first one warms up"""
WRITE_BYTES_S = 3e8
"""bytes per second of a checkpoint on its way through memory to a disk"""


NetworkKey = tuple[NetworkSpec, int]
"""A network and the px it is built for."""


class MeasuredSpeeds:
    """Speeds (estimate.py) of this process on `device`; each is measured at its first use and then remembered."""

    def __init__(
        self, dataset: Dataset, facts: Facts, device: str, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._dataset, self._facts, self._device, self._clock = dataset, facts, device, clock
        self._started = clock()
        self.decode_s = functools.cache(self._decode_s)
        self._sample = functools.cache(self._make_sample)
        self._render_s = functools.cache(self._time_views)
        self._key = functools.cache(_key)  # reads a given teacher's file once per recipe
        self._build = functools.cache(self._build_network)
        self._given = functools.cache(self._import_given)
        self._build_plain = functools.cache(self._build_network)  # as in a benchmark, not as in training
        self._optimizer_s = functools.cache(self._time_optimizer)
        self._replay_s = functools.cache(self._time_replays)

    def describe(self) -> str:
        """The time that all measurements took so far, and the device."""
        seconds = self._clock() - self._started
        more = "; export and bench are estimated from that" if self._facts.command == "run" else ""
        return f"measured here in {console.duration(seconds)}, by single steps on {self._device}{more}"

    def train_s(self, recipe: Recipe, role: Role, side: int) -> float:
        section = recipe.stage_of(role)
        network, images = self._network(recipe, role), self._share(section.epochs)
        require_trainable(network.network, recipe, role)
        with self._own_threads(recipe, role) as threads:
            batch, precision = section.batch_size, self._precision(recipe, role)
            if self._is_replayed(recipe, role):
                alike = section.model_copy(update={"epochs": 1})  # their number changes no step
                return self._replay_s(self._key(recipe, role), recipe.data_of(role), alike, precision, side)
            step = NetworkStep(network, batch, side, self._device)
            step_s = step_seconds(step, precision, images=images, clock=self._clock)
            of_batch = self._optimizer_s(self._key(recipe, role), section) / self._batch(section)
            return step_s + of_batch + self._render_s(recipe.data_of(role), section.mix, side, threads)

    def view_s(self, recipe: Recipe, role: Role) -> float:
        data = recipe.data_of(role)
        return self._render_s(data, recipe.distill.mix, data.image_size, torch.get_num_threads())

    def validate_s(self, recipe: Recipe, role: Role) -> float:
        with self._own_threads(recipe, role):
            return self._forward_s(recipe, role, "fp32", recipe.stage_of(role).batch_size)

    def teach_s(self, recipe: Recipe) -> float:
        return self._forward_s(recipe, "teacher", self._answering(recipe), recipe.distill.batch_size)

    def answer_s(self, recipe: Recipe, role: Role, batch: int) -> float:
        if batch == 1:
            return self._forward_s(recipe, role, "fp32", 1, as_trained=False)
        # near enough, and already measured if the teacher answers in fp32
        return self._forward_s(recipe, role, "fp32", recipe.distill.batch_size)

    def save_s(self, recipe: Recipe, role: Role) -> float:
        section = recipe.stage_of(role)
        copies = 2 + (2 if section.optimizer == "adamw" else 1) + bool(section.ema)
        return self.weights_bytes(recipe, role) * copies / WRITE_BYTES_S

    def weights_bytes(self, recipe: Recipe, role: Role) -> int:
        network = self._network(recipe, role)
        return sum(value.numel() * value.element_size() for value in network.network.state_dict().values())

    @contextlib.contextmanager
    def _own_threads(self, recipe: Recipe, role: Role) -> Iterator[int]:
        """During the measurement, as many threads as `role` will train with."""
        threads = torch.get_num_threads()
        own = threads // 2 if role != "teacher" and self._facts.paired(recipe) else threads
        torch.set_num_threads(own)
        try:
            yield own
        finally:
            torch.set_num_threads(threads)

    def _forward_s(
        self, recipe: Recipe, role: Role, precision: FloatArithmetic, batch: int, *, as_trained: bool = True
    ) -> float:
        network = self._network(recipe, role, as_trained=as_trained)
        size = recipe.data_of(role).image_size
        images = self._facts.images["valid"] + self._facts.images["test"]
        step = NetworkStep(network, batch, size, self._device, training=False)
        return step_seconds(step, precision, as_trained=as_trained, images=images, clock=self._clock)

    def _precision(self, recipe: Recipe, role: Role) -> FloatArithmetic:
        """The choice that the training stage will make, by the same function."""
        section = recipe.stage_of(role)
        return self._choose(recipe, role, section.batch_size, self._share(section.epochs), training=True)

    def _answering(self, recipe: Recipe) -> FloatArithmetic:
        """The float arithmetic of the teacher's answers; the estimate decides about int8."""
        if recipe.distill.teacher_precision in ("fp32", "bf16"):
            return "fp32" if recipe.distill.teacher_precision == "fp32" else "bf16"
        images = self._share(views_to_answer(recipe.distill))
        return self._choose(recipe, "teacher", recipe.distill.batch_size, images, training=False)

    def _choose(self, recipe: Recipe, role: Role, batch: int, images: float, *, training: bool) -> FloatArithmetic:
        step = NetworkStep(self._network(recipe, role), batch, recipe.data_of(role).image_size, self._device, training)
        return choose_precision(recipe.training.precision, step, images=images, clock=self._clock, say=False)

    def _share(self, epochs: int) -> float:
        """Images that this process sees in so many epochs."""
        return self._facts.images["train"] * epochs / self._facts.processes

    def _batch(self, section: StageRecipe) -> int:
        return min(section.batch_size, self._facts.images["train"])

    def _network(self, recipe: Recipe, role: Role, *, as_trained: bool = True) -> Classifier:
        """As in training, or as in a benchmark."""
        if role == "teacher" and provenance.has_onnx(recipe):
            return self._given(recipe)
        build = self._build if as_trained else self._build_plain
        return build(*self._key(recipe, role))

    def _import_given(self, recipe: Recipe) -> Classifier:
        """A teacher with an ONNX file in it: without its file, it is no network."""
        sources = provenance.find_sources(recipe)
        teacher = import_given(sources, self._dataset.classes, recipe.teacher.combine)
        return Classifier(teacher.network, teacher.mean, teacher.std).to(self._device)

    def _build_network(self, spec: NetworkSpec, image_size: int) -> Classifier:
        """The untrained network, as the stages build it, on its device."""
        network = spec.build(self._facts.num_classes, image_size)
        network = distributed.synchronize_batch_norms(network, self._device)
        return Classifier(network, (0.5,) * 3, (0.5,) * 3).to(self._device)

    def _time_optimizer(self, key: NetworkKey, section: StageRecipe) -> float:
        """s of a step of the optimiser and of its average."""
        network = self._build(*key)
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimization = Optimization.of(TappedNetwork(network), section, steps=LEAST_OF)
        state = {name: value.clone() for name, value in network.state_dict().items()}
        seconds = self._least(optimization.step)
        network.load_state_dict(state)
        network.zero_grad(set_to_none=True)
        return seconds

    def _is_replayed(self, recipe: Recipe, role: Role) -> bool:
        """Whether a GPU with room for the pixels runs the steps as CUDA graphs, as Stepper decides."""
        has_hooks = role == "student" and recipe.distill.feature_method is not None
        return self._device != "cpu" and distributed.world_size() == 1 and not has_hooks

    def _time_replays(
        self, key: NetworkKey, data: DataRecipe, section: StageRecipe, precision: FloatArithmetic, side: int
    ) -> float:
        """s per image of a whole step at `side` px, without a teacher, after the first steps have led to a graph."""
        sample, _ = self._sample(*_cut(Recipe(data=data)))
        views = TrainingViews(sample, data, self._facts.num_classes, seed=0, mix=section.mix, device=self._device)
        network = self._build(*key)
        learner = TappedNetwork(network).train()
        small_maps.place(learner, self._device)
        state = {name: value.clone() for name, value in network.state_dict().items()}
        plan = Plan("teacher", section, data.image_size, precision, 0, self._device)
        training = Training(learner, learn_from_labels(0.0), views, sample, plan)
        stepper = Stepper(training, Optimization.of(learner, section, UNTIMED_STEPS + LEAST_OF))
        indices = np.arange(self._batch(section)) % len(sample)
        for _ in range(UNTIMED_STEPS):
            stepper.take(indices, 0, side)
        seconds = self._least(lambda: stepper.take(indices, 0, side)) / len(indices)
        network.load_state_dict(state)
        network.zero_grad(set_to_none=True)
        return seconds

    def _time_views(self, data: object, mix: Mix, side: int, threads: int) -> float:
        """s per view at `side` px, with the `threads` that are set."""
        recipe = Recipe.model_validate({"data": data})
        sample, _ = self._sample(*_cut(recipe))
        views = TrainingViews(sample, recipe.data, self._facts.num_classes, seed=0, mix=mix, device=self._device)
        indices = np.arange(VIEW_BATCH) % len(sample)
        return self._least(lambda: views.render(indices, 0, side)) / VIEW_BATCH

    def _decode_s(self, recipe: Recipe) -> float:
        return self._sample(*_cut(recipe))[1]

    def _make_sample(self, image_size: int, resize: int) -> tuple[Pixels, float]:
        """Some training images as `load_pixels` would give them, and s per image on one core.

        Raises DataError if none of them can be read.
        """
        preprocess = Preprocess(image_size, resize, (0.0,) * 3, (1.0,) * 3)
        images, pictures, took = self._dataset.train, [], []
        for place in spread(len(images), SAMPLED_IMAGES):
            start = self._clock()
            try:
                picture = preprocess.keep_middle(images.read(int(place)))
            except UNREADABLE:
                continue
            pictures.append(picture)
            took.append(self._clock() - start)
            if sum(took) > SAMPLE_S or sum(picture.nbytes for picture in pictures) > SAMPLE_BYTES:
                break
        if not pictures:
            raise DataError("none of the sampled training images can be read", "look at them with: toolkit data")
        sizes = np.array([picture.shape[:2] for picture in pictures], dtype=np.int64)
        starts = np.concatenate(([0], np.cumsum(sizes.prod(1) * 3)[:-1])).astype(np.int64)
        data = np.concatenate([picture.ravel() for picture in pictures])
        labels = np.zeros(len(pictures), dtype=np.int64)
        names = tuple(map(str, range(len(pictures))))
        seconds = distributed.agree(float(np.mean(took[1:] or took)))
        return Pixels(names, labels, sizes[:, 0], sizes[:, 1], data, starts, preprocess), seconds

    def _least(self, work: Callable[[], object]) -> float:
        """s that `work` takes: the least of LEAST_OF calls, without the first."""
        took = []
        for _ in range(LEAST_OF):
            start = self._clock()
            work()
            if self._device != "cpu":
                torch.cuda.synchronize(self._device)
            took.append(self._clock() - start)
        return distributed.agree(min(took[1:]))


def _key(recipe: Recipe, role: Role) -> NetworkKey:
    """The spec and the image size that a network is built from."""
    spec = provenance.teacher_network(recipe) if role == "teacher" else NetworkSpec.of(recipe.student)
    return spec, recipe.data_of(role).image_size


def _cut(recipe: Recipe) -> tuple[int, int]:
    return recipe.data.image_size, recipe.data.resize
