"""`toolkit doctor --deep`: working parts are measured, and wrong or failing ones are problems with a remedy."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import DEVICES

from toolkit.cli import ending
from toolkit.distill.rehearsal import Launches, Rehearsal
from toolkit.doctor import deep, diagnosis, examine
from toolkit.doctor.deep import find_code
from toolkit.doctor.diagnosis import Check
from toolkit.graphs.half import halve
from toolkit.machine import hardware
from toolkit.sessions import providers

HANG_S = 600.0
"""s after which a test gives up; it says nothing about the machine's speed"""
BUILT = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")
"""The kinds of GPU that torch 2.15 for CUDA 13.2 has code for."""


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deep, "IMAGE_SIZE", 32)
    monkeypatch.setattr(deep, "BATCHES", {"cpu": (8, 2), "gpu": (8, 2)})
    monkeypatch.setattr(deep, "product_flop_s", lambda device, precision, limit_s: 1.5e12)


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.usefixtures("small")
def test_a_machine_at_work_has_no_problem(device: str, capfd: pytest.CaptureFixture[str]) -> None:
    checks = {check.name: check for check in deep.examine_at_work(["cpu"] if device == "cpu" else ["cpu", device])}
    assert capfd.readouterr() == ("", ""), "nothing is printed while it works"
    expected = {f"copies on {device}", f"products on {device}", f"training on {device}", "onnx graph cpu"}
    if device != "cpu":
        expected |= {f"code for {device}", f"memory of {device}", "onnx graph cuda"}
        assert "kernels" in checks[f"training on {device}"].finding
    assert set(checks) == expected
    assert [check for check in checks.values() if check.status == "problem"] == []
    assert all(bool(check.remedy) == (check.status != "ok") for check in checks.values())
    assert "TFLOP/s in" in checks[f"products on {device}"].finding
    assert "images per second (student, 32 px, " in checks[f"training on {device}"].finding
    assert "operators on CPUExecutionProvider" in checks["onnx graph cpu"].finding


@pytest.mark.parametrize(("status", "code"), [("note", 0), ("problem", 1)])
@pytest.mark.parametrize("as_json", [False, True])
def test_the_command_says_what_was_found_and_ends_accordingly(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    status: diagnosis.Status,
    code: int,
    as_json: bool,
) -> None:
    asked = []
    monkeypatch.setattr(
        deep, "examine_at_work", lambda devices: asked.append(devices) or [Check("copies", status, "slow", "mend it")]
    )
    monkeypatch.setattr(sys, "argv", ["toolkit", "doctor", "--deep", *(["--json"] if as_json else [])])
    with pytest.raises(SystemExit) as stop:
        ending.main()
    assert (stop.value.code or 0) == code
    out = capsys.readouterr().out
    if as_json:
        assert json.loads(out)["checks"][-1] == {
            "name": "copies",
            "status": status,
            "finding": "slow",
            "remedy": "mend it",
        }
    else:
        assert "→ mend it" in out
    assert "cpu" in asked[0]


def test_without_the_flag_nothing_is_put_to_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deep, "examine_at_work", lambda devices: 1 / 0)
    examine.examine()


@pytest.mark.parametrize(
    ("capability", "built", "expected"),
    [
        ((9, 0), BUILT, "sm_90"),
        ((8, 9), BUILT, "sm_80"),  # of its own generation, an older minor version
        ((10, 3), BUILT, "sm_100"),
        ((7, 0), BUILT, ""),
        ((11, 0), BUILT, ""),
        ((9, 0), ("sm_90a",), "sm_90a"),
        ((10, 3), ("sm_100a",), ""),  # for that version alone
        ((10, 3), ("sm_100f",), "sm_100f"),  # and for its family
        ((12, 0), ("sm_90", "compute_90"), "compute_90"),
        ((8, 6), ("sm_90", "compute_90"), ""),
        ((12, 0), ("compute_90a",), ""),
        ((9, 0), ("gfx942",), ""),
    ],
)
def test_code_that_a_gpu_can_run(capability: tuple[int, int], built: tuple[str, ...], expected: str) -> None:
    assert find_code(*capability, built) == expected


