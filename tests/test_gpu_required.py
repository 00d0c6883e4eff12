"""Tests that need a GPU: skipped without one, but under `make test-gpu`, which must not be green without a run."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NEEDS_A_GPU = "tests/doctor/test_ceilings.py::test_a_gpu_is_faster_at_all_of_it_than_a_cpu_may_be"


@pytest.mark.parametrize(("flags", "code", "expected"), [((), 0, "1 skipped"), (("--require-gpu",), 1, "1 error")])
def test_without_a_gpu_they_fail_if_one_is_required(flags: tuple[str, ...], code: int, expected: str) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs", "-m", "gpu", *flags, NEEDS_A_GPU]
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=hidden, capture_output=True, text=True, check=False)
    assert (done.returncode, expected in done.stdout) == (code, True), done.stdout
    assert "torch sees no GPU" in done.stdout
    assert "passed" not in done.stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_requires_one() -> None:
    done = subprocess.run(["make", "-n", "test-gpu"], cwd=ROOT, capture_output=True, text=True, check=True)
    (line,) = [line for line in done.stdout.splitlines() if " -m pytest " in line]
    assert "--require-gpu" in line
    assert '-m "gpu and not container"' in line
