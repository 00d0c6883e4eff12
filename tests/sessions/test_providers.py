import mmap
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from toolkit.errors import DeviceError
from toolkit.machine import devices, hardware
from toolkit.sessions import providers, tiny_model

GIB = 2**30
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


@pytest.fixture(autouse=True)
def _fresh_probes() -> Iterator[None]:
    probe = providers.probe_provider  # held: tests put others in its place
    probe.cache_clear()
    yield
    providers._runs_nchw_alone.clear()
    probe.cache_clear()


def test_a_provider_is_believed_after_it_ran_and_probing_is_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    found = providers.working_providers()
    listed = onnxruntime.get_available_providers()
    assert list(found) == [name for name in (CPU, CUDA) if name in listed]
    assert found[CPU] == ""
    if CUDA in found and not hardware.visible_gpus():
        assert found[CUDA].endswith("is not on this machine")
    assert capfd.readouterr() == ("", "")


class FakeSession:
    """Stands for a session that came up on another provider, or computes wrongly."""

    def __init__(self, provider: str, probabilities: Any) -> None:
        self.provider, self.probabilities = provider, probabilities

    def __call__(self, *_: Any, **__: Any) -> "FakeSession":
        return self

    def get_providers(self) -> list[str]:
        return [self.provider]

    def run(self, *_: Any) -> list[np.ndarray]:
        return [np.array(self.probabilities, np.float32)]


RIGHT = tiny_model.PROBABILITIES


@pytest.mark.parametrize(
    ("session", "reason"),
    [
        (FakeSession(CUDA, RIGHT), ""),
        (FakeSession(CPU, RIGHT), f"onnxruntime put {CPU} in its place"),
        (FakeSession(CUDA, np.full((2, 3), 1 / 3)), "a small classifier's answer came out wrong"),
        (FakeSession(CUDA, np.full((2, 3), np.nan)), "a small classifier's answer came out wrong"),
    ],
)
def test_a_provider_must_be_itself_and_be_right(
    monkeypatch: pytest.MonkeyPatch, session: FakeSession, reason: str
) -> None:
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    assert providers.probe_provider(CUDA) == reason


@pytest.mark.parametrize(("provider", "gpu"), [(CUDA, "0"), (f"{CUDA}:1", "1")])
def test_the_probe_allows_no_fallback(monkeypatch: pytest.MonkeyPatch, provider: str, gpu: str) -> None:
    seen = SimpleNamespace()

    def create(_: bytes, options: onnxruntime.SessionOptions, **kwargs: Any) -> FakeSession:
        seen.fallback = options.get_session_config_entry("session.disable_cpu_ep_fallback")
        seen.kwargs = kwargs
        return FakeSession(CUDA, RIGHT)

    monkeypatch.setattr(onnxruntime, "InferenceSession", create)
    assert providers.probe_provider(provider) == ""
    assert seen.fallback == "1"
    options = {"device_id": gpu, "cudnn_conv_algo_search": "HEURISTIC", "prefer_nhwc": "1", "use_tf32": "0"}
    assert seen.kwargs == {"providers": [(CUDA, options)], "enable_fallback": 0}


def test_a_gpu_without_kernels_for_nhwc_runs_in_nchw(monkeypatch: pytest.MonkeyPatch) -> None:
    def create(_: bytes, __: onnxruntime.SessionOptions, providers: Any, **___: Any) -> FakeSession:
        if providers[0][1]["prefer_nhwc"] == "1":
            raise RuntimeError("[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Failed to find kernel for Conv")
        return FakeSession(CUDA, RIGHT)

    monkeypatch.setattr(onnxruntime, "InferenceSession", create)
    gpu = f"{CUDA}:1"
    assert providers.probe_provider(gpu) == ""
    assert providers.session_providers(gpu)[0][1]["prefer_nhwc"] == "0"
    assert providers.session_providers(CUDA)[0][1]["prefer_nhwc"] == "1", "another GPU was not tried"


