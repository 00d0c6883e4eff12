"""The demo in a container: it answers, is healthy, and stops on request."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from .engine import HARDENED, docker, inspect, read_page, running, wait_for_health

pytestmark = pytest.mark.container


@pytest.fixture
def demo(image: str, mount: tuple[Path, tuple[str, ...]], exported: Path) -> Iterator[tuple[str, str]]:
    """(container, address) of a running demo, in a container that may do as little as possible."""
    flags = ("--publish", "127.0.0.1:0:7860", *HARDENED, *mount[1])
    with running(image, "demo", "models/small", flags=flags) as name:
        port = docker("port", name, "7860").stdout.splitlines()[0].rsplit(":", 1)[1]
        yield name, f"http://127.0.0.1:{port}/"


def test_the_demo_answers_on_its_port_and_stops_on_request(demo: tuple[str, str]) -> None:
    name, address = demo
    assert "gradio" in read_page(address, name).lower()
    docker("stop", "--time", "30", name)
    assert inspect(name, ".State.ExitCode") in {0, 130}
    assert "Traceback" not in docker("logs", name).stderr


def test_the_demo_is_healthy_and_its_log_does_not_mention_it(demo: tuple[str, str]) -> None:
    name, address = demo
    read_page(f"{address}healthz", name)
    wait_for_health(name)
    logs = docker("logs", name)
    assert "healthz" not in logs.stdout + logs.stderr


def test_a_demo_that_hangs_is_unhealthy(demo: tuple[str, str]) -> None:
    name, _ = demo
    wait_for_health(name)
    docker("kill", "--signal", "STOP", name)
    assert docker("exec", name, "python", "-m", "toolkit.machine.health", check=False).returncode == 1


def test_a_stage_is_healthy_and_does_not_mention_it(cpu_image: str) -> None:
    with running(cpu_image, "distill", flags=("--network", "none")) as name:
        wait_for_health(name)
        assert {entry["Output"] for entry in inspect(name, ".State.Health.Log")} == {""}


def test_a_port_of_ones_own(cpu_image: str) -> None:
    unused = f"kd-toolkit-{uuid.uuid4().hex[:8]}-{os.getpid()}"
    done = docker("run", "--rm", "--name", unused, "--env", "KD_TOOLKIT_PORT=8000", cpu_image, "demo", check=False)
    assert done.returncode == 1
    assert "there is no model directory models/fashion-mnist" in done.stderr
