"""One optimiser step over a batch, in as many parts as memory asks for. B images of a batch."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from toolkit import console
from toolkit.data.batches import TrainingViews, batches
from toolkit.data.views import Indices
from toolkit.distill import distributed
from toolkit.distill.features import TappedNetwork
from toolkit.distill.memory import free_cache, is_out_of_memory
from toolkit.distill.objective import NetworkOutput, Objective
from toolkit.distill.plan import Plan
from toolkit.distill.precision import autocast
from toolkit.distill.step_graph import StepGraph
from toolkit.distill.teachers import Teacher
from toolkit.errors import TrainingError, one_line

Forward = Callable[[Tensor], tuple[Tensor, tuple[Tensor, ...]]]


class Stepper:
    """Takes steps with one network, its objective, optimiser and schedule."""

    def __init__(
        self,
        learner: TappedNetwork,
        objective: Objective,
        views: TrainingViews,
        teaching: Teacher | None,
        plan: Plan,
        optimizer: torch.optim.Optimizer,
        scheduler: LRScheduler,
        average: AveragedModel | None,
    ) -> None:
        self._learner, self._objective, self._views, self._teaching = learner, objective, views, teaching
        self._plan, self._optimizer, self._scheduler, self._average = plan, optimizer, scheduler, average
        self._replica = distributed.replicate(learner, plan.device)
        self._compiled: Forward | None = None
        if plan.compile != "off":
            self._compiled = torch.compile(self._replica, mode=plan.compile, dynamic=False)
        self._share_size = -(-plan.section.batch_size // distributed.world_size())
        self.part_size = self._share_size
        """images that go through the network at once, in this process; halved where memory runs out"""
        self._graph = StepGraph(learner) if self._is_capturable() else None

    def take(self, indices: Indices, view: int, side: int) -> tuple[Tensor, Tensor]:
        """Step on the images at `indices`, rendered at `side` px; this process's share of the loss's sum and hits."""
        indices = self._views.upload(indices)
        while True:
            sums = self._gradients_or_none(indices, view, side)
            if sums is not None:
                break
            self._make_room()
        self._optimizer.step()
        if self._average is not None:
            update = AveragedModel.update_parameters if self._plan.device == "cpu" else update_average
            update(self._average, self._learner.classifier.network)
        self._scheduler.step()
        return sums

    def _gradients_or_none(self, indices: Indices, view: int, side: int) -> tuple[Tensor, Tensor] | None:
        """None where memory ran out; what was allocated is free again by then."""
        try:
            if self._graph is None or not isinstance(indices, Tensor):
                return self._compute_gradients(indices, view, side)
            self._views.show(view)
            if self._teaching:
                self._teaching.show(view)
            return self._graph.run(self._compute_gradients, indices, view, side)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return None

    def _compute_gradients(self, indices: Indices, view: int, side: int) -> tuple[Tensor, Tensor]:
        """Leave the batch's mean gradient in the parameters."""
        self._optimizer.zero_grad()
        loss_sum = torch.zeros((), device=self._plan.device)
        hits = torch.zeros((), device=self._plan.device, dtype=torch.int64)
        parts = self._parts(indices)
        for number, part in enumerate(parts, start=1):
            images = self._views.render(part, view, side)
            teacher = self._teaching.answer(part, view, images) if self._teaching else None
            with self._without_exchange(last=number == len(parts)):
                with autocast(self._plan.device, self._plan.precision):
                    logits, features = self._forward(images)
                student = NetworkOutput(logits.float(), features)
                loss = self._objective(student, self._views.targets(part, view), teacher)
                # DistributedDataParallel takes the mean over processes, of shares that may differ by an image
                (loss * (len(part) * distributed.world_size() / len(indices))).backward()  # type: ignore[no-untyped-call]
            loss_sum += loss.detach() * len(part)
            hits += (student.logits.detach().argmax(1) == self._views.labels(part)).sum()
        return loss_sum, hits

    def expect(self, coming: Sequence[Indices], view: int) -> None:
        """The next steps are on these batches: begin with what a GPU would wait for."""
        self._views.expect([part for indices in coming for part in self._parts(indices)], view)

    def _parts(self, indices: Indices) -> list[Indices]:
        """What goes through the network at once, of this process's share."""
        share = distributed.own_share(indices)
        if self.part_size == self._share_size:  # in one go: processes must have the same number of parts
            return [share]
        return list(batches(share, self.part_size, min(2, self.part_size)))

    def _is_capturable(self) -> bool:
        """Whether a step may become a CUDA graph: all that it reads is on one GPU, and no more than that is going on.

        torch.compile has graphs of its own, processes wait for each other, and hooks on layers are Python's.
        """
        alone = distributed.world_size() == 1 and self._compiled is None and not self._learner.projectors
        return alone and self._plan.device.startswith("cuda") and self._views.is_resident

    def _forward(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Through torch.compile where it is on; odd sizes of batch go without, as each would be compiled anew."""
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
                "use --set distill.compile=off, or install what it needs (a C++ compiler; triton on a GPU)",
            ) from error

    @contextlib.contextmanager
    def _without_exchange(self, *, last: bool) -> Iterator[None]:
        """Processes exchange gradients once a step, with the last part's."""
        if last or not isinstance(self._replica, nn.parallel.DistributedDataParallel):
            yield
            return
        with self._replica.no_sync():
            yield

    def _make_room(self) -> None:
        """After memory ran out: go on without the graph, or where there is none with smaller parts."""
        if self._graph is None or not self._graph.release():
            self._halve()
        self._optimizer.zero_grad()  # gradients that a graph left lie in its memory, which goes with the last of them
        free_cache(self._plan.device)

    def _halve(self) -> None:
        remedy = f"use a smaller {self._plan.section_name}.batch_size, data.image_size or network"
        if distributed.world_size() > 1:
            raise TrainingError(f"{self._plan.role}: out of memory in process {distributed.rank()}", remedy)
        if self.part_size < 2:
            raise TrainingError(f"{self._plan.role}: out of memory with one image at a time", remedy)
        self.part_size = -(-self.part_size // 2)
        console.say(
            f"out of memory: going on with {self.part_size} images at a time; gradients add up to the same batches of"
            f" {self._plan.section.batch_size}, batch statistics are of the parts"
        )

    def state(self) -> dict[str, Any]:
        """What a step depends on and changes, for a checkpoint."""
        return {
            "learner": self._learner.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scheduler": self._scheduler.state_dict(),
            "average": self._average.state_dict() if self._average else None,
            "part_size": self.part_size if self.part_size < self._share_size else None,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self._learner.load_state_dict(state["learner"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scheduler.load_state_dict(state["scheduler"])
        if self._average:
            self._average.load_state_dict(state["average"])
        if state["part_size"] and distributed.world_size() == 1:
            self.part_size = min(state["part_size"], self._share_size)


@torch.no_grad()
def update_average(average: AveragedModel, network: nn.Module) -> None:
    """`average.update_parameters(network)`, which on a GPU waits at every step for its count to get there."""
    own, other = ([*module.parameters(), *module.buffers()] for module in (average.module, network))
    if not average.n_averaged:
        average.update_parameters(network)
        return
    assert average.multi_avg_fn is not None
    for dtype in {values.dtype for values in own}:
        alike = [number for number, values in enumerate(own) if values.dtype == dtype]
        average.multi_avg_fn([own[i] for i in alike], [other[i].detach() for i in alike], average.n_averaged)
    average.n_averaged += 1
