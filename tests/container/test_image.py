"""Builds the image and uses it as a stranger would: `make test-container`.

BASE_IMAGE takes the place of the image's CUDA base. KD_TOOLKIT_IMAGE names an image that is built already.
"""

import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from conftest import make_image

from toolkit.networks.weights import load_model

pytestmark = pytest.mark.container

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 1800
OFFLINE = ("--network", "none")
MODEL = "models/fashion-mnist"


def docker(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=TIMEOUT_S)
    if check and done.returncode != 0:
        pytest.fail(f"docker {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done


@pytest.fixture(scope="session")
def image() -> str:
    if shutil.which("docker") is None or docker("info", check=False).returncode != 0:
        pytest.skip("NO DOCKER ENGINE ANSWERS HERE (docker info): the image was neither built nor tried")
    if ready := os.environ.get("KD_TOOLKIT_IMAGE"):
        return ready
    base = os.environ.get("BASE_IMAGE")
    docker("build", "--tag", "kd-toolkit", *(["--build-arg", f"BASE_IMAGE={base}"] if base else []), str(ROOT))
    return "kd-toolkit"


@pytest.fixture(scope="session")
def mount(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder of the host that becomes /app/models, and the flags for it: a user of one's own, unless that is root."""
    folder = tmp_path_factory.mktemp("models")
    folder.chmod(0o777)
    user = ["--user", f"{os.getuid()}:{os.getgid()}"] if os.getuid() else []
    return folder, [*user, "--volume", f"{folder}:/app/models"]


@pytest.fixture(scope="session")
def distilled(image: str, mount: tuple[Path, list[str]]) -> Path:
    """The host's model directory after `distill` with no network, no GPU and no teacher to begin with.

    The data are the default ones; the teacher is a small network, and both learn for one epoch.
    """
    folder, flags = mount
    budget = ("--set", "teacher.architecture=depthwise", "--set", "teacher.epochs=1", "--set", "distill.epochs=1")
    docker("run", "--rm", *OFFLINE, *flags, image, "distill", *budget)
    return folder / "fashion-mnist"


@pytest.fixture(scope="session")
def exported(image: str, mount: tuple[Path, list[str]], distilled: Path) -> Path:
    docker("run", "--rm", *OFFLINE, *mount[1], image, "export", "--onnx", MODEL)
    return distilled


def test_the_container_does_not_run_as_root(image: str) -> None:
    assert docker("run", "--rm", "--entrypoint", "id", image, "-u").stdout.strip() == "10001"


def test_without_arguments_it_says_what_it_can(image: str) -> None:
    shown = docker("run", "--rm", *OFFLINE, image).stdout
    for command in ("doctor", "distill", "export", "bench", "predict", "demo"):
        assert command in shown


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        (["predict", "models/none/student.onnx", "none.png"], 1, "error: "),
        (["distill", "--set", "distill.temprature=4"], 1, "distill.temperature"),
        (["distill", "--no-such-flag"], 2, "--no-such-flag"),
    ],
)
def test_exit_codes_pass_through(image: str, command: list[str], code: int, message: str) -> None:
    done = docker("run", "--rm", *OFFLINE, image, *command, check=False)
    assert (done.returncode, message in done.stderr) == (code, True), done.stderr


def doctor(image: str, *flags: str) -> dict[str, Any]:
    report = json.loads(docker("run", "--rm", *OFFLINE, *flags, image, "doctor", "--json").stdout)
    assert isinstance(report, dict)
    return report


def test_doctor_finds_nothing_wrong(image: str) -> None:
    report = doctor(image)
    found = {check["name"]: check for check in report["checks"]}
    assert report["ok"] is True
    assert found["onnxruntime cpu"]["finding"] == "ran a small model"
    assert found["fashion-mnist"]["finding"] == "in /usr/share/datasets/fashion-mnist"
    assert found["cache"]["status"] == "ok"


def test_any_user_may_use_it(image: str) -> None:
    assert doctor(image, "--user", "54321:54321")["ok"] is True


def test_doctor_sees_the_limits_of_the_container(image: str) -> None:
    hardware = doctor(image, "--cpus", "1", "--memory", "3g")["hardware"]
    assert (hardware["cores"], hardware["memory_gib"]) == (1, 3.0)


