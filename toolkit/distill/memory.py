"""Telling that memory ran out from every other error."""

import torch

WORDS = (
    "can't allocate memory",  # torch's allocator on the CPU
    "could not create a primitive",  # oneDNN, for whose workspace there was no room
    "could not create a memory object",
    "Failed to allocate memory",  # onnxruntime
    "bad_alloc",
    "bad allocation",
)
"""What libraries say that have no class of error for it."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocator, of the GPU, the CPU or numpy, had no more to give."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in WORDS)
