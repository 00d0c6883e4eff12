import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from machine_samples import write_files

from toolkit.machine import limits

GIB = 2**30
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


@pytest.fixture
def sixteen_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))


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
    assert limits.available_cores(write_files(tmp_path, files)) == cores


def test_available_cores_is_what_this_process_may_use() -> None:
    assert 1 <= limits.available_cores() <= len(os.sched_getaffinity(0))


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
    assert limits.memory_bytes(tmp_path) == gib * GIB


def test_shared_memory_size(tmp_path: Path) -> None:
    assert limits.shared_memory_bytes(tmp_path) is None
    (tmp_path / "dev" / "shm").mkdir(parents=True)
    assert limits.shared_memory_bytes(tmp_path) == shutil.disk_usage(tmp_path).total


def test_memory_that_can_be_reserved_is_not_taken() -> None:
    assert limits.can_reserve(0)
    assert limits.can_reserve(10**6)
    assert not limits.can_reserve(2**62)
    assert not limits.can_reserve(2**70)
    limits.give_back_freed_memory()


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on the address space")
def test_a_limit_of_the_process_counts() -> None:
    code = (
        "import resource; from toolkit.machine.limits import can_reserve;"
        "resource.setrlimit(resource.RLIMIT_AS, (10**9, -1)); print(can_reserve(10**7), can_reserve(10**9))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]
