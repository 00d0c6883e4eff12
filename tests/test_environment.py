import mmap
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from toolkit import cgroups, environment, tiny_model
from toolkit.errors import DeviceError

GIB = 2**30
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


@pytest.fixture(autouse=True)
def _fresh_probes() -> Iterator[None]:
    probes = (environment.probe_device, environment.probe_provider)  # held: tests put others in their place
    for probe in probes:
        probe.cache_clear()
    yield
    environment._runs_nchw_alone.clear()
    for probe in probes:
        probe.cache_clear()


@pytest.fixture
def sixteen_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))


def write_files(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


CPU_LIMITS = {
    "none": ({"proc/self/cgroup": "0::/\n"}, 16),
    "v2, two and a half cores": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "250000 100000\n"}, 3),
    "v2, no quota": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 16),
    "v2, a tenth of a core": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "10000 100000\n"}, 1),
    "v2, the parent's quota is the lower one": (
        {
            "proc/self/cgroup": "0::/job/step\n",
            "sys/fs/cgroup/job/step/cpu.max": "800000 100000\n",
            "sys/fs/cgroup/job/cpu.max": "400000 100000\n",
        },
        4,
    ),
    "v2, the host's path inside a container": (
        {"proc/self/cgroup": "0::/system.slice/docker-1.scope\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"},
        2,
    ),
    "v1": (
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/docker/1\n0::/\n",
            "sys/fs/cgroup/cpu/docker/1/cpu.cfs_quota_us": "600000\n",
            "sys/fs/cgroup/cpu/docker/1/cpu.cfs_period_us": "100000\n",
        },
        6,
    ),
    "v1, no quota": (
        {
            "proc/self/cgroup": "5:cpu:/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        16,
    ),
    "a quota above the affinity mask": (
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "6400000 100000\n"},
        16,
    ),
    "no /proc": ({}, 16),
}


@pytest.mark.usefixtures("sixteen_cores")
@pytest.mark.parametrize(("files", "cores"), CPU_LIMITS.values(), ids=CPU_LIMITS.keys())
def test_available_cores_honours_cgroups(tmp_path: Path, files: dict[str, str], cores: int) -> None:
    assert cgroups.available_cores(write_files(tmp_path, files)) == cores


def test_available_cores_is_what_this_process_may_use() -> None:
    assert 1 <= environment.available_cores() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("files", "gib"),
    [
        ({}, 8),
        ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/memory.max": "max\n"}, 8),
        ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/memory.max": f"{2 * GIB}\n"}, 2),
        ({"proc/self/cgroup": "4:memory:/a\n", "sys/fs/cgroup/memory/a/memory.limit_in_bytes": f"{3 * GIB}\n"}, 3),
        ({"proc/self/cgroup": "4:memory:/\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2**63 - 4096}\n"}, 8),
    ],
)
def test_memory_is_the_machines_or_the_cgroups_limit(tmp_path: Path, files: dict[str, str], gib: int) -> None:
    write_files(tmp_path, {"proc/meminfo": f"MemTotal:       {8 * GIB // 1024} kB\nMemFree: 1 kB\n", **files})
    assert environment.memory_bytes(tmp_path) == gib * GIB


def test_shared_memory_size(tmp_path: Path) -> None:
    assert environment.shared_memory_bytes(tmp_path) is None
    (tmp_path / "dev" / "shm").mkdir(parents=True)
    assert environment.shared_memory_bytes(tmp_path) == shutil.disk_usage(tmp_path).total


def test_cpu_name_on_x86_and_where_there_is_no_cpuinfo(tmp_path: Path) -> None:
    assert environment.cpu_name(tmp_path)
    write_files(tmp_path, {"proc/cpuinfo": "processor\t: 0\nmodel name\t: Some CPU @ 3 GHz\nflags\t: a b\n"})
    assert environment.cpu_name(tmp_path) == "Some CPU @ 3 GHz"


