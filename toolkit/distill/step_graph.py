"""A step as one CUDA graph: the host launches some 300 kernels with one call, instead of one by one.

The first steps of a kind run kernel by kernel; in them, libraries choose and allocate what they need. Then one is
captured: it computes nothing, but its launches are written down, with all addresses. A replay launches the same again.
It takes the next images of the epoch's order and reads the draws of their view. It leaves new weights, optimiser's
state, average and sums at the addresses of the captured step. Counters on the GPU say which images and which learning
rate come next.
"""

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from toolkit import console
from toolkit.errors import one_line

WARM_UP = 3
"""steps of a kind, one after the other, before it is captured"""
MOST_RELEASES = 2
"""times that memory runs out and a graph goes, before steps do without one"""

Kind = tuple[int, int, int]
"""Number of images of a step, number of images in the order that it takes them from, and their side in px."""
Sums = tuple[Tensor, Tensor]
Body = Callable[[Tensor, int, int], Sums]
"""(indices int64 (B,) on the GPU, view, side in px) → sums of that batch; leaves its gradients in the parameters."""


class Order:
    """The order that a captured step takes B images from, and its place in that order. Their addresses never change.

    `_source` is the tensor that was copied last. It is kept, so that no other tensor can be taken for it.
    """

    def __init__(self, indices: Tensor) -> None:
        self._source = _whole(indices)
        self._images = self._source.clone()
        self._next = indices.storage_offset()
        self._place = torch.full((1,), self._next, device=indices.device)
        self._offsets = torch.arange(len(indices), device=indices.device)

    def take(self) -> Tensor:
        """int64 (B,), the next images, found by the GPU alone."""
        chosen = self._images.index_select(0, self._place + self._offsets)
        self._place.add_(len(self._offsets))
        return chosen

    def seek(self, indices: Tensor) -> None:
        """Let `indices` come next. If they follow the last ones in the present order, there is nothing to do."""
        whole, place = _whole(indices), indices.storage_offset()
        if whole is not self._source:
            self._images.copy_(whole)
            self._source = whole
        if place != self._next:
            self._place.fill_(place)
        self._next = place + len(indices)


def _whole(indices: Tensor) -> Tensor:
    """int64 (N,): the order that a batch is a slice of, without gaps, or the batch itself."""
    return indices if indices._base is None else indices._base


@dataclass(frozen=True)
class _Capture:
    """A step, and the tensors that it reads or leaves."""

    kind: Kind
    order: Order
    sums: Sums
    replay: Callable[[], None]


class StepGraph:
    """Takes steps by the graph of the last kind that came often enough.

    Steps in between, such as an epoch's last and smaller batch, run kernel by kernel. `update` is what a step does
    with its gradients; it reads nothing of the host's that changes.
    """

    def __init__(self, update: Callable[[], None]) -> None:
        self._update = update
        self._captured: _Capture | None = None
        self._last: Kind | None = None
        self._alike = 0
        self._watched: Kind | None = None
        self._releases = 0
        self._gave_up = False

    def run(self, body: Body, indices: Tensor, view: int, side: int) -> tuple[Sums, bool]:
        """The sums of `body` and False; or, if a step of this kind was captured, the sums of its replay and True.

        A replay includes the update. Otherwise the caller updates, so that memory can run out in the body alone.
        """
        kind = len(indices), len(_whole(indices)), side
        self._alike = self._alike + 1 if kind == self._last else 1
        self._last = kind
        if self._captured is None or kind != self._captured.kind:
            if self._gave_up or self._alike < WARM_UP:
                return body(indices, view, side), False
            if kind != self._watched:
                return self._run_watched(body, indices, view, side), False
            self._captured = None  # first, as there may be no memory for two
            self._captured = self._capture_or_none(kind, body, indices, view)
            if self._captured is None:
                return body(indices, view, side), False
        return self._replay(self._captured, indices), True

    def release(self) -> bool:
        """After memory ran out: free the captured step; returns whether there was one.

        A smaller batch in between may have needed the room just once, so steps may be captured again. They warm up
        first: the next ones may be in smaller parts.
        """
        self._alike, self._watched = 0, None
        if self._captured is None:
            return False
        self._captured = None
        self._releases += 1
        if self._releases < MOST_RELEASES:
            console.say("out of memory: going on without the CUDA graph of a step; it is captured once more later")
        else:
            self._give_up("there is no memory for it")
        return True

    def _run_watched(self, body: Body, indices: Tensor, view: int, side: int) -> Sums:
        sums, waits = watch(lambda: body(indices, view, side))
        self._watched = self._last
        if waits:
            self._give_up("the host waits for the GPU within a step")
        return sums

    def _capture_or_none(self, kind: Kind, body: Body, indices: Tensor, view: int) -> _Capture | None:
        order, side = Order(indices), kind[-1]
        update = self._update

        def step() -> Sums:
            sums = body(order.take(), view, side)
            update()
            return sums

        try:
            sums, replay = capture(step, indices.device)
        except Exception as error:
            # the end of a capture that failed fails too; a name for the first error would keep all in its frames
            self._give_up(one_line(error.__context__ or error))
            return None
        return _Capture(kind, order, sums, replay)

    def _replay(self, captured: _Capture, indices: Tensor) -> Sums:
        captured.order.seek(indices)
        captured.replay()
        loss_sum, hits = captured.sums
        return loss_sum.clone(), hits.clone()  # the next replay leaves its own in their place

    def _give_up(self, reason: str) -> None:
        self._gave_up = True
        console.say(f"steps run kernel by kernel, not as one CUDA graph: {reason}")


def capture(work: Callable[[], Sums], device: torch.device) -> tuple[Sums, Callable[[], None]]:
    """The tensors of `work`'s sums, and a replay. Each call of it fills them; before the first they hold nothing."""
    with torch.cuda.device(device):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=_capture_stream(device), capture_error_mode="thread_local"):
            sums = work()
    return sums, graph.replay


@functools.cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """One stream for all captures on `device`: cuBLAS keeps tens of MB of its own for each stream that it ran on."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def watch(work: Callable[[], Sums]) -> tuple[Sums, bool]:
    """The result of `work`, and whether the host waited for the GPU in it.

    Such work cannot be captured, and an attempt that fails may leave torch's allocator unable to give memory back.
    """
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            sums = work()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return sums, any("synchronizing CUDA operation" in str(warning.message) for warning in caught)
