import json
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from toolkit.doctor import checks, diagnosis, examine
from toolkit.machine import devices, hardware, limits
from toolkit.sessions import providers

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def test_this_machine_is_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    report = examine.examine()
    assert not report.has_problem
    found = {check.name: check for check in report.checks}
    assert found["torch cpu"].status == found["onnxruntime cpu"].status == found["cache"].status == "ok"
    assert f"torch {metadata.version('torch')}" in found["packages"].finding

    value = json.loads(json.dumps(report.to_json()))
    assert value["ok"] is True
    assert [check["name"] for check in value["checks"]] == [check.name for check in report.checks]
    assert set(value["hardware"]) == set(hardware.describe_hardware())

    capsys.readouterr()
    report.print_table()
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "no problem found"
    assert sum(line.startswith(("ok ", "note ", "problem ")) for line in lines) == len(report.checks)


def test_every_note_and_problem_says_what_to_do() -> None:
    for check in examine.examine().checks:
        assert bool(check.remedy) == (check.status != "ok")


def test_problems_are_counted_and_marked(capsys: pytest.CaptureFixture[str]) -> None:
    found = (diagnosis.Check("a", "ok", "fine"), diagnosis.Check("bb", "problem", "broken [red]", "mend it"))
    report = diagnosis.Diagnosis(found, {}, {})
    assert report.has_problem
    assert report.to_json()["ok"] is False
    report.print_table()
    assert capsys.readouterr().out.splitlines() == [
        "ok      a   fine",
        "problem bb  broken [red]",
        "            → mend it",
        "1 problem found",
    ]


def set_devices(monkeypatch: pytest.MonkeyPatch, found: dict[str, str]) -> None:
    monkeypatch.setattr(devices, "torch_devices", lambda: found)


def test_no_gpu_is_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    set_devices(monkeypatch, {"cpu": ""})
    assert [(check.name, check.status) for check in checks.check_devices([])] == [("torch cpu", "ok"), ("gpu", "ok")]


def test_a_visible_gpu_that_does_not_work_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    set_devices(monkeypatch, {"cpu": "", "cuda:0": "the driver is too old"})
    _, check = checks.check_devices(["NVIDIA H200"])
    assert (check.name, check.status) == ("torch cuda:0", "problem")
    assert check.finding == "NVIDIA H200 is visible, but unusable: the driver is too old"
    assert "driver" in check.remedy


def test_a_working_gpu_is_ok(monkeypatch: pytest.MonkeyPatch) -> None:
    set_devices(monkeypatch, {"cpu": "", "cuda:0": ""})
    assert [check.status for check in checks.check_devices(["NVIDIA H200"])] == ["ok", "ok"]


@pytest.mark.parametrize(
    ("driver", "built", "status", "finding"),
    [
        ((13, 2), "13.2", "ok", "the driver has 13.2, torch was built for 13.2"),
        ((14, 0), "13.2", "ok", "the driver has 14.0, torch was built for 13.2"),
        ((13, 0), "13.2", "note", "the driver has 13.0, torch was built for 13.2"),
        ((12, 8), "13.2", "problem", "the driver has 12.8, torch was built for 13.2"),
    ],
)
def test_a_driver_that_is_older_than_torchs_cuda_is_reported(
    monkeypatch: pytest.MonkeyPatch, driver: tuple[int, int], built: str, status: str, finding: str
) -> None:
    monkeypatch.setattr(checks, "driver_cuda", lambda: driver)
    monkeypatch.setattr("torch.version.cuda", built)
    (check,) = checks.check_cuda()
    assert (check.name, check.status, check.finding) == ("cuda", status, finding)
    assert ("update the" in check.remedy) == (status != "ok")


def test_without_a_driver_or_a_torch_for_cuda_nothing_is_said_about_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "driver_cuda", lambda: None)
    assert list(checks.check_cuda()) == []
    monkeypatch.setattr(checks, "driver_cuda", lambda: (13, 0))
    monkeypatch.setattr("torch.version.cuda", None)
    assert list(checks.check_cuda()) == []


class Driver:
    """Stands for libcuda.so.1, which tells its version in thousands and tens."""

    def __init__(self, version: int, code: int = 0) -> None:
        self.version, self.code = version, code

    def cuDriverGetVersion(self, place: Any) -> int:  # noqa: N802 - CUDA's name
        place._obj.value = self.version
        return self.code


@pytest.mark.parametrize(("library", "expected"), [(Driver(13020), (13, 2)), (Driver(12090, 3), None), (None, None)])
def test_the_driver_is_asked_for_its_cuda(
    monkeypatch: pytest.MonkeyPatch, library: Driver | None, expected: tuple[int, int] | None
) -> None:
    def load(name: str) -> Driver:
        assert name == "libcuda.so.1"
        if library is None:
            raise OSError("libcuda.so.1: cannot open shared object file")
        return library

    monkeypatch.setattr("ctypes.CDLL", load)
    assert checks.driver_cuda() == expected


def test_a_torch_that_does_not_load_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> dict[str, str]:
        raise OSError("libtorch_cuda.so: file too short")

    monkeypatch.setattr(devices, "torch_devices", fail)
    monkeypatch.setattr(providers, "working_providers", fail)
    for found in (list(checks.check_devices([])), list(checks.check_providers(False))):
        assert [check.status for check in found] == ["problem"]
        assert "file too short" in found[0].finding


