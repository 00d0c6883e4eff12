"""Errors that mean that memory ran out, and giving unused memory back."""

import contextlib

import torch

WORDS = (
    "can't allocate memory",  # torch's allocator on the CPU
    "could not create a primitive",  # oneDNN, for whose workspace there was no room
    "could not create a memory object",
    "Failed to allocate memory",  # onnxruntime's arena
    "Available memory of ",  # the same, if a limit is set: "... is smaller than requested bytes of ..."
    "CUDA error: out of memory",  # torch, if something other than its allocator asked (AcceleratorError)
    "CUDA ran out of memory outside PyTorch's allocator",  # torch, of cuDNN's kernels
    "CUDA failure 2: out of memory",  # onnxruntime
    "Cuda failure 2 'out of memory'",  # NCCL
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",  # cuDNN 9's name of it
    "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "bad_alloc",
    "bad allocation",
)
"""Words of libraries that have no class of error for it."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocator, of the GPU, the CPU or numpy, had no more to give."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in WORDS)


def free_cache(device: str) -> None:
    """Give the GPU back what torch's allocator keeps for later: libraries with allocators of their own may need it.

    torch frees that memory by itself before it reports that memory ran out. It refuses to while it considers a graph's
    capture unfinished, as after a failed capture. Then nothing is given back, which is no reason to stop.
    """
    if device != "cpu":
        with contextlib.suppress(RuntimeError):
            torch.cuda.empty_cache()
