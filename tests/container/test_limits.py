"""Limits and changes by an operator: the toolkit works, or ends in one line that says what to do."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from .engine import HARDENED, ROOT, TRAINING, assert_one_line, docker, doctor, run, run_python, settings

pytestmark = pytest.mark.container

Mount = tuple[Path, tuple[str, ...]]
SMALL = ["distill", "--data", "/pictures", "--out", "models/small", *settings(*TRAINING, "data.image_size=32")]


@pytest.fixture
def volume() -> Iterator[str]:
    name = f"kd-toolkit-{uuid.uuid4().hex[:8]}"
    docker("volume", "create", name)
    yield name
    docker("volume", "rm", "--force", name)


@pytest.mark.parametrize(
    "flags",
    [
        ("--user", "12345:12345"),
        ("--user", "12345:12345", *HARDENED),
        HARDENED,
        ("--cap-drop", "ALL"),
        ("--memory", "2g", "--cpus", "1"),
        ("--init",),
    ],
    ids=" ".join,
)
def test_a_stage_works_on_a_named_volume(cpu_image: str, pictures: Mount, volume: str, flags: tuple[str, ...]) -> None:
    done = run(cpu_image, *SMALL, flags=(*flags, *pictures[1], "--volume", f"{volume}:/app/models"))
    assert "wrote models/small/student.safetensors" in done.stdout
    assert "Warning" not in done.stderr
    assert "is deleted with it" not in done.stderr


@pytest.mark.parametrize("flags", [(), HARDENED, ("--user", "54321:54321"), ("--cap-drop", "ALL")], ids=" ".join)
def test_doctor_has_nothing_to_mend(image: str, flags: tuple[str, ...]) -> None:
    assert doctor(image, *flags)["ok"] is True


def test_doctor_sees_the_limits_of_the_container(cpu_image: str) -> None:
    hardware = doctor(cpu_image, "--cpus", "1", "--memory", "3g")["hardware"]
    assert (hardware["cores"], hardware["memory_gib"]) == (1, 3.0)


def test_the_default_shared_memory_is_enough(cpu_image: str) -> None:
    found = {check["name"]: check for check in doctor(cpu_image)["checks"]}["/dev/shm"]
    assert (found["finding"], found["status"]) == ("0.06 GiB", "ok")


@pytest.mark.usefixtures("exported")
def test_threads_follow_the_cpus(image: str, mount: Mount) -> None:
    code = (
        "import torch; from pathlib import Path; from toolkit.stage_setup import prepare_finished;"
        "from toolkit.runtimes.onnxruntime import OnnxPredictor; model = Path('models/small');"
        "prepare_finished(model, None, None, []); session = OnnxPredictor(model / 'student.onnx')._session;"
        "print(torch.get_num_threads(), session.get_session_options().intra_op_num_threads)"
    )
    assert run_python(image, code, "--cpus", "1", *mount[1]) == "1 1"


def test_too_little_memory_is_said_before_the_kernel_ends_it(cpu_image: str, pictures: Mount) -> None:
    done = run(cpu_image, *SMALL, flags=("--memory", "256m", "--memory-swap", "256m", *pictures[1]), check=False)
    assert done.returncode in (0, 137)
    assert "0.2 GiB of memory" in done.stderr.splitlines()[0]
    assert "137" in done.stderr.splitlines()[0]


def test_a_folder_of_somebody_else_is_one_line(cpu_image: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    if os.getuid() == 0:
        os.chown(tmp_path, 4321, 4321)
    done = run(cpu_image, "distill", flags=("--volume", f"{tmp_path}:/app/models"), check=False)
    owner = tmp_path.stat().st_uid
    assert_one_line(done, 1, f"/app/models belongs to uid {owner}, and this is uid 10001", '--user "$(id -u):$(id -g)"')


def test_as_its_owner_it_works(cpu_image: str, pictures: Mount, tmp_path: Path) -> None:
    """A checkout's models/ folder, with its recipes in it, as README has it."""
    for recipe in ROOT.glob("models/*/recipe.toml"):
        (tmp_path / recipe.parent.name).mkdir()
        (tmp_path / recipe.parent.name / "recipe.toml").write_bytes(recipe.read_bytes())
    owner = (4321, 4321) if os.getuid() == 0 else (os.getuid(), os.getgid())
    for path in (tmp_path, *tmp_path.rglob("*")):
        os.chown(path, *owner)
    flags = ("--user", f"{owner[0]}:{owner[1]}", "--volume", f"{tmp_path}:/app/models", *pictures[1])
    run(cpu_image, *SMALL, flags=flags)
    assert (tmp_path / "small" / "student.safetensors").stat().st_uid == owner[0]


def test_a_forgotten_volume_is_said(cpu_image: str, pictures: Mount, volume: str) -> None:
    expected = "lies in this container and is deleted with it; to keep it, mount a volume: docker run -v kd-models:"
    done = run(cpu_image, *SMALL, flags=pictures[1])
    assert f"warning: models/small {expected}/app/models" in done.stderr
    assert_one_line(run(cpu_image, "export", "--onnx", check=False), 1, "docker run -v kd-models:/app/models")
    done = run(cpu_image, "export", "--onnx", flags=("--volume", f"{volume}:/app/models"), check=False)
    assert_one_line(done, 1, "make one with: toolkit run")


def test_a_read_only_container_without_a_volume_is_one_line(cpu_image: str) -> None:
    done = run(cpu_image, "distill", flags=HARDENED, check=False)
    assert_one_line(done, 1, "Read-only file system", "docker run -v kd-models:/app/models")


def test_a_read_only_container_without_tmp_is_one_line(cpu_image: str, volume: str) -> None:
    flags = ("--read-only", "--volume", f"{volume}:/app/models")
    done = run(cpu_image, "distill", flags=flags, check=False)
    assert_one_line(done, 1, "--tmpfs /tmp")


def test_nothing_is_sent_to_the_maker_of_onnxruntime(image: str) -> None:
    code = "import toolkit, onnxruntime, os; print(os.environ['ORT_DISABLE_TELEMETRY'], os.path.exists('/tmp/.cache'))"
    assert run_python(image, code) == "1 False"