def test_a_gpu_that_runs_in_no_layout_gives_the_first_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    reasons = iter(["no kernel for NHWC", "no kernel at all"])

    def create(*_: Any, **__: Any) -> FakeSession:
        raise RuntimeError(next(reasons))

    monkeypatch.setattr(onnxruntime, "InferenceSession", create)
    assert providers.probe_provider(CUDA) == "no kernel for NHWC"
    assert providers.session_providers(CUDA)[0][1]["prefer_nhwc"] == "1"


def test_the_wheel_knows_every_option() -> None:
    """An option that its CUDA provider does not know is an error there, and there alone."""
    library = Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"
    if not library.exists():
        pytest.skip("this onnxruntime is built without CUDA")
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for option in ("device_id", "enable_cuda_graph", "HEURISTIC", *providers.CUDA_OPTIONS):
            assert content.find(b"\0" + option.encode() + b"\0") > 0, option


def test_if_a_model_s_operator_has_no_kernel_the_provider_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU's code for Softmax is missing: one convolution would never notice."""

    class NoSoftmax(FakeSession):
        def run(self, *_: Any) -> list[np.ndarray]:
            raise RuntimeError(
                "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Softmax node. Name:'' "
                "Status Message: CUDA failure 209: no kernel image is available for execution on the device ; GPU=0 ;"
                " hostname=x ; file=/onnxruntime_src/softmax.cc ; line=75 ; expr=cudaGetLastError(); "
            )

    monkeypatch.setattr(onnxruntime, "InferenceSession", NoSoftmax(CUDA, RIGHT))
    assert providers.probe_provider(CUDA) == "CUDA says: no kernel image is available for execution on the device"


@pytest.mark.parametrize(
    ("log", "reason", "words"),
    [
        (
            "Failed to load library providers_cuda.so with error: libcudnn.so.9: cannot open shared object file",
            "This session contains graph nodes",
            "libcudnn.so.9 (cuDNN) is not on this machine",
        ),
        (
            "error: libcurand.so.10: cannot open shared object file",
            "",
            "libcurand.so.10 (CUDA) is not on this machine",
        ),
        ("error: libfoo.so.1: cannot open shared object file", "", "libfoo.so.1 is not on this machine"),
        (
            "",
            "CUDA failure 100: no CUDA-capable device is detected ; GPU=-1 ; hostname=x",
            "CUDA says: no CUDA-capable device is detected",
        ),
        (
            "",
            "[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Non-zero status code returned while running Conv node. Name:''"
            " Status Message: cuDNN is not available. Install cuDNN, update the system library search path, or set"
            " enable_cudnn=0 to force native CUDA paths where available.",
            "cuDNN is not on this machine",
        ),
        (
            "[W:onnxruntime] cuDNN is unavailable for CUDA Execution Provider: cuDNN library was not found",
            "a small classifier's answer came out wrong",
            "cuDNN is not on this machine",
        ),
        (
            "",
            "Non-zero status code returned while running Conv node. Name:'c' Status Message: CUDNN failure 5003:"
            " CUDNN_STATUS_EXECUTION_FAILED_CUDA_DRIVER ; GPU=0 ; hostname=x ; file=conv.cc ; line=9 ; expr=x; ",
            "CUDNN says: CUDNN_STATUS_EXECUTION_FAILED_CUDA_DRIVER",
        ),
        (
            "",
            "Non-zero status code returned while running Add node. Name:'a' Status Message: add.cc:5 odd. Details",
            "add.cc:5 odd",
        ),
        ("", "[ONNXRuntimeError] : 1 : FAIL : something else", "something else"),
    ],
)
def test_reasons_come_in_words(log: str, reason: str, words: str) -> None:
    assert providers._explain(log, RuntimeError(reason)) == words


def set_providers(monkeypatch: pytest.MonkeyPatch, reasons: dict[str, str]) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(reasons))
    monkeypatch.setattr(providers, "probe_provider", reasons.__getitem__)


