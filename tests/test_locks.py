"""locks/*.txt: complete, hashed, consistent, and as pyproject.toml has it."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("build", "cpu", "cuda", "dev")
DEBIAN_12 = {"python_version": "3.11", "python_full_version": "3.11.2"}
UBUNTU_24_04 = {"python_version": "3.12", "python_full_version": "3.12.3"}
LINUX = {"sys_platform": "linux", "platform_machine": "x86_64", "platform_system": "Linux", "extra": ""}


def read_lock(name: str) -> dict[str, tuple[Requirement, int]]:
    """Package → its pin and how many hashes it has."""
    text = (ROOT / "locks" / f"{name}.txt").read_text(encoding="utf-8")
    found = {}
    for entry in re.findall(r"^[^\s#][^\n]*(?:\n    --hash[^\n]*)*", text, re.MULTILINE):
        pin = Requirement(entry.split("\\")[0].strip())
        found[canonicalize_name(pin.name)] = (pin, len(re.findall(r"--hash=sha256:[0-9a-f]{64}", entry)))
    return found


def installed(name: str, system: dict[str, str]) -> dict[str, str]:
    """Package → version, of what the lock installs on x86-64 Linux."""
    return {
        package: str(pin.specifier).removeprefix("==")
        for package, (pin, _) in read_lock(name).items()
        if pin.marker is None or pin.marker.evaluate(LINUX | system)
    }


def project() -> dict[str, list[str]]:
    return dict(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"])


@pytest.mark.parametrize("name", NAMES)
def test_every_package_is_pinned_and_has_hashes(name: str) -> None:
    lock = read_lock(name)
    assert lock
    for pin, hashes in lock.values():
        assert re.fullmatch(r"==[^,*]+", str(pin.specifier)), pin
        assert hashes > 0, pin


@pytest.mark.parametrize("name", NAMES)
def test_no_place_is_named(name: str) -> None:
    text = (ROOT / "locks" / f"{name}.txt").read_text(encoding="utf-8")
    assert not re.search(r"https?:|file:|--(extra-)?index-url|--find-links|[ =]/", text)


@pytest.mark.parametrize("system", [DEBIAN_12, UBUNTU_24_04], ids=["Debian 12", "Ubuntu 24.04"])
@pytest.mark.parametrize("name", ["cuda", "cpu", "dev"])
def test_every_requirement_of_the_project_is_there(name: str, system: dict[str, str]) -> None:
    versions = installed(name, system)
    extras = project()["optional-dependencies"]
    optional = [text for extra in extras.values() for text in extra] if name == "dev" else []
    for text in (*project()["dependencies"], *optional):
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate(LINUX | system):
            continue
        wanted = "onnxruntime" if name == "cpu" and requirement.name == "onnxruntime-gpu" else requirement.name
        assert requirement.specifier.contains(versions[canonicalize_name(wanted)]), text


@pytest.mark.parametrize("name", ["cpu", "dev"])
def test_the_locks_are_of_one_mind(name: str) -> None:
    cuda, other = installed("cuda", DEBIAN_12), installed(name, DEBIAN_12)
    assert {package: other[package] for package in cuda.keys() & other} == {p: cuda[p] for p in cuda.keys() & other}


def test_one_of_the_two_onnxruntimes_is_installed_in_the_same_version() -> None:
    cuda, cpu = installed("cuda", DEBIAN_12), installed("cpu", DEBIAN_12)
    assert "onnxruntime" not in cuda
    assert "onnxruntime-gpu" not in cpu
    assert cpu["onnxruntime"] == cuda["onnxruntime-gpu"]


def test_the_cpu_lock_has_two_small_packages_of_nvidia_s() -> None:
    assert {name for name in installed("cpu", DEBIAN_12) if name.startswith(("nvidia", "triton"))} == {
        "nvidia-cuda-cupti",
        "nvidia-cuda-runtime",
    }