def test_visible_gpus_from_device_files_and_from_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    write_files(tmp_path, {"dev/nvidiactl": "", "dev/nvidia1": "", "dev/nvidia0": ""})
    assert environment.visible_gpus(tmp_path) == [str(tmp_path / "dev" / "nvidia0"), str(tmp_path / "dev" / "nvidia1")]

    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\ncase $1 in *name) echo 'NVIDIA H200';; *driver_version) echo 580.1;; esac\n")
    program.chmod(0o755)
    assert environment.visible_gpus(tmp_path) == ["NVIDIA H200"]
    assert environment.describe_hardware()["gpu"] == "NVIDIA H200"
    assert environment.describe_hardware()["driver"] == "580.1"

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert environment.visible_gpus(tmp_path) == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")

    program.write_text("#!/bin/sh\necho 'cannot talk to the driver'; exit 9\n")
    assert environment.visible_gpus(tmp_path)[0].endswith("nvidia0")


def test_describe_hardware_has_the_reports_fields() -> None:
    hardware = environment.describe_hardware()
    described = ["cpu", "cores", "memory_gib", "gpu", "driver", "device", "clock_mhz", "load_1m", "other_load_cores"]
    assert list(hardware) == described
    assert hardware["device"] is None
    assert hardware["cores"] == environment.available_cores()
    physical_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    assert isinstance(hardware["memory_gib"], float)
    assert 0 < hardware["memory_gib"] <= physical_gib + 0.1


def test_describe_versions_are_the_installed_ones() -> None:
    versions = environment.describe_versions()
    assert versions["torch"] == metadata.version("torch")
    assert versions["onnxruntime"] == onnxruntime.__version__
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert environment.installed_versions(["numpy", "no-such-package"]) == {"numpy": np.__version__}


def test_describe_hardware_names_the_device_that_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "visible_gpus", lambda: ["NVIDIA T4", "NVIDIA H200"])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: {"cuda:1": "NVIDIA H200"}[device])
    hardware = environment.describe_hardware("cuda:1")
    assert (hardware["gpu"], hardware["device"]) == ("NVIDIA T4, NVIDIA H200", "cuda:1, NVIDIA H200")
    assert environment.describe_hardware("cpu")["device"] == "cpu"


def test_the_cpu_works_as_device() -> None:
    assert environment.probe_device("cpu") == ""
    assert environment.pick_device("cpu") == "cpu"


class Gpus:
    """A machine whose GPUs work or not, by name; `touched` are the devices that something was computed on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **reasons: str) -> None:
        self.reasons = {name.replace("_", ":"): reason for name, reason in reasons.items()}
        self.touched: list[str] = []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(reasons))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(reasons))
        monkeypatch.setattr(environment, "_multiply_on", self.multiply)

    def multiply(self, device: str) -> None:
        self.touched.append(device)
        if reason := self.reasons.get(device):
            raise RuntimeError(f"{reason}\nCompile with ...")


def test_auto_takes_the_first_working_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    gpus = Gpus(monkeypatch, cuda_0="out of memory", cuda_1="", cuda_2="")
    assert environment.pick_device("auto") == "cuda:1"
    assert gpus.touched == ["cuda:0", "cuda:1"]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("name", "device"), [("cuda", "cuda:0"), ("cuda:0", "cuda:0"), ("cuda:2", "cuda:2")])
def test_no_other_gpu_is_touched(monkeypatch: pytest.MonkeyPatch, name: str, device: str) -> None:
    """A context takes some 0.4 GB of a GPU, and is refused where the GPU is another process's alone."""
    gpus = Gpus(monkeypatch, cuda_0="", cuda_1="", cuda_2="")
    assert environment.pick_device(name) == device
    assert gpus.touched == [device]


def test_auto_says_so_when_a_gpu_does_not_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Gpus(monkeypatch, cuda_0="the driver is too old", cuda_1="no kernel image")
    assert environment.pick_device("auto") == "cpu"
    assert "(cuda:0: the driver is too old; cuda:1: no kernel image)" in capsys.readouterr().err


