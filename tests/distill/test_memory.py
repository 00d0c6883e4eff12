"""What counts as memory that ran out, by the words of each library, and what does not."""

import numpy as np
import pytest
import torch

from toolkit.distill.memory import is_out_of_memory


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 18014398509481984 bytes."),
        RuntimeError("could not create a primitive"),
        MemoryError(),
        Exception(
            "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory for requested buffer of size"
        ),
    ],
)
def test_out_of_memory(error: Exception) -> None:
    assert is_out_of_memory(error)


def test_numpy_s_own_error() -> None:
    with pytest.raises(MemoryError) as info:
        np.empty(2**52)
    assert is_out_of_memory(info.value)


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("memory")])
def test_other_errors(error: Exception) -> None:
    assert not is_out_of_memory(error)
