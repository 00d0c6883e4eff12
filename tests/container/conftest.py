import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from .engine import ROOT, TRAINING, docker, inspect, run, settings


def build(flavour: str) -> str:
    if shutil.which("docker") is None or docker("info", check=False).returncode != 0:
        pytest.skip("NO DOCKER ENGINE ANSWERS HERE (docker info): the images were not built and not tried")
    tag = f"kd-toolkit:{flavour}"
    base = os.environ.get("BASE_IMAGE")
    base_flags = ["--build-arg", f"BASE_IMAGE={base}"] if base else []
    start = time.monotonic()
    docker("build", "--tag", tag, "--build-arg", f"FLAVOUR={flavour}", *base_flags, str(ROOT))
    print(f"{tag}: {inspect(tag, '.Size') / 1e9:.2f} GB, built in {time.monotonic() - start:.0f} s")
    return tag


@pytest.fixture(scope="session")
def cuda_image() -> str:
    return build("cuda")


@pytest.fixture(scope="session")
def cpu_image() -> str:
    return build("cpu")


@pytest.fixture(scope="session", params=["cuda", "cpu"])
def image(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(f"{request.param}_image"))


@pytest.fixture(scope="session")
def mount(tmp_path_factory: pytest.TempPathFactory, image: str) -> tuple[Path, tuple[str, ...]]:
    """A folder of the host that becomes /app/models, and the flags for it, with a user to whom it belongs."""
    folder = tmp_path_factory.mktemp("models")
    owner = (os.getuid() or 12345, os.getgid() or 12345)  # root's own would need root inside
    os.chown(folder, *owner)
    for parent in folder.parents[:2]:
        parent.chmod(0o755)
    return folder, ("--user", f"{owner[0]}:{owner[1]}", "--volume", f"{folder}:/app/models")


@pytest.fixture(scope="session")
def pictures(class_folders: Path) -> tuple[Path, tuple[str, ...]]:
    """A small data set of the host, and the flags that mount it at /pictures."""
    for folder in (*class_folders.parents[:2], class_folders, *class_folders.rglob("*")):
        folder.chmod(folder.stat().st_mode | (0o555 if folder.is_dir() else 0o444))
    return class_folders, ("--volume", f"{class_folders}:/pictures:ro")


@pytest.fixture(scope="session")
def distilled(image: str, mount: tuple[Path, Any], pictures: tuple[Path, Any]) -> Path:
    """The model directory on the host after `distill` with no network, no GPU and no teacher to begin with."""
    folder, flags = mount
    small = settings(*TRAINING, "data.image_size=32", "data.resize=32", "distill.batch_size=12")
    command = ["distill", "--data", "/pictures", "--out", "models/small", *small]
    run(image, *command, flags=(*flags, *pictures[1]))
    return folder / "small"


@pytest.fixture(scope="session")
def exported(image: str, mount: tuple[Path, Any], pictures: tuple[Path, Any], distilled: Path) -> Path:
    # A network that saw 36 pictures once may be undecided about one; other tests are about this gate.
    lenient = settings("export.min_agreement=0.5", "export.max_accuracy_drop=0.5")
    run(image, "export", "--onnx", "models/small", *lenient, flags=(*mount[1], *pictures[1]))
    return distilled