def test_auto_is_silent_without_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    Gpus(monkeypatch)
    monkeypatch.setattr(environment, "visible_gpus", lambda: [])
    assert environment.pick_device("auto") == "cpu"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda", "device cuda cannot be used: the driver is too old; here are: cpu, cuda:0, cuda:1; take another"),
        (
            "cuda:7",
            "device cuda:7 cannot be used: torch finds no such GPU; here are: cpu, cuda:0, cuda:1; take another",
        ),
        ("tpu", "unknown device 'tpu'; give auto, cpu, cuda or cuda:N"),
    ],
)
def test_a_device_that_cannot_run_is_an_error(monkeypatch: pytest.MonkeyPatch, name: str, message: str) -> None:
    gpus = Gpus(monkeypatch, cuda_0="the driver is too old", cuda_1="")
    with pytest.raises(DeviceError) as caught:
        environment.pick_device(name)
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
    monkeypatch.setattr(environment, "visible_gpus", lambda: ["NVIDIA H200"])
    told = "The NVIDIA driver on your system is too old (found 470)"
    assert environment.probe_devices()["cuda:0"] == told
    assert environment.pick_device("auto") == "cpu"
    assert f"(cuda:0: {told})" in capsys.readouterr().err
    with pytest.raises(DeviceError, match=r"device cuda cannot be used: The NVIDIA driver .*; here are: cpu; take"):
        environment.pick_device("cuda")

    monkeypatch.setattr(torch.version, "cuda", None)
    assert environment.probe_devices()["cuda:0"] == "this torch is built without CUDA"


def test_a_gpu_that_torch_counts_and_cannot_use_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    Gpus(monkeypatch, cuda_0="CUDA error: no kernel image is available", cuda_1="")
    assert environment.probe_devices() == {
        "cpu": "",
        "cuda:0": "CUDA error: no kernel image is available",
        "cuda:1": "",
    }


def test_every_device_is_tried_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = Gpus(monkeypatch, cuda_0="")
    assert environment.torch_devices()["cpu"] == ""
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
    monkeypatch.setattr(environment.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(ImportError) as caught:
        environment.torch_devices()
    assert str(caught.value) == reason


def test_a_provider_is_believed_after_it_ran_and_probing_is_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    providers = environment.working_providers()
    listed = onnxruntime.get_available_providers()
    assert list(providers) == [name for name in (CPU, CUDA) if name in listed]
    assert providers[CPU] == ""
    if CUDA in providers and not environment.visible_gpus():
        assert providers[CUDA].endswith("is not on this machine")
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
    assert environment.probe_provider(CUDA) == reason


@pytest.mark.parametrize(("provider", "gpu"), [(CUDA, "0"), (f"{CUDA}:1", "1")])
def test_the_probe_allows_no_fallback(monkeypatch: pytest.MonkeyPatch, provider: str, gpu: str) -> None:
    seen = SimpleNamespace()

    def create(_: bytes, options: onnxruntime.SessionOptions, **kwargs: Any) -> FakeSession:
        seen.fallback = options.get_session_config_entry("session.disable_cpu_ep_fallback")
        seen.kwargs = kwargs
        return FakeSession(CUDA, RIGHT)

    monkeypatch.setattr(onnxruntime, "InferenceSession", create)
    assert environment.probe_provider(provider) == ""
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
    assert environment.probe_provider(gpu) == ""
    assert environment.session_providers(gpu)[0][1]["prefer_nhwc"] == "0"
    assert environment.session_providers(CUDA)[0][1]["prefer_nhwc"] == "1", "another GPU was not tried"


def test_a_gpu_that_runs_in_neither_layout_tells_the_first_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    reasons = iter(["no kernel for NHWC", "no kernel at all"])

    def create(*_: Any, **__: Any) -> FakeSession:
        raise RuntimeError(next(reasons))

    monkeypatch.setattr(onnxruntime, "InferenceSession", create)
    assert environment.probe_provider(CUDA) == "no kernel for NHWC"
    assert environment.session_providers(CUDA)[0][1]["prefer_nhwc"] == "1"


def test_the_wheel_knows_every_option() -> None:
    """An option that its CUDA provider does not know is an error there, and there alone."""
    library = Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"
    if not library.exists():
        pytest.skip("this onnxruntime is built without CUDA")
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for option in ("device_id", "enable_cuda_graph", "HEURISTIC", *environment.CUDA_OPTIONS):
            assert content.find(b"\0" + option.encode() + b"\0") > 0, option


def test_where_a_model_s_operator_has_no_kernel_the_provider_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU's code for Softmax is missing: one convolution would never notice."""

    class NoSoftmax(FakeSession):
        def run(self, *_: Any) -> list[np.ndarray]:
            raise RuntimeError(
                "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Softmax node. Name:'' "
                "Status Message: CUDA failure 209: no kernel image is available for execution on the device ; GPU=0 ;"
                " hostname=x ; file=/onnxruntime_src/softmax.cc ; line=75 ; expr=cudaGetLastError(); "
            )

    monkeypatch.setattr(onnxruntime, "InferenceSession", NoSoftmax(CUDA, RIGHT))
    assert environment.probe_provider(CUDA) == "CUDA says: no kernel image is available for execution on the device"


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
    assert environment._explain(log, reason) == words


def set_providers(monkeypatch: pytest.MonkeyPatch, providers: dict[str, str]) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(providers))
    monkeypatch.setattr(environment, "probe_provider", providers.__getitem__)


