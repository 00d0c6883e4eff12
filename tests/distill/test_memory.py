"""Errors that mean that memory ran out, by the words of each library, and errors that do not."""

import numpy as np
import pytest
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, RuntimeException

from toolkit.distill.memory import free_cache, is_out_of_memory


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
        torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at ..."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError(
            "CUDA ran out of memory outside PyTorch's allocator. If this workload uses many dynamic shapes, ..."
        ),
        Fail(
            "[ONNXRuntimeError] : 1 : FAIL : /onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc:121 bool"
            " onnxruntime::CudaCall CUDA failure 2: out of memory ; GPU=0 ; hostname=h ; file=cuda_allocator.cc ;"
            " line=76 ; expr=cudaMalloc((void**)&p, size);"
        ),
        RuntimeException(
            "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Gemm node."
            " CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0 ; hostname=h ; expr=cublasCreate(&cublas_handle_);"
        ),
        RuntimeException("Available memory of 1048576 is smaller than requested bytes of 2097152"),
        torch.distributed.DistBackendError(
            "NCCL error in: NCCLUtils.cpp:94, unhandled cuda error\nLast error:\nCuda failure 2 'out of memory'"
        ),
    ],
)
def test_out_of_memory(error: Exception) -> None:
    assert is_out_of_memory(error)


def test_numpy_s_own_error() -> None:
    with pytest.raises(MemoryError) as info:
        np.empty(2**52)
    assert is_out_of_memory(info.value)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ValueError("memory"),
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`"),
        Fail("[ONNXRuntimeError] : 1 : FAIL : CUDA failure 35: CUDA driver version is insufficient ; GPU=0"),
    ],
)
def test_other_errors(error: Exception) -> None:
    assert not is_out_of_memory(error)


def test_memory_that_torch_keeps_is_given_back_on_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    emptied = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(1))
    free_cache("cpu")
    assert not emptied
    free_cache("cuda:0")
    assert emptied


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(
            'captures_underway.empty() INTERNAL ASSERT FAILED at "/pytorch/c10/cuda/CUDACachingAllocator.cpp"'
        ),
        torch.AcceleratorError("CUDA error: operation not permitted when stream is capturing"),
    ],
)
def test_that_torch_refuses_to_after_a_failed_capture_is_no_reason_to_stop(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def refuse() -> None:
        asked.append("to free it")
        raise error

    monkeypatch.setattr(torch.cuda, "empty_cache", refuse)
    free_cache("cuda:0")
    assert asked == ["to free it"]
