"""compose.yaml and deploy/kubernetes/: as their schemas have them, and as the image is."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

import toolkit

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "deploy" / "kubernetes").glob("*.yaml"))
RESOURCES = [resource for path in FILES for resource in yaml.safe_load_all(path.read_text(encoding="utf-8"))]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
VERSIONS = ("1.30", kubernetes_validate.latest_version())


def name_of(resource: dict[str, Any]) -> str:
    return f"{resource['kind']} {resource['metadata']['name']}"


def pods() -> Iterator[dict[str, Any]]:
    for resource in RESOURCES:
        if "template" in resource["spec"]:
            yield resource["spec"]["template"]["spec"]


def containers() -> Iterator[dict[str, Any]]:
    for pod in pods():
        yield from (*pod.get("initContainers", []), *pod["containers"])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("resource", RESOURCES, ids=name_of)
def test_kubernetes_accepts_it(resource: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(resource, version, strict=True)


def test_the_validator_refuses_what_is_wrong() -> None:
    wrong = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, "spec": {"tmplate": {}}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


def test_the_stages_run_in_order() -> None:
    (job,) = (resource for resource in RESOURCES if resource["kind"] == "Job")
    pod = job["spec"]["template"]["spec"]
    commands = [container["args"] for container in (*pod["initContainers"], *pod["containers"])]
    assert commands == [["distill"], ["export", "--onnx"], ["bench"]]


def test_pods_may_do_as_little_as_possible() -> None:
    for pod in pods():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == int(re.findall(r"^USER (\d+)$", DOCKERFILE, re.MULTILINE)[0])
    for container in containers():
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"] is True
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert {place["mountPath"] for place in container["volumeMounts"]} == {"/app/models", "/tmp"}
        assert {"requests", "limits"} <= container["resources"].keys()


def test_the_demo_is_probed_at_healthz_on_its_port() -> None:
    (demo,) = (container for container in containers() if container["name"] == "demo")
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert demo[probe]["httpGet"] == {"path": "/healthz", "port": "http"}
    assert f"EXPOSE {demo['ports'][0]['containerPort']}" in DOCKERFILE


def test_compose_runs_the_stages_in_order() -> None:
    services = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]
    assert list(services) == ["distill", "export", "bench", "demo"]
    for before, after in zip(list(services), list(services)[1:], strict=False):
        assert services[after]["depends_on"] == {before: {"condition": "service_completed_successfully"}}
    override = yaml.safe_load((ROOT / "compose.gpu.yaml").read_text(encoding="utf-8"))["services"]
    assert override.keys() == services.keys()


def test_the_image_states_its_version() -> None:
    assert f'org.opencontainers.image.version="{toolkit.__version__}"' in DOCKERFILE


def test_the_image_asks_for_no_newer_driver_than_the_docs_promise() -> None:
    """NVIDIA's own images ask for the driver of their CUDA, and the engine ends a container on an older one.

    Driver 580 is the first for CUDA 13, and knows 13.0.
    """
    promise = (ROOT / "docs" / "container.md").read_text(encoding="utf-8")
    assert "a driver for CUDA 13 (580 or newer)" in promise
    (base,) = re.findall(r"^ARG BASE_IMAGE=(.+)$", DOCKERFILE, re.MULTILINE)
    assert re.fullmatch(r"(ubuntu|debian):\S+", base)
    stage = DOCKERFILE.partition("FROM image AS cuda\n")[2].partition("\nFROM ")[0]
    settings = dict(re.findall(r'(NVIDIA_\w+)="?([^"\s\\]+)', stage))
    assert settings == {
        "NVIDIA_VISIBLE_DEVICES": "all",
        "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",
        "NVIDIA_REQUIRE_CUDA": "cuda>=13.0",
    }
    assert DOCKERFILE.count("NVIDIA_REQUIRE") == 1


def test_compose_and_the_dockerfile_name_the_same_base() -> None:
    (base,) = re.findall(r"^ARG BASE_IMAGE=(.+)$", DOCKERFILE, re.MULTILINE)
    assert f"${{BASE_IMAGE:-{base}}}" in (ROOT / "compose.yaml").read_text(encoding="utf-8")