def test_pick_provider_takes_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    set_providers(monkeypatch, {CUDA: "", f"{CUDA}:1": "", f"{CUDA}:12": "", CPU: ""})
    for name in ("auto", "auto:0", "cuda", "cuda:0"):
        assert environment.pick_provider(name) == CUDA
    assert environment.pick_provider("auto:1") == environment.pick_provider("cuda:1") == f"{CUDA}:1"
    assert environment.pick_provider("cuda:12") == f"{CUDA}:12"
    set_providers(monkeypatch, {CUDA: "no driver", CPU: ""})
    assert environment.pick_provider("auto") == CPU
    assert environment.pick_provider("cpu") == CPU


def test_a_provider_is_of_one_gpu() -> None:
    assert environment.gpu_index(CPU) is None
    assert environment.session_providers(CPU) == [CPU]
    assert environment.gpu_index(CUDA) == 0
    assert environment.gpu_index(f"{CUDA}:3") == 3
    ((name, options),) = environment.session_providers(f"{CUDA}:3", prefer_nhwc="0", enable_cuda_graph="1")
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
    assert environment.follow_device(provider, device) == followed


@pytest.mark.parametrize(
    ("providers", "reason"),
    [({CUDA: "no cuDNN", CPU: ""}, "no cuDNN"), ({CPU: ""}, "this onnxruntime is built without it")],
)
def test_auto_says_so_when_onnxruntime_leaves_the_gpu_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], providers: dict[str, str], reason: str
) -> None:
    set_providers(monkeypatch, providers)
    monkeypatch.setattr(environment, "visible_gpus", lambda: [])
    assert environment.pick_provider("auto") == CPU
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(environment, "visible_gpus", lambda: ["NVIDIA H200"])
    assert environment.pick_provider("auto") == CPU
    assert f"not on the GPU here: {reason}; see toolkit doctor" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda", "onnxruntime cannot run on cuda: no driver; take cpu or auto, or see toolkit doctor"),
        ("cuda:1", "onnxruntime cannot run on cuda:1: no such GPU; take cpu or auto, or see toolkit doctor"),
        *(
            (name, f"unknown provider '{name}'; give auto, cpu, cuda or cuda:N")
            for name in ("tensorrt", "tpu", "cpu:1", "cuda:", "cuda:x", "")
        ),
    ],
)
def test_a_provider_that_cannot_run_is_an_error(monkeypatch: pytest.MonkeyPatch, name: str, message: str) -> None:
    set_providers(monkeypatch, {CUDA: "no driver", f"{CUDA}:1": "no such GPU", CPU: ""})
    with pytest.raises(DeviceError) as caught:
        environment.pick_provider(name)
    assert message in str(caught.value)


@pytest.mark.gpu
def test_a_gpu_works_in_both_runtimes() -> None:
    if not environment.visible_gpus():
        pytest.skip("no NVIDIA GPU is visible")
    assert environment.pick_device("auto") == "cuda:0"
    assert environment.pick_provider("auto") == CUDA
    assert environment.describe_hardware("cuda:0")["device"] == f"cuda:0, {torch.cuda.get_device_name(0)}"
