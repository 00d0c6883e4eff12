"""What this machine can really do: cores and memory under cgroups, devices for torch, providers for onnxruntime.

Nothing here believes a list. A device or an execution provider counts once a small computation has run on it.
"""

import contextlib
import ctypes
import functools
import io
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path

from toolkit import console
from toolkit.activity import clock_mhz, load_1m, other_load_cores
from toolkit.cgroups import LITTLE_MEMORY_BYTES as LITTLE_MEMORY_BYTES
from toolkit.cgroups import ROOT
from toolkit.cgroups import available_cores as available_cores
from toolkit.cgroups import memory_bytes as memory_bytes
from toolkit.cgroups import shared_memory_bytes as shared_memory_bytes
from toolkit.errors import DeviceError

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
"""Short name → onnxruntime's name."""

PACKAGES = (
    "torch", "torchvision", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino", "onnxscript", "numpy", "pillow",
    "pydantic", "safetensors", "torchmetrics", "gradio", "typer", "rich", "matplotlib",
)  # fmt: skip
"""Distributions whose versions decide what a run does."""

LIBRARY_OWNERS = {"libcuda.": "the NVIDIA driver", "libnvinfer": "TensorRT", "libcudnn": "cuDNN", "libcu": "CUDA"}
"""Start of a shared library's name → who brings it."""

MIB = 2**20
GIB = 2**30

MALLOPT_TRIM_THRESHOLD, MALLOPT_TOP_PAD, MALLOPT_MMAP_MAX = -1, -2, -4
"""Parameters of mallopt(3)."""
NEVER = -1
"""Value of MALLOPT_TRIM_THRESHOLD: freed memory never goes back, however much it is (a step may need over 2 GiB)."""


def pick_device(name: str) -> str:
    """Turn `auto`, `cpu`, `cuda` or `cuda:N` into a torch device that a small product has really run on.

    `auto` takes the first GPU that works, else the CPU; a GPU that is there and does not work is told on stderr.
    Raises DeviceError for anything that was asked for and cannot run, naming what can.
    """
    if name == "cpu":
        return "cpu"
    devices = torch_devices()
    working = [device for device, reason in devices.items() if not reason]
    if name == "auto":
        gpus = [device for device in working if device != "cpu"]
        broken = {device: reason for device, reason in devices.items() if reason}
        if broken and not gpus:
            told = "; ".join(f"{device}: {reason}" for device, reason in broken.items())
            console.say(f"running on the CPU, the GPU here does not work ({told}); see toolkit doctor")
        return gpus[0] if gpus else "cpu"
    wanted = "cuda:0" if name == "cuda" else name
    if wanted in working:
        return wanted
    what_runs = f"what runs here: {', '.join(working)}"
    if re.fullmatch(r"cuda:\d+", wanted):
        reason = devices.get(wanted) or "torch finds no such GPU"
        raise DeviceError(
            f"device {name} cannot be used: {reason}; {what_runs}", "take one of these, or see toolkit doctor"
        )
    raise DeviceError(f"unknown device {name!r}; {what_runs}", "give auto, cpu, cuda or cuda:N")


@functools.cache
def torch_devices() -> dict[str, str]:
    """Every torch device (`cpu`, `cuda:0`, ...) → "" if it allocated and multiplied, else the reason it does not.

    A GPU that the machine shows (visible_gpus) and torch cannot count stands as `cuda:0` with the reason.
    """
    import torch

    devices = {"cpu": _failure(lambda: _multiply_on("cpu"))}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        for index in range(count):
            devices[f"cuda:{index}"] = _failure(functools.partial(_multiply_on, f"cuda:{index}"))
    if count == 0 and visible_gpus():
        if torch.version.cuda is None:
            devices["cuda:0"] = "this torch is built without CUDA"
        else:
            told = _first_sentence(str(caught[0].message)) if caught else "torch.cuda.is_available() is false"
            devices["cuda:0"] = told
    return devices


