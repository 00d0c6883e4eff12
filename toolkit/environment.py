"""What this machine can really do: cores and memory under cgroups, devices for torch, providers for onnxruntime.

Nothing here believes a list. A device or an execution provider counts once a small computation has run on it.
"""

import contextlib
import ctypes
import functools
import io
import json
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
from typing import Any, Literal

from toolkit import console
from toolkit.activity import clock_mhz, load_1m, other_load_cores
from toolkit.cgroups import LITTLE_MEMORY_BYTES as LITTLE_MEMORY_BYTES
from toolkit.cgroups import ROOT
from toolkit.cgroups import available_cores as available_cores
from toolkit.cgroups import memory_bytes as memory_bytes
from toolkit.cgroups import shared_memory_bytes as shared_memory_bytes
from toolkit.errors import DeviceError

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
"""Short name → onnxruntime's name."""

CUDA_OPTIONS = {
    # the default tries every algorithm of a convolution for each new shape, for up to a second
    "cudnn_conv_algo_search": "HEURISTIC",
    # the layout of tensor cores; else cuDNN turns the data around each convolution
    "prefer_nhwc": "1",
    # the default rounds the products of float32 networks to 10 bits
    "use_tf32": "0",
}
"""What onnxruntime's CUDA provider is asked for."""

_runs_nchw_alone: set[str] = set()
"""GPUs on which the small model ran without `prefer_nhwc` alone."""

PACKAGES = (
    "torch", "torchvision", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino", "onnxscript", "numpy", "pillow",
    "pydantic", "safetensors", "torchmetrics", "gradio", "typer", "rich", "matplotlib",
)  # fmt: skip
"""Distributions whose versions decide what a run does."""

LIBRARY_OWNERS = {"libcuda.": "the NVIDIA driver", "libcudnn": "cuDNN", "libcu": "CUDA"}
"""Start of a shared library's name → who brings it."""

MIB = 2**20
GIB = 2**30

MALLOPT_TRIM_THRESHOLD, MALLOPT_TOP_PAD, MALLOPT_MMAP_MAX = -1, -2, -4
"""Parameters of mallopt(3)."""
NEVER = -1
"""Value of MALLOPT_TRIM_THRESHOLD: freed memory never goes back, however much it is (a step may need over 2 GiB)."""


def pick_device(name: str) -> str:
    """Turn `auto`, `cpu`, `cuda` or `cuda:N` into a torch device that a small product has really run on.

    Only the GPU that was asked for is touched. `auto` takes the first GPU that works, else the CPU; a GPU that is there
    and does not work is told on stderr. Raises DeviceError for anything that was asked for and cannot run.
    """
    if name == "cpu":
        return "cpu"
    if name == "auto":
        return _first_working_gpu() or "cpu"
    wanted = "cuda:0" if name == "cuda" else name
    if not re.fullmatch(r"cuda:\d+", wanted):
        raise DeviceError(f"unknown device {name!r}", "give auto, cpu, cuda or cuda:N")
    gpus, reason = _list_gpus()
    reason = probe_device(wanted) if wanted in gpus else reason or "torch finds no such GPU"
    if reason:
        here = ", ".join(["cpu", *gpus])
        raise DeviceError(
            f"device {name} cannot be used: {reason}; here are: {here}",
            "take another of these, or see toolkit doctor, which tries them all",
        )
    return wanted


def torch_devices() -> dict[str, str]:
    """What `probe_devices` finds in a process of its own: the memory that it takes on every GPU goes with it.

    Raises ImportError where that process fails, as it does if torch cannot be imported.
    """
    code = "import json; from toolkit import environment; print(json.dumps(environment.probe_devices()))"
    environment = os.environ | same_imports()
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, env=environment)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise ImportError(lines[-1] if lines else f"its process ended with {done.returncode}")
    devices: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return devices


def probe_devices() -> dict[str, str]:
    """Every torch device (`cpu`, `cuda:0`, ...) → "" if it allocated and multiplied, else the reason it does not.

    Each GPU gives some 0.4 GB to this process for good. A GPU that the machine shows (visible_gpus) and torch cannot
    count stands as `cuda:0` with the reason.
    """
    gpus, reason = _list_gpus()
    return {device: probe_device(device) for device in ("cpu", *gpus)} | ({"cuda:0": reason} if reason else {})


@functools.cache
def probe_device(device: str) -> str:
    """Multiply on one torch device; "" if it did, else the reason in words. No other GPU is touched."""
    return _failure(lambda: _multiply_on(device))


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


