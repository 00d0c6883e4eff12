"""A program as on a CPU of AVX2 alone, run on one that has more."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("without_avx512.c")
UNSUPPORTED = 77
"""exit code of a process from which nothing can be hidden"""


def run_python_on_avx2(folder: Path, *arguments: str | Path) -> None:
    """`python ARGUMENTS`, with AVX-512, VNNI and AMX hidden from it if this CPU has them.

    `folder` takes what is built for that. The test is skipped if it cannot be done: no Linux on x86-64, no C
    compiler, no CPUID faulting (Intel's CPUs have it, and virtual machines on them).
    """
    hidden = {"LD_PRELOAD": str(_build(folder))} if _is_newer_than_avx2() else {}
    environment = os.environ | hidden
    if hidden and subprocess.run([sys.executable, "-c", ""], env=environment).returncode == UNSUPPORTED:
        pytest.skip("nothing can be hidden on this CPU")
    subprocess.run([sys.executable, *arguments], env=environment, check=True)


def _is_newer_than_avx2() -> bool:
    about = Path("/proc/cpuinfo")
    flags = about.read_text() if about.exists() else ""
    if "avx2" not in flags:
        pytest.skip("needs Linux on x86-64, from AVX2 on")
    return "avx512" in flags or "vnni" in flags


def _build(folder: Path) -> Path:
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    library = folder / "without_avx512.so"
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True)
    return library
