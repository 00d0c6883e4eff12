"""Several processes, started by torchrun, that train one network together; in one alone, functions here do nothing.

R processes, N images of a split. Collectives run over nccl between GPUs and over gloo between CPUs.
"""

import atexit
import contextlib
import gc
import os
import signal
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from toolkit.data.batches import Items

Value = TypeVar("Value")

WAIT = timedelta(hours=12)
"""limit of a wait in a collective: one process may decode a whole data set while the others wait, and a large set takes
longer than nccl's default of ten minutes. torchrun ends the processes that wait for one that has failed."""
PART_SECONDS = 30.0
"""s that a process waits for the others before it ends; as long as torchrun waits before it kills"""

_all_at_the_end = threading.Event()
"""Set once `part` has found that every process is at its end."""


def launched() -> bool:
    """Whether torchrun, or something like it, started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0")) if launched() else 0


def processes_here() -> int:
    """The number of processes that share this machine's cores."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if launched() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the one process that writes and prints."""
    return rank() == 0


def join(device: str) -> None:
    """Join the processes that torchrun started, until this one ends."""
    if not launched() or dist.is_initialized():
        return
    gpu = None if device == "cpu" else torch.device(device)
    if gpu is not None:
        torch.cuda.set_device(gpu)
    dist.init_process_group("gloo" if gpu is None else "nccl", timeout=WAIT, device_id=gpu)
    atexit.register(_leave)


def part() -> None:
    """Wait for the others, at the normal end of a process, so that none of them asks a process that is gone.

    Processes that are through may be gone while this one still waits: from here on that is no error. They meet in the
    store and not in a barrier. If nccl's barrier times out, its watchdog ends the process with SIGABRT, and torch keeps
    a kernel without an answer.
    """
    if (group := dist.group.WORLD) is not None:
        with contextlib.suppress(RuntimeError):
            store = group.get_group_store()
            if store.add("at the end", 1) == world_size():
                store.set("all at the end", "")
            store.wait(["all at the end"], timedelta(seconds=PART_SECONDS))
            _all_at_the_end.set()


def is_peer_lost(error: BaseException) -> bool:
    """Whether a collective failed because another process has ended, as far as gloo and nccl report it."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _leave() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # torchrun ends the remaining processes as soon as one has failed
        signal.signal(number, signal.SIG_IGN)
    gc.collect()  # DistributedDataParallel is part of cycles and holds on to the group, whose threads must end first
    group = dist.group.WORLD
    if group is not None and dist.get_backend() == "nccl" and not _all_at_the_end.is_set():
        group.abort()  # destroying would wait for kernels that a process which failed never answers
    else:
        dist.destroy_process_group()


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


@contextlib.contextmanager
def leader_first() -> Iterator[None]:
    """One process of each machine does what follows before the others do, who then find it done."""
    if local_rank() != 0:
        barrier()
    yield
    if local_rank() == 0:
        barrier()


def least_batch() -> int:
    """Labelled images that every batch must have: batch statistics need two images in each process."""
    return 2 * world_size()


def agree(value: Value) -> Value:
    """The main process's `value`, in every process."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def add_up(tensor: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def greatest(tensor: Tensor) -> Tensor:
    """The maximum over all processes, in place."""
    if world_size() > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor


def own_share(items: Items) -> Items:
    """Every R-th item, from this process's rank on; all processes together have each item once."""
    return cast(Items, items[rank() :: world_size()])


def gather_shares(share: Tensor, count: int) -> Tensor:
    """The rows (count, ...) of which every process holds `own_share`, complete in each of them."""
    size = world_size()
    if size == 1:
        return share
    longest = -(-count // size)
    padded = share.new_zeros((longest, *share.shape[1:]))
    padded[: len(share)] = share
    parts = [torch.empty_like(padded) for _ in range(size)]
    dist.all_gather(parts, padded)
    return torch.stack(parts, dim=1).flatten(0, 1)[:count]


def replicate(network: nn.Module, device: str) -> nn.Module:
    """`network` under DistributedDataParallel; alone, as it is."""
    if world_size() == 1:
        return network
    from torch.nn.parallel import DistributedDataParallel

    # Batch statistics are the same everywhere (synchronize_batch_norms), so buffers need not be sent about.
    ids = None if device == "cpu" else [torch.device(device).index]
    return DistributedDataParallel(network, device_ids=ids, forward_sync_buffers=False, gradient_as_bucket_view=True)


def synchronize_batch_norms(network: nn.Module, device: str) -> nn.Module:
    """Let batch statistics be those of the whole batch, not of a process's share of it; alone, nothing changes."""
    if world_size() == 1:
        return network
    if device != "cpu":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        return converted
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm):
                setattr(module, name, _BatchNormOverProcesses.of(child))
    return network


class _BatchNormOverProcesses(_BatchNorm):
    """torch's SyncBatchNorm runs on GPUs only; this one does the same sums over gloo, for inputs (N, C, ...)."""

    @classmethod
    def of(cls, norm: _BatchNorm) -> "_BatchNormOverProcesses":
        twin = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        twin.__dict__.update(norm.__dict__)
        return twin

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        values, channels = input.to(torch.promote_types(input.dtype, torch.float32)), input.shape[1]
        # float64, as the variance is the small difference of large numbers if the mean is far from 0
        others, of_channel = (0, *range(2, input.ndim)), (1, -1, *(1 for _ in input.shape[2:]))
        sums = [part.sum(others, dtype=torch.float64) for part in (values, values.square())]
        count = sums[0].new_tensor([values.numel() / channels])
        total: Tensor = _SumOverProcesses.apply(torch.cat([*sums, count]))
        mean = total[:channels] / total[-1]
        variance = (total[channels:-1] / total[-1] - mean.square()).clamp_min(0)
        self._follow(mean, variance, total[-1])
        scale = torch.rsqrt(variance + self.eps).to(values.dtype) * (1 if self.weight is None else self.weight)
        normed = (values - mean.to(values.dtype).view(of_channel)) * scale.view(of_channel)
        return (normed + (0 if self.bias is None else self.bias.view(of_channel))).to(input.dtype)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of them, as the norm that it stands for has looked."""

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Move the running statistics as torch's batch norms do, with the unbiased variance."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = self.momentum if self.momentum is not None else 1 / self.num_batches_tracked.item()
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var.dtype), momentum)


class _SumOverProcesses(torch.autograd.Function):
    """all_reduce; its gradient is the sum of the gradients of all processes."""

    @staticmethod
    def forward(ctx: object, tensor: Tensor) -> Tensor:
        return add_up(tensor.clone())

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return add_up(gradient.clone())