@contextlib.contextmanager
def fp32_products_in(precision: Literal["ieee", "tf32"]) -> Iterator[None]:
    """While it lasts, a GPU multiplies float32 as it is (ieee), or rounded to 10 bits (tf32).

    That goes for convolutions and matrices; by default torch rounds for convolutions alone.
    """
    import torch

    settings: tuple[Any, ...] = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]
    before = [setting.fp32_precision for setting in settings]
    try:
        for setting in settings:
            setting.fp32_precision = precision
        yield
    finally:
        for setting, precision_before in zip(settings, before, strict=True):
            setting.fp32_precision = precision_before


def same_imports() -> dict[str, str]:
    """Environment variables with which another Python (-P) finds its modules where this one does."""
    return {"PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}


def working_providers() -> dict[str, str]:
    """Those of PROVIDERS that onnxruntime lists → "" if a small model truly ran there, else the reason."""
    import onnxruntime

    listed = onnxruntime.get_available_providers()
    return {provider: probe_provider(provider) for provider in PROVIDERS.values() if provider in listed}


@functools.cache
def probe_provider(provider: str) -> str:
    """Run tiny_model.py's classifier on `provider` alone (no fallback of any kind); "" if it did, else the reason.

    `provider` is a name as `pick_provider` gives it. A GPU that fails is tried once more without `prefer_nhwc`, for
    which some operators have no kernel on some GPUs; it goes without for the rest of the process where that runs.
    """
    reason = _reason_not_to_answer(provider)
    if reason and gpu_index(provider) is not None:
        _runs_nchw_alone.add(provider)
        if not _reason_not_to_answer(provider):
            return ""
        _runs_nchw_alone.remove(provider)
    return reason


def pick_provider(name: str) -> str:
    """Turn `auto`, `cpu`, `cuda` or `cuda:N` into an onnxruntime provider that a small model has really run on.

    GPU 0 is `CUDAExecutionProvider`, GPU N `CUDAExecutionProvider:N`. `auto` (`auto:N`) takes CUDA where it runs, else
    the CPU, and tells on stderr of a GPU that is there and cannot be used. Raises DeviceError.
    """
    found = re.fullmatch(r"(?:auto|cuda)(?::(\d+))?|cpu", name)
    if not found:
        raise DeviceError(f"unknown provider {name!r}", "give auto, cpu, cuda or cuda:N")
    gpu = int(found[1] or 0)
    provider = PROVIDERS["cpu"] if name == "cpu" else f"{PROVIDERS['cuda']}:{gpu}".removesuffix(":0")
    reason = _why_not(provider)
    if reason and not name.startswith("auto"):
        raise DeviceError(f"onnxruntime cannot run on {name}: {reason}", "take cpu or auto, or see toolkit doctor")
    if reason and visible_gpus():
        console.say(f"onnxruntime runs on the CPU, not on the GPU here: {reason}; see toolkit doctor")
    return PROVIDERS["cpu"] if reason else provider


def follow_device(provider: str, device: str) -> str:
    """`auto` and `cuda` mean the GPU that torch was given: `cuda:1` for the device cuda:1."""
    return f"{provider}:{device[5:]}" if provider in ("auto", "cuda") and device.startswith("cuda:") else provider


def require_provider(provider: str, device: str = "auto") -> None:
    """DeviceError where one that was asked for cannot run, before other work; `auto` takes what there is."""
    if provider != "auto":
        pick_provider(follow_device(provider, device))


def gpu_index(provider: str) -> int | None:
    """Which GPU a provider that `pick_provider` names runs on; None for the CPU."""
    kind, _, gpu = provider.partition(":")
    return int(gpu or 0) if kind == PROVIDERS["cuda"] else None


def session_providers(provider: str, **options: str) -> list[Any]:
    """What onnxruntime.InferenceSession takes as `providers`: that one, on its GPU and with CUDA_OPTIONS.

    `options` of the CUDA provider take the place of those.
    """
    gpu = gpu_index(provider)
    if gpu is None:
        return [provider]
    layout = {"prefer_nhwc": "0"} if provider in _runs_nchw_alone else {}
    return [(PROVIDERS["cuda"], {"device_id": str(gpu)} | CUDA_OPTIONS | layout | options)]


def preload_gpu_libraries() -> None:
    """Let onnxruntime find CUDA and cuDNN in their wheels; does nothing where there are none."""
    import onnxruntime

    if hasattr(onnxruntime, "preload_dlls"):
        with captured_output():
            onnxruntime.preload_dlls()


def visible_gpus(root: Path = ROOT) -> list[str]:
    """NVIDIA GPUs that the machine shows, working or not: names from nvidia-smi, else the device files.

    None where CUDA_VISIBLE_DEVICES hides them all: then nobody means to use them.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1"):
        return []
    names = [line.split(",")[0].strip() for line in _ask_nvidia_smi("name")]
    return names or [str(path) for path in sorted((root / "dev").glob("nvidia[0-9]*"))]


def describe_hardware(device: str | None = None) -> dict[str, object]:
    """What a report says about the machine: cpu, cores, memory_gib, gpu and driver (None where there is no GPU).

    `gpu` names every GPU that the machine shows; `device` is the torch device that is used, `cpu`, or `cuda:1` with the
    GPU's name, None if none is given. And what the machine is doing at this moment, None where it does not tell:
    clock_mhz, load_1m (the load average, this process's own work included) and other_load_cores (how many cores other
    processes keep busy).
    """
    gpus = visible_gpus()
    drivers = _ask_nvidia_smi("driver_version")
    return {
        "cpu": cpu_name(),
        "cores": available_cores(),
        "memory_gib": round(memory_bytes() / GIB, 1),
        "gpu": ", ".join(gpus) or None,
        "driver": drivers[0].strip() if drivers else None,
        "device": _describe_device(device),
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


def _first_working_gpu() -> str | None:
    """Tells on stderr why it is None where there are GPUs."""
    gpus, reason = _list_gpus()
    broken = {"cuda:0": reason} if reason else {}
    for gpu in gpus:
        if not (reason := probe_device(gpu)):
            return gpu
        broken[gpu] = reason
    if broken:
        told = "; ".join(f"{device}: {reason}" for device, reason in broken.items())
        console.say(f"running on the CPU, the GPU here does not work ({told}); see toolkit doctor")
    return None


def _list_gpus() -> tuple[list[str], str]:
    """The GPUs that torch counts, untouched; and, where it counts none of those that the machine shows, its reason."""
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count or not visible_gpus():
        return [f"cuda:{index}" for index in range(count)], ""
    if torch.version.cuda is None:
        return [], "this torch is built without CUDA"
    return [], _first_sentence(str(caught[0].message)) if caught else "torch.cuda.is_available() is false"


def _describe_device(device: str | None) -> str | None:
    if device is None or not device.startswith("cuda"):
        return device
    import torch

    return f"{device}, {torch.cuda.get_device_name(device)}"


def _reason_not_to_answer(provider: str) -> str:
    with captured_output() as captured:
        try:
            _answer_on(provider)
        except Exception as error:  # onnxruntime has a class of its own for every status code
            return _explain(captured(), str(error)) or type(error).__name__
    return ""


def _answer_on(provider: str) -> None:
    """Raises unless `provider`, and it alone, gives tiny_model.py's answer."""
    import numpy as np
    import onnxruntime

    from toolkit import tiny_model

    preload_gpu_libraries()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if gpu_index(provider) is not None:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    providers = session_providers(provider)
    session = onnxruntime.InferenceSession(tiny_model.build(), options, providers=providers, enable_fallback=0)
    first = session.get_providers()[0]
    if first != provider.partition(":")[0]:
        raise RuntimeError(f"onnxruntime put {first} in its place")
    (probabilities,) = session.run(["probabilities"], {"image": tiny_model.images()})
    if not np.allclose(probabilities, tiny_model.PROBABILITIES, rtol=0, atol=1e-3):
        raise RuntimeError("a small classifier's answer came out wrong")


def _why_not(provider: str) -> str:
    """Why onnxruntime cannot run on `provider`, "" if it can."""
    import onnxruntime

    listed = provider.partition(":")[0] in onnxruntime.get_available_providers()
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
    told = native_log + reason
    missing = re.search(r"(lib[\w.+-]+?): cannot open shared object file", told)
    if missing:
        owner = next((owner for start, owner in LIBRARY_OWNERS.items() if missing[1].startswith(start)), "")
        return f"{missing[1]}{f' ({owner})' if owner else ''} is not on this machine"
    if re.search(r"cuDNN is (?:not available|unavailable)|cuDNN library was not found", told):
        return "cuDNN is not on this machine"  # the provider opens it when a convolution needs it, not before
    failure = re.search(r"(\w+) failure \d+: ([^;\n]+)", told)
    if failure:
        return f"{failure[1]} says: {failure[2].strip()}"
    reason = reason.rpartition("Status Message: ")[2]  # before it stands which node failed
    return _first_sentence(re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", reason))


def _first_sentence(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0].split(". ")[0][:300] if lines else ""


@contextlib.contextmanager
def captured_output() -> Iterator[Callable[[], str]]:
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
