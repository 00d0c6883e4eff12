"""A step's gradients as one CUDA graph: the host launches some 300 kernels with one call, instead of one by one.

The first steps of a kind run kernel by kernel, in which libraries choose and allocate what they need. Then one is
captured: it computes nothing, and what it launches is written down, with all addresses. A replay launches that again:
it reads the numbers of its images, and the draws of their view, where the captured step did, and leaves gradients and
sums where that one would have. The optimiser is not captured, as its learning rate and momentum are numbers of the
host that change with every step; it takes a handful of launches.
"""

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from toolkit import console
from toolkit.errors import one_line

WARM_UP = 3
"""steps of a kind, one after the other, before it is captured"""
MOST_RELEASES = 2
"""times that memory runs out and a graph goes, before steps do without one"""

Kind = tuple[int, int]
"""Number of images, and px of their side."""
Sums = tuple[Tensor, Tensor]
Body = Callable[[Tensor, int, int], Sums]
"""(indices int64 (B,) on the GPU, view, side in px) → sums of that batch; leaves its gradients in the parameters."""


@dataclass(frozen=True)
class _Capture:
    """A step, and the tensors that it reads or leaves."""

    kind: Kind
    indices: Tensor
    sums: Sums
    gradients: list[Tensor | None]
    replay: Callable[[], None]


class StepGraph:
    """Computes gradients by the graph of the last kind of step that came often enough.

    What comes in between, like an epoch's last and smaller batch, runs kernel by kernel.
    """

    def __init__(self, network: nn.Module) -> None:
        self._parameters = list(network.parameters())
        self._captured: _Capture | None = None
        self._last: Kind | None = None
        self._alike = 0
        self._watched: Kind | None = None
        self._releases = 0
        self._gave_up = False

    def run(self, body: Body, indices: Tensor, view: int, side: int) -> Sums:
        """What `body` gives and leaves: by a replay, where a step of this kind was captured."""
        kind = len(indices), side
        self._alike = self._alike + 1 if kind == self._last else 1
        self._last = kind
        if self._captured is None or kind != self._captured.kind:
            if self._gave_up or self._alike < WARM_UP:
                return body(indices, view, side)
            if kind != self._watched:
                return self._run_watched(body, indices, view, side)
            self._captured = None  # first, as there may be no memory for two
            self._captured = self._capture_or_none(body, indices, view, side)
            if self._captured is None:
                return body(indices, view, side)
        return self._replay(self._captured, indices)

    def release(self) -> bool:
        """After memory ran out: let go of what was captured; whether there was anything.

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

    def _capture_or_none(self, body: Body, indices: Tensor, view: int, side: int) -> _Capture | None:
        own = indices.clone()
        try:
            sums, replay = capture(lambda: body(own, view, side), own.device)
        except Exception as error:
            # the end of a capture that failed fails too; a name for the first error would keep all in its frames
            self._give_up(one_line(error.__context__ or error))
            return None
        gradients = [parameter.grad for parameter in self._parameters]
        return _Capture((len(indices), side), own, sums, gradients, replay)

    def _replay(self, captured: _Capture, indices: Tensor) -> Sums:
        captured.indices.copy_(indices)
        captured.replay()
        for parameter, gradient in zip(self._parameters, captured.gradients, strict=True):
            parameter.grad = gradient  # a step in between left others
        loss_sum, hits = captured.sums
        return loss_sum.clone(), hits.clone()  # the next replay leaves its own in their place

    def _give_up(self, reason: str) -> None:
        self._gave_up = True
        console.say(f"steps run kernel by kernel, not as one CUDA graph: {reason}")


def capture(work: Callable[[], Sums], device: torch.device) -> tuple[Sums, Callable[[], None]]:
    """Where `work` leaves its sums at each call of the second; until the first of them they hold nothing."""
    with torch.cuda.device(device):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=_capture_stream(device), capture_error_mode="thread_local"):
            sums = work()
    return sums, graph.replay


@functools.cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """The same for every capture on `device`: cuBLAS keeps memory of its own, tens of MB, for each stream it ran on."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def watch(work: Callable[[], Sums]) -> tuple[Sums, bool]:
    """What `work` returns, and whether the host waited for the GPU in it.

    Such work cannot be captured, and an attempt that fails may leave torch's allocator unable to give memory back.
    """
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            sums = work()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return sums, any("synchronizing CUDA operation" in str(warning.message) for warning in told)