@pytest.mark.parametrize(
    ("working", "has_gpu", "expected"),
    [
        ({CUDA: "no driver", CPU: ""}, False, {"onnxruntime cuda": "note", "onnxruntime cpu": "ok"}),
        ({CUDA: "no cuDNN", CPU: ""}, True, {"onnxruntime cuda": "problem", "onnxruntime cpu": "ok"}),
        ({CUDA: "", CPU: ""}, True, {"onnxruntime cuda": "ok", "onnxruntime cpu": "ok"}),
        ({CPU: "broken"}, False, {"onnxruntime cpu": "problem"}),
        ({CPU: ""}, True, {"onnxruntime cpu": "ok", "onnxruntime cuda": "problem"}),
    ],
)
def test_providers_are_judged_by_what_ran(
    monkeypatch: pytest.MonkeyPatch, working: dict[str, str], has_gpu: bool, expected: dict[str, str]
) -> None:
    monkeypatch.setattr(providers, "working_providers", lambda: working)
    found = list(checks.check_providers(has_gpu))
    assert {check.name: check.status for check in found} == expected
    for check in found:
        if check.status != "ok" and "built without" not in check.finding:
            assert check.finding.startswith("listed, but does not run: ")


@pytest.mark.parametrize(("has_gpu", "status"), [(True, "problem"), (False, "note")])
def test_both_onnxruntimes_at_once_are_reported(
    monkeypatch: pytest.MonkeyPatch, has_gpu: bool, status: diagnosis.Status
) -> None:
    monkeypatch.setattr(hardware, "installed_versions", lambda packages: dict.fromkeys(packages, "1.31.1"))
    (check,) = checks.check_twin_runtimes(has_gpu)
    assert check.status == status
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in check.remedy


def test_one_onnxruntime_is_not_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "installed_versions", lambda _: {"onnxruntime-gpu": "1.31.1"})
    assert list(checks.check_twin_runtimes(True)) == []


def test_packages_that_are_missing_or_old_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["torch>=2", "numpy>=999", "no-such-package>=1", "other>=1; extra == 'dev'", "mac>=1; sys_platform == 'x'"]
    monkeypatch.setattr(metadata, "requires", lambda _: asked)
    check = checks.check_packages()
    assert check.status == "problem"
    assert (
        check.finding
        == f"numpy is {metadata.version('numpy')}, but >=999 is required; no-such-package is not installed"
    )


def test_a_toolkit_that_is_not_installed_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> list[str]:
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "requires", fail)
    assert checks.check_packages().status == "note"


def test_too_many_threads_for_the_cores_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "available_cores", lambda: 2)
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    assert checks.check_cores().finding == "OMP_NUM_THREADS is 64, but this process may use only 2 cores"
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert checks.check_cores().status == "ok"
    assert checks.check_cores().finding.startswith("2 of the machine's 64")


@pytest.mark.parametrize(("size_bytes", "status"), [(2**30, "note"), (8 * 2**30, "ok")])
def test_little_memory_is_noted(monkeypatch: pytest.MonkeyPatch, size_bytes: int, status: str) -> None:
    monkeypatch.setattr(limits, "memory_bytes", lambda: size_bytes)
    assert checks.check_memory().status == status


@pytest.mark.parametrize(("size_bytes", "status"), [(2**20, "note"), (2**30, "ok"), (None, "ok")])
def test_little_shared_memory_is_noted(monkeypatch: pytest.MonkeyPatch, size_bytes: int | None, status: str) -> None:
    monkeypatch.setattr(limits, "shared_memory_bytes", lambda: size_bytes)
    check = checks.check_shared_memory()
    assert check.status == status
    assert ("for torchrun on several GPUs start the container with --shm-size=1g" in check.remedy) == (status == "note")


def test_a_cache_that_cannot_be_written_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("KD_TOOLKIT_CACHE", str(tmp_path / "file" / "cache"))
    check = checks.check_cache()
    assert check.status == "problem"
    assert "KD_TOOLKIT_CACHE" in check.remedy


@pytest.mark.parametrize(("free_bytes", "status"), [(2**20, "note"), (2**40, "ok")])
def test_a_full_disk_is_noted(monkeypatch: pytest.MonkeyPatch, free_bytes: int, status: str) -> None:
    usage = type("Usage", (), {"free": free_bytes})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    assert checks.check_disk().status == status


def test_the_default_data_is_found_or_said_to_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KD_TOOLKIT_CACHE", str(tmp_path))
    monkeypatch.setattr("toolkit.data.named.FASHION_MNIST_SYSTEM_FOLDER", tmp_path / "nowhere")
    check = checks.check_default_data()
    assert check.status == "note"
    assert "make data" in check.remedy

    folder = tmp_path / "fashion-mnist"
    folder.mkdir()
    for part in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (folder / f"{part}-ubyte.gz").touch()
    assert checks.check_default_data().finding == f"in {folder}"


def test_onnxruntime_counts_for_its_twin_with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "requires", lambda name: ["onnxruntime-gpu[cuda]>=1.31"])
    monkeypatch.setattr(
        hardware, "installed_versions", lambda names: {n: "1.31.1" for n in names if n == "onnxruntime"}
    )
    check = checks.check_packages()
    assert (check.status, check.finding) == ("ok", "onnxruntime 1.31.1")