def test_pick_provider_takes_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    set_providers(monkeypatch, {CUDA: "", f"{CUDA}:1": "", f"{CUDA}:12": "", CPU: ""})
    for name in ("auto", "auto:0", "cuda", "cuda:0"):
        assert providers.pick_provider(name) == CUDA
    assert providers.pick_provider("auto:1") == providers.pick_provider("cuda:1") == f"{CUDA}:1"
    assert providers.pick_provider("cuda:12") == f"{CUDA}:12"
    set_providers(monkeypatch, {CUDA: "no driver", CPU: ""})
    assert providers.pick_provider("auto") == CPU
    assert providers.pick_provider("cpu") == CPU


def test_a_provider_is_of_one_gpu() -> None:
    assert providers.gpu_index(CPU) is None
    assert providers.session_providers(CPU) == [CPU]
    assert providers.gpu_index(CUDA) == 0
    assert providers.gpu_index(f"{CUDA}:3") == 3
    ((name, options),) = providers.session_providers(f"{CUDA}:3", prefer_nhwc="0", enable_cuda_graph="1")
    assert name == CUDA
    assert (options["device_id"], options["prefer_nhwc"], options["enable_cuda_graph"]) == ("3", "0", "1")
    assert options["use_tf32"] == "0"


@pytest.mark.parametrize(
    ("provider", "device", "followed"),
    [
        ("auto", "cuda:1", "auto:1"),
        ("cuda", "cuda:1", "cuda:1"),
        ("cuda:2", "cuda:1", "cuda:2"),
        ("cpu", "cuda:1", "cpu"),
        ("auto", "cpu", "auto"),
        ("cuda", "auto", "cuda"),
    ],
)
def test_onnxruntime_follows_torch_to_its_gpu(provider: str, device: str, followed: str) -> None:
    assert providers.follow_device(provider, device) == followed


@pytest.mark.parametrize(
    ("reasons", "reason"),
    [({CUDA: "no cuDNN", CPU: ""}, "no cuDNN"), ({CPU: ""}, "this onnxruntime is built without it")],
)
def test_auto_says_so_when_onnxruntime_leaves_the_gpu_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], reasons: dict[str, str], reason: str
) -> None:
    set_providers(monkeypatch, reasons)
    monkeypatch.setattr(hardware, "visible_gpus", lambda: [])
    assert providers.pick_provider("auto") == CPU
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(hardware, "visible_gpus", lambda: ["NVIDIA H200"])
    assert providers.pick_provider("auto") == CPU
    assert f"not on the GPU here: {reason}; see toolkit doctor" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda", "onnxruntime cannot run on cuda: no driver; use cpu or auto, or see toolkit doctor"),
        ("cuda:1", "onnxruntime cannot run on cuda:1: no such GPU; use cpu or auto, or see toolkit doctor"),
        *(
            (name, f"unknown provider '{name}'; give auto, cpu, cuda or cuda:N")
            for name in ("tensorrt", "tpu", "cpu:1", "cuda:", "cuda:x", "")
        ),
    ],
)
def test_a_provider_that_cannot_run_is_an_error(monkeypatch: pytest.MonkeyPatch, name: str, message: str) -> None:
    set_providers(monkeypatch, {CUDA: "no driver", f"{CUDA}:1": "no such GPU", CPU: ""})
    with pytest.raises(DeviceError) as caught:
        providers.pick_provider(name)
    assert message in str(caught.value)


@pytest.mark.gpu
def test_a_gpu_works_in_both_runtimes() -> None:
    if not hardware.visible_gpus():
        pytest.skip("no NVIDIA GPU is visible")
    assert devices.pick_device("auto") == "cuda:0"
    assert providers.pick_provider("auto") == CUDA
    assert hardware.describe_hardware("cuda:0")["device"] == f"cuda:0, {torch.cuda.get_device_name(0)}"
