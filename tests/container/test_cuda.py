"""The CUDA side of the image: every library is there, and doctor says what really runs."""

import json
from typing import Any

import pytest

from .engine import docker, doctor, inspect

pytestmark = pytest.mark.container

RESOLVE = r"""
import json, pathlib, re, subprocess, sysconfig
packages = pathlib.Path(sysconfig.get_paths()["purelib"])
folders = sorted({str(path.parent) for path in packages.glob("nvidia/*/lib/*.so*")})
environment = {"LD_LIBRARY_PATH": ":".join(folders)}
roots = [packages / "onnxruntime/capi/libonnxruntime_providers_cuda.so"]
roots += sorted(packages.glob("nvidia/cudnn/lib/*.so*"))  # cuDNN opens its parts when they are needed
roots += sorted(packages.glob("nvidia/*/lib/libcufft.so*")) + sorted(packages.glob("torch/lib/lib*.so"))
found, missing = {}, {}
for root in roots:
    printed = subprocess.run(["ldd", str(root)], capture_output=True, text=True, env=environment, check=True).stdout
    for name, place in re.findall(r"^\s*(\S+) => (not found|\S+)", printed, re.M):
        if place == "not found":
            missing.setdefault(name, []).append(root.name)
        else:
            found.setdefault(name, []).append(place)
    found[root.name] = [str(root)]
print(json.dumps({"found": found, "missing": missing}))
"""

OF_THE_DRIVER = {"libcuda.so.1", "libnvidia-ml.so.1"}
"""Libraries that `--gpus all` brings in from the host."""


def resolve_libraries(image: str, *flags: str, before: str = "true") -> dict[str, Any]:
    """{"found": {library: [paths]}, "missing": {library: [who asks for it]}}, for CUDA's provider and for torch."""
    command = ["--entrypoint", "sh", image, "-c", f'{before}; exec python -c "$0"', RESOLVE]
    found = json.loads(docker("run", "--rm", "--network", "none", *flags, *command).stdout)
    assert isinstance(found, dict)
    return found


def check_libraries(resolved: dict[str, Any]) -> str:
    """A sentence about faults, "" if there are none."""
    absent = {name: users for name, users in resolved["missing"].items() if name not in OF_THE_DRIVER}
    if absent:
        return f"missing: {absent}"
    for start in ("libcurand.so.", "libcufft.so.", "libcudnn.so.", "libcublas.so.", "libcublasLt.so.", "libcudart.so."):
        if not any(name.startswith(start) for name in resolved["found"]):
            return f"no {start}* is among what was found"
    majors = {name.rpartition(".so.")[2].split(".")[0] for name in resolved["found"] if name.startswith("libcudnn")}
    return "" if len(majors) == 1 else f"cuDNN of more than one major version: {sorted(majors)}"


def test_every_library_of_the_cuda_provider_is_inside(cuda_image: str) -> None:
    assert check_libraries(resolve_libraries(cuda_image)) == ""


@pytest.mark.parametrize("name", ["libcurand.so.10", "libcufft.so.12", "libcudnn.so.9", "libnvJitLink.so.13"])
def test_a_library_that_is_missing_is_noticed(cuda_image: str, name: str) -> None:
    remove = f"rm /opt/kd-toolkit/lib/python3*/site-packages/nvidia/*/lib/{name}"
    found = check_libraries(resolve_libraries(cuda_image, "--user", "0", before=remove))
    assert name.rpartition(".")[0] in found


def test_a_second_cudnn_is_noticed(cuda_image: str) -> None:
    folder = "/opt/kd-toolkit/lib/python3*/site-packages/nvidia/cudnn/lib"
    copy = f"cd {folder} && cp libcudnn_ops.so.9 libcudnn_ops.so.8"
    assert "more than one major" in check_libraries(resolve_libraries(cuda_image, "--user", "0", before=copy))


def test_without_a_gpu_doctor_says_that_the_cpu_runs_and_cuda_does_not(cuda_image: str) -> None:
    found = {check["name"]: check for check in doctor(cuda_image)["checks"]}
    assert found["onnxruntime cpu"]["finding"] == "ran a small model"
    assert (found["onnxruntime cuda"]["status"], found["torch cpu"]["status"]) == ("note", "ok")
    assert "libcuda.so.1 (the NVIDIA driver) is not on this machine" in found["onnxruntime cuda"]["finding"]


def test_the_engine_is_asked_for_every_gpu_and_for_no_newer_driver_than_promised(cuda_image: str) -> None:
    settings = dict(pair.split("=", 1) for pair in inspect(cuda_image, ".Config.Env"))
    assert (settings["NVIDIA_VISIBLE_DEVICES"], settings["NVIDIA_DRIVER_CAPABILITIES"]) == ("all", "compute,utility")
    asked = {name: text for name, text in settings.items() if name.startswith("NVIDIA_REQUIRE_")}
    assert asked == {"NVIDIA_REQUIRE_CUDA": "cuda>=13.0"}  # that is driver 580: docs/container.md


def test_no_other_driver_is_inside(cuda_image: str) -> None:
    """A compatibility driver (cuda-compat) would be taken in place of the host's, and GeForce cards refuse it."""
    find = ["--entrypoint", "find", cuda_image, "/", "-xdev", "-name", "libcuda.so*"]
    assert docker("run", "--rm", "--network", "none", "--user", "0", *find).stdout == ""


@pytest.mark.gpu
def test_a_gpu_is_used_if_the_engine_gives_one(cuda_image: str) -> None:
    if docker("run", "--rm", "--gpus", "all", "--entrypoint", "true", cuda_image, check=False).returncode != 0:
        pytest.skip("THIS ENGINE GIVES NO GPU (--gpus all): the image was not tried on one")
    found = {check["name"]: check["status"] for check in doctor(cuda_image, "--gpus", "all")["checks"]}
    assert (found["torch cuda:0"], found["onnxruntime cuda"]) == ("ok", "ok")
