"""One optimiser step over a batch, in as many parts as memory asks for. B images of a batch."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from toolkit import console
from toolkit.data.batches import batches
from toolkit.data.mixed_views import MixedIndices, MixedViews
from toolkit.data.views import Indices
from toolkit.distill import distributed
from toolkit.distill.checkpoint import StepState
from toolkit.distill.class_balance import Batch
from toolkit.distill.memory import free_cache, is_out_of_memory
from toolkit.distill.objective import NetworkOutput
from toolkit.distill.optimization import Optimization
from toolkit.distill.precision import autocast
from toolkit.distill.step_graph import StepGraph, Sums
from toolkit.distill.trainable import least_batch
from toolkit.distill.training import Training
from toolkit.errors import TrainingError, one_line

Forward = Callable[[Tensor], tuple[Tensor, tuple[Tensor, ...]]]


class Stepper:
    """Takes a training's steps."""

    def __init__(self, training: Training, optimization: Optimization) -> None:
        plan, learner = training.plan, training.learner
        self._learner, self._objective, self._views = learner, training.objective, training.views
        self._teacher, self._plan, self._optimization = training.teacher, plan, optimization
        self._replica = distributed.replicate(learner, plan.device)
        self._compiled: Forward | None = None
        if plan.compile != "off":
            self._compiled = torch.compile(self._replica, mode=plan.compile, dynamic=False)
        self._share_size = self._largest_share()
        self.part_size = self._share_size
        """images that go through the network at once, in this process; halved if memory runs out"""
        self._graph: StepGraph | None = None
        if self._is_capturable():
            self._use_graph()

    def take(self, indices: Indices, view: int, side: int) -> Sums:
        """Step on the images at `indices`, rendered at `side` px; this process's share of the loss's sum and hits."""
        indices = self._views.upload(indices)
        while (taken := self._take_or_none(indices, view, side)) is None:
            self._make_room(side)
        sums, is_updated = taken
        if not is_updated:
            self._optimization.update()
        self._optimization.count()
        return sums

    def _take_or_none(self, indices: Indices, view: int, side: int) -> tuple[Sums, bool] | None:
        """The sums, and whether the weights are new too; None if memory ran out, and all that was allocated is free."""
        try:
            if self._graph is None or not isinstance(indices, Tensor):
                return self._compute_gradients(indices, view, side), False
            self._views.show(view)
            if self._teacher:
                self._teacher.show(view)
            return self._graph.run(self._compute_gradients, indices, view, side)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return None

    def _compute_gradients(self, indices: Indices, view: int, side: int) -> Sums:
        """Leave the batch's mean gradient in the parameters."""
        self._optimization.optimizer.zero_grad()
        loss_sum = torch.zeros((), device=self._plan.device)
        hits = torch.zeros((), device=self._plan.device, dtype=torch.int64)
        parts, batch = self._parts(indices), self._describe(indices)
        for number, part in enumerate(parts, start=1):
            images = self._views.render(part, view, side)
            teacher = self._teacher.answer(part, view, images) if self._teacher else None
            with self._without_exchange(last=number == len(parts)):
                with autocast(self._plan.device, self._plan.precision):
                    logits, features = self._forward(images)
                student = NetworkOutput(logits.float(), features)
                loss = self._objective(student, self._views.targets(part, view), teacher, batch)
                # DistributedDataParallel takes the mean over processes, of shares that may differ by an image
                (loss * (len(part) * distributed.world_size() / len(indices))).backward()  # type: ignore[no-untyped-call]
            loss_sum += loss.detach() * len(part)
            labels = self._views.labels(part)
            hits += (student.logits.detach()[: len(labels)].argmax(1) == labels).sum()
        return loss_sum, hits

    def expect(self, coming: Sequence[Indices], view: int) -> None:
        """The next steps are on these batches: begin the work that a GPU would wait for."""
        parts = [part for indices in coming for part in self._parts(indices)]
        self._views.expect(parts, view)
        if self._teacher:
            self._teacher.expect(parts, view)

    def _largest_share(self) -> int:
        """Images of a whole batch that a process has at most."""
        batch_size, processes = self._plan.section.batch_size, distributed.world_size()
        beside = self._views.portions.beside(batch_size) if isinstance(self._views, MixedViews) else 0
        return -(-batch_size // processes) + -(-beside // processes)

    def _describe(self, indices: Indices) -> Batch:
        """The whole batch, as the loss of its parts needs it."""
        views = self._views
        if isinstance(views, MixedViews):
            labelled = views.portions.labelled_of(len(indices))
            return Batch(len(indices), labelled, lambda: views.labels_of_batch(indices))
        return Batch(len(indices), len(indices), lambda: views.labels(indices))

    def _parts(self, indices: Indices) -> Sequence[Indices | MixedIndices]:
        """This process's share, cut into the parts that go through the network at once."""
        if isinstance(self._views, MixedViews):
            size = self.part_size if self.part_size < self._share_size else None
            return self._views.parts(indices, distributed.own_share, size)
        share = distributed.own_share(indices)
        if self.part_size == self._share_size:  # in one go: processes must have the same number of parts
            return [share]
        return list(batches(share, self.part_size, min(2, self.part_size)))

    def _is_capturable(self) -> bool:
        """Whether a step may become a CUDA graph: all that it reads is on one GPU, and nothing else takes part in it.

        torch.compile has graphs of its own, processes wait for each other, and hooks on layers are Python's.
        """
        alone = distributed.world_size() == 1 and self._compiled is None and not self._learner.projectors
        alone = alone and (self._teacher is None or self._teacher.is_capturable)
        return alone and self._plan.device.startswith("cuda") and self._views.is_resident

    def _use_graph(self) -> None:
        self._optimization.tabulate(self._plan.device, self._plan.section)
        self._graph = StepGraph(self._optimization.update)

    def _forward(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The network's answer, through torch.compile if it is on, but not for odd sizes of batch: each is compiled."""
        if self._compiled is None or len(images) != self._share_size:
            answer: tuple[Tensor, tuple[Tensor, ...]] = self._replica(images)
            return answer
        try:
            return self._compiled(images)
        except Exception as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            raise TrainingError(
                f"torch.compile cannot be used here: {one_line(error)}",
                "use training.compile=off, or install what it needs (a C++ compiler; triton on a GPU)",
            ) from error

    @contextlib.contextmanager
    def _without_exchange(self, *, last: bool) -> Iterator[None]:
        """Let processes exchange gradients once per step, with those of the last part."""
        if last or not isinstance(self._replica, nn.parallel.DistributedDataParallel):
            yield
            return
        with self._replica.no_sync():
            yield

    def _make_room(self, side: int) -> None:
        """After memory ran out: go on without the graph, or with smaller parts if there is no graph."""
        if self._graph is None or not self._graph.release():
            self._halve(side)
        self._optimization.optimizer.zero_grad()
        free_cache(self._plan.device)

    def _halve(self, side: int) -> None:
        remedy = f"use a smaller {self._plan.section_name}.batch_size, data.image_size or network"
        if distributed.world_size() > 1:
            raise TrainingError(f"{self._plan.role}: out of memory in process {distributed.rank()}", remedy)
        if self.part_size < 2:
            raise TrainingError(f"{self._plan.role}: out of memory with one image at a time", remedy)
        if self.part_size == 2 and not self._takes_one(side):
            raise TrainingError(
                f"{self._plan.role}: out of memory with two images at a time, and batch norm needs two of {side} px",
                "use a smaller network, or give it more memory",
            )
        self.part_size = -(-self.part_size // 2)
        console.say(
            f"out of memory: going on with {self.part_size} images at a time; gradients add up to the same batches of"
            f" {self._plan.section.batch_size}, batch statistics are of the parts"
        )

    def _takes_one(self, side: int) -> bool:
        """Whether the network can be trained on one image at a time; if there is no memory to try, a step will tell."""
        try:
            return least_batch(self._learner.classifier.network, side) == 1
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return True

    def state(self) -> StepState:
        """The state for a checkpoint."""
        optimization = self._optimization
        return StepState(
            learner=self._learner.state_dict(),
            optimizer=optimization.optimizer.state_dict(),
            scheduler=optimization.scheduler.state_dict(),
            average=optimization.average.state_dict() if optimization.average else None,
            part_size=self.part_size if self.part_size < self._share_size else None,
        )

    def restore(self, state: StepState) -> None:
        self._learner.load_state_dict(state.learner)
        self._optimization.restore(state.optimizer, state.scheduler, state.average)
        if state.part_size and distributed.world_size() == 1:
            self.part_size = min(state.part_size, self._share_size)