@pytest.mark.parametrize(
    ("built", "status"), [(["sm_80", "sm_90"], "ok"), (["sm_80", "compute_80"], "note"), (["sm_100"], "problem")]
)
def test_a_gpu_without_code_is_a_problem(monkeypatch: pytest.MonkeyPatch, built: list[str], status: str) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda gpu: "NVIDIA H100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda gpu: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built)
    check = deep.check_code("cuda:0")
    assert check.status == status
    assert check.finding.startswith(f"NVIDIA H100 is sm_90; this torch has code for {', '.join(built)}")
    assert bool(check.remedy) == (status != "ok")


@pytest.mark.parametrize(("free", "status"), [(70, "ok"), (30, "note")])
def test_a_gpu_that_others_use_is_noted(monkeypatch: pytest.MonkeyPatch, free: int, status: str) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda gpu: (free * hardware.GIB, 80 * hardware.GIB))
    check = deep.check_free_memory("cuda:0")
    assert (check.status, check.finding) == (status, f"{free}.0 of 80.0 GiB are free")
    assert ("nvidia-smi" in check.remedy) == (status == "note")


@pytest.mark.parametrize(("pinned_bytes_s", "status"), [(25e9, "ok"), (1.6e9, "note")])
def test_a_narrow_way_to_the_gpu_is_noted(monkeypatch: pytest.MonkeyPatch, pinned_bytes_s: float, status: str) -> None:
    monkeypatch.setattr(deep, "copy_bytes_s", lambda device: 3e12)
    monkeypatch.setattr(deep, "bus_bytes_s", lambda device, pinned: pinned_bytes_s if pinned else 1e9)
    check = deep.check_copies("cuda:0")
    expected = f"3,000 GB/s in its memory, 1.0 GB/s from the host, {pinned_bytes_s / 1e9:.1f} from pinned memory"
    assert (check.status, check.finding) == (status, expected)
    assert ("pcie.link.width" in check.remedy) == (status == "note")


@pytest.mark.usefixtures("small")
def test_a_product_that_is_wrong_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deep, "PRODUCT_ERROR", 0.0)
    check = deep.tried("products on cpu", lambda: deep.check_products("cpu"), "mend it")
    assert (check.status, check.remedy) == ("problem", "mend it")
    assert check.finding.startswith("failed: a product in fp32 is wrong by ")


@pytest.mark.parametrize(
    ("launches", "ending"),
    [
        (Launches(270.8, 2.1, 0.0), "; a step takes 271 kernels and 2 copies from the host; cuDNN 9.26"),
        (None, "; kernels were not counted, because CUDA's profiling interface shows none; cuDNN 9.26"),
    ],
)
def test_training_on_a_gpu_reports_its_kernels(
    monkeypatch: pytest.MonkeyPatch, launches: Launches | None, ending: str
) -> None:
    monkeypatch.setattr(Rehearsal, "images_per_second", lambda self: 12_345.6)
    monkeypatch.setattr(Rehearsal, "precision", "bf16")
    monkeypatch.setattr(Rehearsal, "count_launches", lambda self: launches)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 92_600)
    check = deep.check_training("cuda:0")
    expected = "12,346 images per second (student, 160 px, bf16, stored logits, batches of 64)"
    assert (check.status, check.finding) == ("ok", expected + ending)


def test_every_failure_is_a_problem_with_its_first_line() -> None:
    def fail() -> Check:
        raise RuntimeError("CUDA error: no kernel image is available\nand more")

    check = deep.tried("training on cuda:0", fail, "mend it")
    assert (check.status, check.finding) == ("problem", "failed: CUDA error: no kernel image is available")
    assert check.remedy == "mend it"


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray, np.ndarray]:
    """The graph, images and torch's logits of them."""
    path = tmp_path_factory.mktemp("deep") / "student.onnx"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deep, "IMAGE_SIZE", 32)
        return path, *deep.write_graph(path)


