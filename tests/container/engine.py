"""Docker's command line, for tests."""

import json
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 1800
OFFLINE = ("--network", "none")
HARDENED = ("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")

TRAINING = ("teacher.weights=", "teacher.architecture=depthwise", "teacher.epochs=1", "distill.epochs=1")
MEASURING = ("bench.images=256", "bench.samples=10", "bench.seconds=1")


def settings(*pairs: str) -> list[str]:
    return [word for pair in pairs for word in ("--set", pair)]


def docker(*arguments: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=TIMEOUT_S, **options)
    if check and done.returncode != 0:
        pytest.fail(f"docker {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done


def run(image: str, *command: str, flags: tuple[str, ...] = (), check: bool = True) -> subprocess.CompletedProcess[str]:
    """`docker run` without a network."""
    return docker("run", "--rm", *OFFLINE, *flags, image, *command, check=check)


def run_python(image: str, code: str, *flags: str) -> str:
    return docker("run", "--rm", *OFFLINE, *flags, "--entrypoint", "python", image, "-c", code).stdout.strip()


def doctor(image: str, *flags: str) -> dict[str, Any]:
    report = json.loads(run(image, "doctor", "--json", flags=flags).stdout)
    assert isinstance(report, dict)
    return report


def inspect(what: str, path: str) -> Any:
    return json.loads(docker("inspect", "--format", f"{{{{json {path}}}}}", what).stdout)


def assert_one_line(done: subprocess.CompletedProcess[str], code: int, *parts: str) -> None:
    """It ended with `code` and one line of error that has all `parts`; progress may stand before it."""
    *_, last = done.stderr.splitlines()
    assert done.returncode == code, done.stderr
    assert last.startswith("error: "), done.stderr
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in last


@contextmanager
def running(image: str, *command: str, flags: tuple[str, ...] = ()) -> Iterator[str]:
    """The name of a container in the background."""
    name = f"kd-toolkit-{uuid.uuid4().hex[:8]}"
    docker("run", "--detach", "--name", name, *flags, image, *command)
    try:
        yield name
    finally:
        docker("rm", "--force", "--volumes", name)


def wait_for_health(name: str, wanted: str = "healthy", seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if inspect(name, ".State.Health.Status") == wanted:
            return
        time.sleep(0.5)
    logs = docker("logs", name)
    pytest.fail(f"not {wanted} in {seconds:.0f} s: {inspect(name, '.State.Health')}\n{logs.stdout}\n{logs.stderr}")


def read_page(address: str, name: str, seconds: float = 600) -> str:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(address, timeout=5) as answer:
                return str(answer.read().decode())
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
    logs = docker("logs", name)
    pytest.fail(f"no answer from {address} in {seconds:.0f} s:\n{logs.stdout}\n{logs.stderr}")
