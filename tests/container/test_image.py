"""The content of the images."""

import json
import re
import shutil
import time
from pathlib import Path

import pytest

import toolkit
from toolkit import shipped

from .engine import ROOT, docker, doctor, inspect, run, run_python

pytestmark = pytest.mark.container

LARGEST_GB = {"cuda": 5.3, "cpu": 1.7}
"""On a Debian 12, some 0.1 GB more than on Ubuntu 24.04."""


def flavour(image: str) -> str:
    return image.rpartition(":")[2]


def shell(image: str, script: str, *flags: str) -> str:
    return docker("run", "--rm", "--network", "none", *flags, "--entrypoint", "sh", image, "-c", script).stdout.strip()


def test_it_is_no_larger_than_it_was(image: str) -> None:
    size_gb = inspect(image, ".Size") / 1e9
    print(f"{image}: {size_gb:.2f} GB")
    assert size_gb < LARGEST_GB[flavour(image)]


def test_it_does_not_run_as_root(image: str) -> None:
    assert shell(image, "id -u") == "10001"


def test_it_describes_itself(image: str) -> None:
    labels = {
        key.removeprefix("org.opencontainers.image."): text for key, text in inspect(image, ".Config.Labels").items()
    }
    assert (labels["title"], labels["version"], labels["licenses"]) == ("kd-toolkit", toolkit.__version__, "MIT")
    assert f"({flavour(image)})" in labels["description"]
    assert inspect(image, ".Config.StopSignal") == "SIGINT"


def test_the_recipes_and_teachers_that_ship_are_inside(image: str) -> None:
    code = "from toolkit import shipped as s; print(sorted(s.recipe_files()), sorted(s.weights_files()))"
    assert run_python(image, code) == f"{sorted(shipped.recipe_files())} {sorted(shipped.weights_files())}"


def test_no_compiler_installer_or_cache_is_inside(image: str) -> None:
    tools = "cc gcc g++ cpp c++ clang make ld as pip pip3 git curl wget"
    assert shell(image, f"for tool in {tools}; do command -v $tool; done; true") == ""
    code = "import importlib.util as u; print([name for name in ('pip', 'hatchling') if u.find_spec(name)])"
    assert run_python(image, code) == "[]"
    left = r"\( -path '*/.cache/*' -o -path '/var/lib/apt/lists/*' -o -path '/root/*' -o -name '*.whl' \) -type f"
    assert set(shell(image, f"find / -xdev {left}", "--user", "0").split()) <= {"/root/.bashrc", "/root/.profile"}


def test_nothing_secret_is_inside(image: str) -> None:
    history = docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", image).stdout
    assert not re.search(r"(?i)token|password|secret|api_key", history + " ".join(inspect(image, ".Config.Env")))


def test_one_of_the_two_onnxruntimes_is_installed(image: str) -> None:
    code = (
        "from importlib import metadata as m;"
        "print(sorted(d.name for d in m.distributions() if d.name.startswith('onnxruntime')))"
    )
    wanted = {"cuda": "['onnxruntime-gpu']", "cpu": "['onnxruntime']"}
    assert run_python(image, code) == wanted[flavour(image)]


def test_doctor_finds_nothing_wrong(image: str) -> None:
    report = doctor(image)
    found = {check["name"]: check for check in report["checks"]}
    assert report["ok"] is True
    assert found["onnxruntime cpu"]["finding"] == "ran a small model"
    assert found["fashion-mnist"]["finding"] == "in /usr/share/datasets/fashion-mnist"
    assert found["cache"]["status"] == "ok"


def test_doctor_puts_the_image_to_work(image: str) -> None:
    report = json.loads(run(image, "doctor", "--deep", "--json").stdout)
    found = {check["name"]: check["status"] for check in report["checks"]}
    assert report["ok"] is True
    assert {found[f"{what} cpu"] for what in ("copies on", "products on", "training on", "onnx graph")} == {"ok"}


def test_without_arguments_it_says_what_it_can(image: str) -> None:
    shown = run(image).stdout
    for command in ("doctor", "distill", "export", "bench", "predict", "demo"):
        assert command in shown


def test_a_change_of_code_builds_the_last_layers_alone(cpu_image: str, tmp_path: Path) -> None:
    context = tmp_path / "context"
    kept = shutil.ignore_patterns(".git", ".venv", "__pycache__", "tests", "benchmarks")
    shutil.copytree(ROOT, context, ignore=kept)
    with (context / "toolkit" / "palette.py").open("a") as file:
        file.write("# changed\n")
    base = inspect(cpu_image, ".Config.Labels")["org.opencontainers.image.base.name"]
    start = time.monotonic()
    arguments = ["--build-arg", "FLAVOUR=cpu", "--build-arg", f"BASE_IMAGE={base}"]
    docker("build", "--tag", "kd-toolkit:changed", *arguments, str(context))
    print(f"rebuilt in {time.monotonic() - start:.1f} s")
    before, after = inspect(cpu_image, ".RootFS.Layers"), inspect("kd-toolkit:changed", ".RootFS.Layers")
    differing = [i for i, (one, other) in enumerate(zip(before, after, strict=True)) if one != other]
    assert differing
    assert min(differing) > len(before) - 4  # the packages' layer is the one before those