def keep_freed_memory() -> None:
    """Let glibc's allocator keep what training frees, so that every step takes the same pages again.

    By default a tensor of more than a few MB is mapped anew, and cleared page by page by the kernel, each time it is
    allocated: that was half of a training step on the CPU. Does nothing where the C library is another.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    for parameter, value in ((MALLOPT_MMAP_MAX, 0), (MALLOPT_TRIM_THRESHOLD, NEVER), (MALLOPT_TOP_PAD, 64 * MIB)):
        libc.mallopt(parameter, value)


def same_imports() -> dict[str, str]:
    """Environment variables with which another Python (-P) finds its modules where this one does."""
    return {"PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}


def working_providers() -> dict[str, str]:
    """Execution providers that onnxruntime lists → "" if a small model truly ran there, else the reason.

    Without Azure's, which every build lists: it runs nothing here, but asks a service on the network.
    """
    import onnxruntime

    listed = onnxruntime.get_available_providers()
    return {provider: probe_provider(provider) for provider in listed if provider != "AzureExecutionProvider"}


@functools.cache
def probe_provider(provider: str) -> str:
    """Run one convolution on `provider` alone (no fallback of any kind); "" if it did, else the reason in words."""
    with _captured_output() as captured:
        reason = _failure(lambda: _convolve_on(provider))
        return _explain(captured(), reason) if reason else ""


def pick_provider(name: str) -> str:
    """Turn `auto`, `cpu`, `cuda` or `tensorrt` into an onnxruntime provider that a small model has really run on.

    `auto` takes CUDA where it runs, else the CPU, and tells on stderr of a GPU that is there and cannot be used;
    TensorRT, slow to start, only when asked for. Raises DeviceError.
    """
    if name == "auto":
        reason = _why_not(PROVIDERS["cuda"])
        if reason and visible_gpus():
            console.say(f"onnxruntime runs on the CPU, not on the GPU here: {reason}; see toolkit doctor")
        return PROVIDERS["cpu"] if reason else PROVIDERS["cuda"]
    if name not in PROVIDERS:
        raise DeviceError(f"unknown provider {name!r}", f"give auto, {', '.join(PROVIDERS)}")
    provider = PROVIDERS[name]
    if reason := _why_not(provider):
        raise DeviceError(f"onnxruntime cannot run on {name}: {reason}", "take cpu or auto, or see toolkit doctor")
    return provider


def preload_gpu_libraries() -> None:
    """Let onnxruntime find CUDA and cuDNN in their wheels; does nothing where there are none."""
    import onnxruntime

    if hasattr(onnxruntime, "preload_dlls"):
        with _captured_output():
            onnxruntime.preload_dlls()


def visible_gpus(root: Path = ROOT) -> list[str]:
    """NVIDIA GPUs that the machine shows, working or not: names from nvidia-smi, else the device files.

    None where CUDA_VISIBLE_DEVICES hides them all: then nobody means to use them.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1"):
        return []
    names = [line.split(",")[0].strip() for line in _ask_nvidia_smi("name")]
    return names or [str(path) for path in sorted((root / "dev").glob("nvidia[0-9]*"))]


def describe_hardware() -> dict[str, object]:
    """What a report says about the machine: cpu, cores, memory_gib, gpu and driver (None where there is no GPU).

    And what it is doing at this moment, None where it does not tell: clock_mhz, load_1m (the load average, this
    process's own work included) and other_load_cores (how many cores other processes keep busy).
    """
    gpus = visible_gpus()
    drivers = _ask_nvidia_smi("driver_version")
    return {
        "cpu": cpu_name(),
        "cores": available_cores(),
        "memory_gib": round(memory_bytes() / GIB, 1),
        "gpu": ", ".join(gpus) or None,
        "driver": drivers[0].strip() if drivers else None,
        "clock_mhz": clock_mhz(),
        "load_1m": load_1m(),
        "other_load_cores": other_load_cores(),
    }


