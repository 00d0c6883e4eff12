"""compose.yaml, the whole chain once, on the default data."""

import json
import os
import subprocess
import uuid
from collections.abc import Iterator

import pytest

from .engine import MEASURING, ROOT, TRAINING, docker, read_page, settings

pytestmark = pytest.mark.container

BASE = ("-f", "compose.yaml")
GPU = (*BASE, "-f", "compose.gpu.yaml")
SMALL = (*BASE, "-f", "tests/container/compose.small.yaml")


@pytest.fixture(autouse=True)
def _plugin() -> None:
    if docker("compose", "version", check=False).returncode != 0:
        pytest.skip("NO DOCKER COMPOSE HERE (docker compose version): compose.yaml was not tried")


def compose(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return docker("compose", *arguments, cwd=ROOT, env=os.environ | environment)


@pytest.fixture
def project(cuda_image: str) -> Iterator[dict[str, str]]:
    """Environment of a project of its own, on tiny budgets; taken down in the end with its volume."""
    tiny = settings("teacher.weights=", "data.image_size=16", "data.resize=16", "data.validation_fraction=0.49")
    environment = {
        "COMPOSE_PROJECT_NAME": f"kd-toolkit-{uuid.uuid4().hex[:8]}",
        "KD_TOOLKIT_IMAGE": cuda_image,
        "DISTILL_FLAGS": " ".join([*settings(*TRAINING), *tiny]),
        "EXPORT_FLAGS": " ".join(
            settings("export.images=100", "export.max_accuracy_drop=0.05", "export.min_agreement=0.9")
        ),
        "BENCH_FLAGS": " ".join(settings(*MEASURING)),
    }
    yield environment
    compose(*SMALL, "down", "--volumes", "--timeout", "20", **environment)


@pytest.mark.parametrize("files", [BASE, GPU, SMALL], ids=" ".join)
def test_the_files_are_valid(files: tuple[str, ...]) -> None:
    compose(*files, "config", "--quiet")


def test_the_override_reserves_every_gpu_for_every_stage() -> None:
    services = json.loads(compose(*GPU, "config", "--format", "json").stdout)["services"]
    for service in services.values():
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert (device["driver"], device["count"], device["capabilities"]) == ("nvidia", -1, ["gpu"])


def test_the_whole_chain(project: dict[str, str]) -> None:
    compose(*SMALL, "up", "--detach", "--no-build", **project)
    listed = compose(*SMALL, "ps", "--all", "--format", "json", **project).stdout.splitlines()
    states = {one["Service"]: one for one in map(json.loads, listed)}
    assert {name: one["ExitCode"] for name, one in states.items()} == dict.fromkeys(states, 0)
    assert set(states) == {"distill", "export", "bench", "demo"}
    assert states["demo"]["State"] == "running"
    name = states["demo"]["Name"]
    port = docker("port", name, "7860").stdout.splitlines()[0].rsplit(":", 1)[1]
    assert "gradio" in read_page(f"http://127.0.0.1:{port}/", name).lower()
    assert '"schema": 1' in docker("exec", name, "cat", "models/fashion-mnist/report.json").stdout

    again = compose(*SMALL, "up", "--detach", "--no-build", **project)  # a second time: existing results are kept
    assert "error" not in again.stderr.lower()