def test_the_default_data_is_inside(image: str) -> None:
    report = docker("run", "--rm", *OFFLINE, image, "data", "fashion-mnist", "--json").stdout
    images = {split: part["images"] for split, part in json.loads(report)["splits"].items()}
    assert (images["train"] + images["valid"], images["test"]) == (60_000, 10_000)


def test_distill_leaves_its_artifacts_on_the_mounted_folder(distilled: Path) -> None:
    stages = [json.loads(line)["stage"] for line in (distilled / "metrics.jsonl").read_text().splitlines()]
    assert stages == ["teacher", "distill"]
    for role in ("teacher", "student"):
        _, info = load_model(distilled / f"{role}.safetensors")
        assert (info.role, info.architecture, len(info.classes)) == (role, "depthwise", 10)


def test_export_writes_a_file_that_the_host_can_run(exported: Path) -> None:
    session = onnxruntime.InferenceSession(exported / "student.onnx", providers=["CPUExecutionProvider"])
    size = session.get_inputs()[0].shape[1]
    logits, probabilities = session.run(["logits", "probabilities"], {"image": np.zeros((3, size, size, 3), np.uint8)})
    assert logits.shape == (3, 10)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    assert len(json.loads(session.get_modelmeta().custom_metadata_map["classes"])) == 10


def test_bench_writes_a_report_with_all_rows(image: str, mount: tuple[Path, list[str]], exported: Path) -> None:
    budget = ("--set", "bench.images=256", "--set", "bench.samples=10", "--set", "bench.seconds=2")
    docker("run", "--rm", *OFFLINE, *mount[1], image, "bench", MODEL, *budget)
    rows = json.loads((exported / "report.json").read_text())["rows"]
    kinds = {(row["model"], row["runtime"]) for row in rows}
    assert kinds == {(model, runtime) for model in ("teacher", "student") for runtime in ("torch", "onnxruntime")}


@pytest.mark.usefixtures("exported")
def test_predict_reads_a_mounted_picture(image: str, mount: tuple[Path, list[str]], tmp_path: Path) -> None:
    make_image(label=0, seed=1).save(tmp_path / "picture.png")
    tmp_path.chmod(0o755)
    flags = [*OFFLINE, *mount[1], "--volume", f"{tmp_path}:/pictures:ro"]
    done = docker("run", "--rm", *flags, image, "predict", MODEL, "/pictures/picture.png")
    assert "picture.png" in done.stdout


@pytest.fixture
def demo(image: str, mount: tuple[Path, list[str]], exported: Path) -> Iterator[tuple[str, str]]:
    """(container, address) of a running demo."""
    name = f"kd-toolkit-demo-{uuid.uuid4().hex[:8]}"
    docker("run", "--detach", "--name", name, "--publish", "127.0.0.1:0:7860", *mount[1], image, "demo", MODEL)
    try:
        port = docker("port", name, "7860").stdout.splitlines()[0].rsplit(":", 1)[1]
        yield name, f"http://127.0.0.1:{port}/"
    finally:
        docker("rm", "--force", name)


def test_the_demo_answers_on_its_port_and_stops_when_told(demo: tuple[str, str]) -> None:
    name, address = demo
    page = wait_for_page(address, name)
    assert "gradio" in page.lower()
    docker("stop", "--time", "30", name)
    assert docker("inspect", "--format", "{{.State.ExitCode}}", name).stdout.strip() in {"0", "130"}


def wait_for_page(address: str, name: str, seconds: float = 90) -> str:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(address, timeout=5) as answer:
                return str(answer.read().decode())
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
    logs = docker("logs", name)
    pytest.fail(f"no answer from {address} in {seconds:.0f} s:\n{logs.stdout}\n{logs.stderr}")


@pytest.mark.gpu
def test_a_gpu_is_used_where_the_engine_gives_one(image: str) -> None:
    if docker("run", "--rm", "--gpus", "all", "--entrypoint", "true", image, check=False).returncode != 0:
        pytest.skip("this engine gives no GPU (--gpus all)")
    found = {check["name"]: check["status"] for check in doctor(image, "--gpus", "all")["checks"]}
    assert (found["torch cuda:0"], found["onnxruntime cuda"]) == ("ok", "ok")