def describe_versions() -> dict[str, str]:
    """Versions of Python, the system, the toolkit and every package of PACKAGES that is installed."""
    from toolkit import __version__

    versions = {"toolkit": __version__, "python": platform.python_version(), "system": platform.platform()}
    versions |= installed_versions(PACKAGES)
    versions.setdefault("onnxruntime", versions.get("onnxruntime-gpu", "not installed"))
    return versions


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Those of `packages` that are installed here, with their versions."""
    versions = {}
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def cpu_name(root: Path = ROOT) -> str:
    try:
        text = (root / "proc" / "cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def _multiply_on(device: str) -> None:
    import torch

    ones = torch.ones(8, 8, device=device)
    if not torch.equal((ones @ ones).cpu(), torch.full((8, 8), 8.0)):
        raise RuntimeError("a small matrix product came out wrong")


def _convolve_on(provider: str) -> None:
    """Average a 4×4 image of ones with a 3×3 kernel; raises unless `provider`, and it alone, did it right."""
    import numpy as np
    import onnxruntime

    preload_gpu_libraries()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if provider != PROVIDERS["cpu"]:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    session = onnxruntime.InferenceSession(tiny_model(), options, providers=[provider], enable_fallback=0)
    if session.get_providers()[0] != provider:
        raise RuntimeError(f"onnxruntime put {session.get_providers()[0]} in its place")
    (averages,) = session.run(None, {"image": np.ones((1, 1, 4, 4), np.float32)})
    if not np.allclose(averages, 1.0, atol=1e-2):
        raise RuntimeError("a small convolution came out wrong")


def tiny_model() -> bytes:
    """An ONNX file of one 3×3 convolution: `image` (1, 1, 4, 4) → `averages` (1, 1, 2, 2), float32."""
    from onnx import TensorProto, helper

    kernel = helper.make_tensor("kernel", TensorProto.FLOAT, [1, 1, 3, 3], [1 / 9] * 9)
    node = helper.make_node("Conv", ["image", "kernel"], ["averages"])
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, 4, 4])
    averages = helper.make_tensor_value_info("averages", TensorProto.FLOAT, [1, 1, 2, 2])
    graph = helper.make_graph([node], "probe", [image], [averages], [kernel])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())


def _why_not(provider: str) -> str:
    """Why onnxruntime cannot run on `provider`, "" if it can."""
    import onnxruntime

    listed = provider in onnxruntime.get_available_providers()
    return probe_provider(provider) if listed else "this onnxruntime is built without it"


def _failure(action: Callable[[], None]) -> str:
    """The message of whatever `action` raises, "" if it ends well. Drivers raise types of their own: all count."""
    try:
        action()
    except Exception as error:
        return _first_sentence(str(error)) or type(error).__name__
    return ""


def _explain(native_log: str, reason: str) -> str:
    """The cause in one phrase: a missing library or a CUDA failure from onnxruntime's own log, else `reason`."""
    missing = re.search(r"(lib[\w.+-]+?): cannot open shared object file", native_log + reason)
    if missing:
        owner = next((owner for start, owner in LIBRARY_OWNERS.items() if missing[1].startswith(start)), "")
        return f"{missing[1]}{f' ({owner})' if owner else ''} is not on this machine"
    failure = re.search(r"CUDA failure \d+: ([^;\n]+)", native_log + reason)
    if failure:
        return f"CUDA says: {failure[1].strip()}"
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", reason)


def _first_sentence(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0].split(". ")[0][:300] if lines else ""


@contextlib.contextmanager
def _captured_output() -> Iterator[Callable[[], str]]:
    """Keep what onnxruntime's C++ writes to stderr, and its Python to stdout, off the screen; yields a reader."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file, contextlib.redirect_stdout(io.StringIO()):
        saved = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield lambda: os.pread(file.fileno(), MIB, 0).decode(errors="replace")
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def _ask_nvidia_smi(field: str) -> list[str]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, f"--query-gpu={field}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.splitlines()
