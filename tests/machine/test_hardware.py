import os
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from machine_samples import write_files

from toolkit.machine import hardware, limits

GIB = 2**30
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def test_cpu_name_on_x86_and_without_cpuinfo(tmp_path: Path) -> None:
    assert hardware.cpu_name(tmp_path)
    write_files(tmp_path, {"proc/cpuinfo": "processor\t: 0\nmodel name\t: Some CPU @ 3 GHz\nflags\t: a b\n"})
    assert hardware.cpu_name(tmp_path) == "Some CPU @ 3 GHz"


def test_visible_gpus_from_device_files_and_from_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    write_files(tmp_path, {"dev/nvidiactl": "", "dev/nvidia1": "", "dev/nvidia0": ""})
    assert hardware.visible_gpus(tmp_path) == [str(tmp_path / "dev" / "nvidia0"), str(tmp_path / "dev" / "nvidia1")]

    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\ncase $1 in *name) echo 'NVIDIA H200';; *driver_version) echo 580.1;; esac\n")
    program.chmod(0o755)
    assert hardware.visible_gpus(tmp_path) == ["NVIDIA H200"]
    assert hardware.describe_hardware()["gpu"] == "NVIDIA H200"
    assert hardware.describe_hardware()["driver"] == "580.1"

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert hardware.visible_gpus(tmp_path) == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")

    program.write_text("#!/bin/sh\necho 'cannot talk to the driver'; exit 9\n")
    assert hardware.visible_gpus(tmp_path)[0].endswith("nvidia0")


def test_describe_hardware_has_the_reports_fields() -> None:
    found = hardware.describe_hardware()
    described = ["cpu", "cores", "memory_gib", "gpu", "driver", "device", "clock_mhz", "load_1m", "other_load_cores"]
    assert list(found) == described
    assert found["device"] is None
    assert found["cores"] == limits.available_cores()
    physical_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    assert isinstance(found["memory_gib"], float)
    assert 0 < found["memory_gib"] <= physical_gib + 0.1


def test_describe_versions_are_the_installed_ones() -> None:
    versions = hardware.describe_versions()
    assert versions["torch"] == metadata.version("torch")
    assert versions["onnxruntime"] == onnxruntime.__version__
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert hardware.installed_versions(["numpy", "no-such-package"]) == {"numpy": np.__version__}


def test_describe_hardware_names_the_device_that_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "visible_gpus", lambda: ["NVIDIA T4", "NVIDIA H200"])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: {"cuda:1": "NVIDIA H200"}[device])
    found = hardware.describe_hardware("cuda:1")
    assert (found["gpu"], found["device"]) == ("NVIDIA T4, NVIDIA H200", "cuda:1, NVIDIA H200")
    assert hardware.describe_hardware("cpu")["device"] == "cpu"
