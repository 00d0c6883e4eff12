"""The stages of both images, one after another, on a folder of the host."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from toolkit.networks.weights import load_model

from .engine import MEASURING, TRAINING, docker, run, settings

pytestmark = pytest.mark.container

Mount = tuple[Path, tuple[str, ...]]


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        (["predict", "models/none/student.onnx", "none.png"], 1, "error: "),
        (["distill", "--set", "distill.temprature=4"], 1, "distill.temperature"),
        (["distill", "--no-such-flag"], 2, "--no-such-flag"),
    ],
)
def test_exit_codes_pass_through(cpu_image: str, command: list[str], code: int, message: str) -> None:
    done = run(cpu_image, *command, check=False)
    assert (done.returncode, message in done.stderr) == (code, True), done.stderr


def test_the_default_data_is_inside(cpu_image: str) -> None:
    report = run(cpu_image, "data", "fashion-mnist", "--json").stdout
    images = {split: part["images"] for split, part in json.loads(report)["splits"].items()}
    assert (images["train"] + images["valid"], images["test"]) == (60_000, 10_000)


def test_distill_leaves_its_artifacts_on_the_mounted_folder(distilled: Path) -> None:
    stages = [json.loads(line)["stage"] for line in (distilled / "metrics.jsonl").read_text().splitlines()]
    assert stages == ["teacher", "distill"]
    for role in ("teacher", "student"):
        _, info = load_model(distilled / f"{role}.safetensors")
        assert (info.role, info.architecture, len(info.classes)) == (role, "depthwise", 3)


def test_export_writes_a_file_that_the_host_can_run(exported: Path) -> None:
    session = onnxruntime.InferenceSession(exported / "student.onnx", providers=["CPUExecutionProvider"])
    size = session.get_inputs()[0].shape[1]
    logits, probabilities = session.run(["logits", "probabilities"], {"image": np.zeros((3, size, size, 3), np.uint8)})
    assert logits.shape == (3, 3)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)


def test_bench_writes_a_report_with_all_rows(image: str, mount: Mount, pictures: Mount, exported: Path) -> None:
    run(image, "bench", "models/small", *settings(*MEASURING), flags=(*mount[1], *pictures[1]))
    rows = json.loads((exported / "report.json").read_text())["rows"]
    kinds = {(row["model"], row["runtime"]) for row in rows}
    assert kinds == {(model, runtime) for model in ("teacher", "student") for runtime in ("torch", "onnxruntime")}


@pytest.mark.usefixtures("exported")
def test_predict_reads_a_mounted_picture(image: str, mount: Mount, pictures: Mount) -> None:
    done = run(image, "predict", "models/small", "/pictures/test/red/0.png", flags=(*mount[1], *pictures[1]))
    assert "0.png" in done.stdout


def test_an_interrupted_stage_ends_at_once_with_its_own_code(cpu_image: str) -> None:
    name = "kd-toolkit-interrupted"
    docker("run", "--detach", "--name", name, "--network", "none", cpu_image, "distill", *settings(*TRAINING))
    try:
        while "teacher 1/" not in (logs := docker("logs", name).stderr):  # unbuffered: there while it runs
            assert docker("inspect", "--format", "{{.State.Running}}", name).stdout.strip() == "true", logs
        docker("stop", "--time", "60", name)
        assert docker("inspect", "--format", "{{.State.ExitCode}}", name).stdout.strip() == "130"
        assert "--resume" in docker("logs", name).stderr
    finally:
        docker("rm", "--force", name)
