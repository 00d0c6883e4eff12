import subprocess
import warnings
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from toolkit.errors import DeviceError
from toolkit.machine import devices, hardware

GIB = 2**30
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


@pytest.fixture(autouse=True)
def _fresh_probes() -> Iterator[None]:
    probe = devices.probe_device  # held: tests put others in its place
    probe.cache_clear()
    yield
    probe.cache_clear()


def test_the_cpu_works_as_device() -> None:
    assert devices.probe_device("cpu") == ""
    assert devices.pick_device("cpu") == "cpu"


class Gpus:
    """A machine whose GPUs work or not, by name; `touched` are the devices that something was computed on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **reasons: str) -> None:
        self.reasons = {name.replace("_", ":"): reason for name, reason in reasons.items()}
        self.touched: list[str] = []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(reasons))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(reasons))
        monkeypatch.setattr(devices, "_multiply_on", self.multiply)

    def multiply(self, device: str) -> None:
        self.touched.append(device)
        if reason := self.reasons.get(device):
            raise RuntimeError(f"{reason}\nCompile with ...")


def test_auto_takes_the_first_working_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    gpus = Gpus(monkeypatch, cuda_0="out of memory", cuda_1="", cuda_2="")
    assert devices.pick_device("auto") == "cuda:1"
    assert gpus.touched == ["cuda:0", "cuda:1"]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("name", "device"), [("cuda", "cuda:0"), ("cuda:0", "cuda:0"), ("cuda:2", "cuda:2")])
def test_no_other_gpu_is_touched(monkeypatch: pytest.MonkeyPatch, name: str, device: str) -> None:
    """A context takes some 0.4 GB of a GPU, and is refused if the GPU belongs to another process alone."""
    gpus = Gpus(monkeypatch, cuda_0="", cuda_1="", cuda_2="")
    assert devices.pick_device(name) == device
    assert gpus.touched == [device]


def test_auto_says_so_when_a_gpu_does_not_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Gpus(monkeypatch, cuda_0="the driver is too old", cuda_1="no kernel image")
    assert devices.pick_device("auto") == "cpu"
    assert "(cuda:0: the driver is too old; cuda:1: no kernel image)" in capsys.readouterr().err


def test_auto_is_silent_without_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    Gpus(monkeypatch)
    monkeypatch.setattr(hardware, "visible_gpus", lambda: [])
    assert devices.pick_device("auto") == "cpu"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda", "device cuda cannot be used: the driver is too old; available: cpu, cuda:0, cuda:1; choose another"),
        (
            "cuda:7",
            "device cuda:7 cannot be used: torch finds no such GPU; available: cpu, cuda:0, cuda:1; choose another",
        ),
        ("tpu", "unknown device 'tpu'; give auto, cpu, cuda or cuda:N"),
    ],
)
def test_a_device_that_cannot_run_is_an_error(monkeypatch: pytest.MonkeyPatch, name: str, message: str) -> None:
    gpus = Gpus(monkeypatch, cuda_0="the driver is too old", cuda_1="")
    with pytest.raises(DeviceError) as caught:
        devices.pick_device(name)
    assert message in str(caught.value)
    assert "cuda:1" not in gpus.touched


def test_a_visible_gpu_that_torch_cannot_count_has_torchs_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def is_available() -> bool:
        warnings.warn("The NVIDIA driver on your system is too old (found 470). Please update.", stacklevel=2)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.setattr(hardware, "visible_gpus", lambda: ["NVIDIA H200"])
    expected = "The NVIDIA driver on your system is too old (found 470)"
    assert devices.probe_devices()["cuda:0"] == expected
    assert devices.pick_device("auto") == "cpu"
    assert f"(cuda:0: {expected})" in capsys.readouterr().err
    with pytest.raises(DeviceError, match=r"device cuda cannot be used: The NVIDIA driver .*; available: cpu; choose"):
        devices.pick_device("cuda")

    monkeypatch.setattr(torch.version, "cuda", None)
    assert devices.probe_devices()["cuda:0"] == "this torch is built without CUDA"


def test_a_gpu_that_torch_counts_and_cannot_use_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    Gpus(monkeypatch, cuda_0="CUDA error: no kernel image is available", cuda_1="")
    assert devices.probe_devices() == {
        "cpu": "",
        "cuda:0": "CUDA error: no kernel image is available",
        "cuda:1": "",
    }


def test_every_device_is_tried_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = Gpus(monkeypatch, cuda_0="")
    assert devices.torch_devices()["cpu"] == ""
    assert gpus.touched == []


@pytest.mark.parametrize(
    ("code", "stderr", "reason"),
    [
        (1, "Traceback\nOSError: libtorch_cuda.so: file too short\n", "OSError: libtorch_cuda.so: file too short"),
        (-11, "", "its process ended with -11"),
    ],
)
def test_a_torch_that_fails_there_is_an_import_error(
    monkeypatch: pytest.MonkeyPatch, code: int, stderr: str, reason: str
) -> None:
    done = subprocess.CompletedProcess([], code, "", stderr)
    monkeypatch.setattr(devices, "subprocess", SimpleNamespace(**vars(subprocess) | {"run": lambda *_, **__: done}))
    with pytest.raises(ImportError) as caught:
        devices.torch_devices()
    assert str(caught.value) == reason


def test_memory_goes_back_for_a_while_only_if_it_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[int, int]] = []
    monkeypatch.setattr(devices, "_set_allocator", calls.append)
    monkeypatch.setattr(devices, "_keeps_freed_memory", False)
    with devices.large_blocks_go_back():
        assert calls == []
    devices.keep_freed_memory()
    with devices.large_blocks_go_back():
        assert calls[-1][devices.MALLOPT_MMAP_MAX] == devices.MMAP_MAX
    assert calls[-1] == calls[0]
    assert calls[0][devices.MALLOPT_MMAP_MAX] == 0
