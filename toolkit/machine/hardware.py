"""A report's facts about the machine: its processor, GPUs, drivers, and the versions of the packages."""

import contextlib
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from toolkit.machine.activity import clock_mhz, load_1m, other_load_cores
from toolkit.machine.limits import ROOT, available_cores, memory_bytes

PACKAGES = (
    "torch", "torchvision", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino", "onnxscript", "numpy", "pillow",
    "pydantic", "safetensors", "torchmetrics", "gradio", "typer", "rich", "matplotlib",
)  # fmt: skip
"""Distributions whose versions influence a run."""

MIB = 2**20

GIB = 2**30


def visible_gpus(root: Path = ROOT) -> list[str]:
    """NVIDIA GPUs that the machine shows, working or not: names from nvidia-smi, else the device files.

    An empty list if CUDA_VISIBLE_DEVICES hides them all: then nobody wants to use them.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1"):
        return []
    names = [line.split(",")[0].strip() for line in _ask_nvidia_smi("name")]
    return names or [str(path) for path in sorted((root / "dev").glob("nvidia[0-9]*"))]


def describe_hardware(device: str | None = None) -> dict[str, object]:
    """A report's facts about the machine: cpu, cores, memory_gib, gpu and driver (None if there is no GPU).

    `gpu` names every GPU that the machine shows; `device` is the torch device in use, `cpu`, or `cuda:1` with the GPU's
    name, None if none is given. Also its present activity, None if the system does not say: clock_mhz, load_1m (the
    load average, including this process's own work) and other_load_cores (cores that other processes keep busy).
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
    """The installed ones of `packages`, with their versions."""
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


def _describe_device(device: str | None) -> str | None:
    if device is None or not device.startswith("cuda"):
        return device
    import torch

    return f"{device}, {torch.cuda.get_device_name(device)}"


def _ask_nvidia_smi(field: str) -> list[str]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, f"--query-gpu={field}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.splitlines()