@pytest.mark.parametrize("provider", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_provider_that_answers_as_torch_does_is_ok(
    graph: tuple[Path, np.ndarray, np.ndarray], provider: str, precision: str
) -> None:
    path, images, expected = graph
    if precision == "fp16":
        half = halve(onnx.load_model(path))
        onnx.save_model(half, path := path.with_name("student.fp16.onnx"))
    assert np.abs(expected).max() > 0.1
    assert expected.argmax(1).std() > 0, "not all the same"
    check = deep.compare(path, provider, images, expected)
    assert check.status == "ok", check
    assert "largest difference from torch on the CPU" in check.finding


def test_a_provider_that_answers_otherwise_is_a_problem(graph: tuple[Path, np.ndarray, np.ndarray]) -> None:
    path, images, expected = graph
    for wrong in (expected + 0.02 * np.abs(expected).max(), np.full_like(expected, np.nan)):
        check = deep.compare(path, "cpu", images, wrong)
        assert check.status == "problem"
        assert check.remedy


def refuse(*rest: object) -> None:
    raise ValueError("no")


@pytest.mark.parametrize(
    ("broken", "name", "finding", "remedy"),
    [
        ("write_graph", "onnx graph", "cannot be written: no", deep.MEND_EXPORT),
        ("compare", "onnx graph cpu", "failed: no", deep.MEND_ONNXRUNTIME),
    ],
)
def test_a_graph_that_cannot_be_written_or_run_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, broken: str, name: str, finding: str, remedy: str
) -> None:
    monkeypatch.setattr(providers, "working_providers", lambda: {providers.PROVIDERS["cpu"]: ""})
    monkeypatch.setattr(deep, "write_graph", lambda path: (np.zeros(1), np.zeros(1)))
    monkeypatch.setattr(deep, broken, refuse)
    assert list(deep.check_graph()) == [Check(name, "problem", finding, remedy)]


def test_only_providers_that_work_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    working = {providers.PROVIDERS["cuda"]: "no driver", providers.PROVIDERS["cpu"]: ""}
    monkeypatch.setattr(providers, "working_providers", lambda: working)
    monkeypatch.setattr(deep, "write_graph", lambda path: (np.zeros(1), np.zeros(1)))
    monkeypatch.setattr(deep, "compare", lambda path, name, images, expected: Check(name, "ok", ""))
    assert [check.name for check in deep.check_graph()] == ["cpu"]


@pytest.mark.slow
def test_processes_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deep, "ALL_REDUCE_S", HANG_S)
    check = deep.check_all_reduce(["cpu", "cpu"])
    assert (check.name, check.status) == ("gloo", "ok")
    assert check.finding.startswith("2 processes added up 67 MB in ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "seconds", "message"),
    [
        (["cpu", "nowhere"], HANG_S, "1 of 2 processes failed, exit code 1"),
        (["cpu", "cpu"], 0.01, "2 of 2 processes did not end within 0 s"),
    ],
)
def test_processes_that_fail_or_wait_for_ever_are_ended(
    monkeypatch: pytest.MonkeyPatch, devices: list[str], seconds: float, message: str
) -> None:
    monkeypatch.setattr(deep, "ALL_REDUCE_S", seconds)
    check = deep.tried("nccl", lambda: deep.check_all_reduce(devices), deep.MEND_NCCL)
    assert (check.status, check.finding) == ("problem", f"failed: {message}")


def test_a_process_that_fails_between_two_looks_has_failed() -> None:
    class Process:
        """It runs when it is first looked at, and has failed right after."""

        looks = 0

        def is_alive(self) -> bool:
            self.looks += 1
            return self.looks == 1

        exitcode = 1

    with pytest.raises(RuntimeError, match=r"^1 of 1 processes failed, exit code 1$"):
        deep._wait_for([Process()])  # type: ignore[list-item]


def test_several_gpus_are_also_asked_for_a_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(name: str) -> Callable[..., Check]:
        return lambda *rest: Check(name, "ok", "")

    for name in ("check_code", "check_free_memory", "check_copies", "check_products", "check_training"):
        monkeypatch.setattr(deep, name, found(name))
    monkeypatch.setattr(deep, "check_graph", lambda: iter(()))
    monkeypatch.setattr(deep, "check_all_reduce", lambda gpus: Check("nccl", "ok", " ".join(gpus)))
    last = [list(deep.examine_at_work(devices))[-1] for devices in (["cpu", "cuda:0"], ["cpu", "cuda:0", "cuda:1"])]
    assert [check.name for check in last] == ["check_training", "nccl"]
    assert last[1].finding == "cuda:0 cuda:1"
