"""The cores and the memory that this process may use, under the limits of containers and schedulers."""

import contextlib
import ctypes
import math
import mmap
import os
import re
import shutil
from pathlib import Path
from typing import Any

ROOT = Path("/")
UNLIMITED_BYTES = 2**60
"""A memory limit of cgroup v1 above this means no limit."""

LITTLE_MEMORY_BYTES = 2 * 2**30
"""With less than this the kernel may end a training: the default one took more than 1 GiB."""


def available_cores(root: Path = ROOT) -> int:
    """Cores that this process may use: the affinity mask, and any CPU quota of its cgroups (v1 and v2), rounded up.

    `root` is the folder of /proc and /sys/fs/cgroup.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [*_cpu_quotas_v2(root), *_cpu_quotas_v1(root)]
    return max(1, min([affinity, *(math.ceil(quota) for quota in quotas)]))


def memory_bytes(root: Path = ROOT) -> int:
    """Bytes of memory that this process may use: the machine's, or the smallest limit of its cgroups."""
    machine = _physical_memory_bytes(root)
    limits = [_number(folder / "memory.max") for folder in _folders(root, "")]
    limits += [_number(folder / "memory.limit_in_bytes") for folder in _folders(root, "memory")]
    return min([machine, *(int(limit) for limit in limits if limit is not None and 0 < limit < UNLIMITED_BYTES)])


def can_reserve(size_bytes: int) -> bool:
    """Whether this process could take so much memory more, by its limits (ulimit -v) and the system's promises.

    Nothing is written to it, so this takes no memory. Under a container's limit it is true until the kernel ends the
    process.
    """
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    try:
        mmap.mmap(-1, max(1, size_bytes), **private).close()
    except (OSError, OverflowError, MemoryError):
        return False
    return True


def give_back_freed_memory() -> None:
    """Return to the system what this process has freed; glibc's allocator may keep it, in a part for each thread."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library, another system
        ctypes.CDLL(None).malloc_trim(0)


def shared_memory_bytes(root: Path = ROOT) -> int | None:
    """Size of /dev/shm in bytes, None if there is none."""
    folder = root / "dev" / "shm"
    return shutil.disk_usage(folder).total if folder.is_dir() else None


def _folders(root: Path, controller: str) -> list[Path]:
    """Folders of this process's cgroup and its ancestors; `controller` is "" for v2, else a v1 controller."""
    try:
        lines = (root / "proc" / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            own = Path(path.strip("/"))
            base = root / "sys" / "fs" / "cgroup" / controller
            # In a container without a cgroup namespace of its own, `path` is the host's and only `base` exists.
            return [base / ancestor for ancestor in (own, *own.parents)]
    return []


def _cpu_quotas_v2(root: Path) -> list[float]:
    quotas = []
    for folder in _folders(root, ""):
        with contextlib.suppress(OSError, ValueError):
            quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
            quotas += [] if quota == "max" else [int(quota) / int(period)]
    return quotas


def _cpu_quotas_v1(root: Path) -> list[float]:
    pairs = [
        (_number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us"))
        for folder in _folders(root, "cpu")
    ]
    return [quota / period for quota, period in pairs if quota and period and quota > 0]


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _physical_memory_bytes(root: Path) -> int:
    with contextlib.suppress(OSError):
        found = re.search(
            r"^MemTotal:\s+(\d+) kB", (root / "proc" / "meminfo").read_text(encoding="utf-8"), re.MULTILINE
        )
        if found:
            return int(found[1]) * 1024
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return _windows_memory_bytes()


class _MemoryStatus(ctypes.Structure):
    """Windows' MEMORYSTATUSEX."""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        ("physical", ctypes.c_uint64),
        ("others", ctypes.c_uint64 * 6),
    )


def _windows_memory_bytes() -> int:
    """The machine's memory; 0 if the system does not say."""
    windows: Any = getattr(ctypes, "windll", None)
    status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
    if windows is None or not windows.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        return 0
    return int(status.physical)
