"""First use: measured in a process of its own, against sizes that are known."""

import importlib.util
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from bench_samples import PREPROCESS, save_model_dir
from tiny_onnx import COLOURS, save_colour_model

from toolkit.bench.measure import first_use
from toolkit.bench.measure.first_use import FirstUse, measure_first_uses
from toolkit.bench.measure.rows import Row, open_rows
from toolkit.errors import DeviceError
from toolkit.networks.registry import NetworkSpec, build
from toolkit.networks.weights import ModelInfo, save_model
from toolkit.runtimes.io_binding import IoBindingPredictor
from toolkit.runtimes.onnxruntime import OnnxPredictor


def row_of(path: Path) -> Row:
    return Row("student", "fp32", path, OnnxPredictor(path, "cpu", threads=1), build("depthwise", 3, base=2), {})


def measure_first_use(row: Row, batch_size: int) -> FirstUse:
    (first_use,) = measure_first_uses([row], batch_size)
    return first_use


@pytest.fixture
def row(tmp_path: Path) -> Row:
    return row_of(save_colour_model(tmp_path / "colour.onnx"))


def test_a_small_file_is_opened_and_answers(row: Row) -> None:
    start = time.perf_counter()
    first_use = measure_first_use(row, 4)
    assert 0 < first_use.first_call_ms < 1e3 * (time.perf_counter() - start)
    assert first_use.peak_memory_mib is not None
    assert 0 < first_use.peak_memory_mib < 100


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_memory_grows_by_what_a_batch_needs(tmp_path: Path) -> None:
    row = row_of(save_colour_model(tmp_path / "large.onnx", image_size=256, resize=0))
    ballast = np.ones(2**26)  # 512 MiB of this process: the other one must not count them
    one, many = (measure_first_use(row, count).peak_memory_mib for count in (1, 96))
    assert one is not None
    assert many is not None
    assert one < 100
    needed_mib = 95 * 256 * 256 * 3 * (1 + 4) / 2**20  # the images, and the same as float32
    assert needed_mib * 0.9 < many - one < needed_mib * 1.6
    assert ballast[0] == 1


def test_torch_is_not_imported_for_an_onnx_file(row: Row) -> None:
    code = (
        "import sys; from pathlib import Path; from toolkit.bench.measure.first_use import use_first;"
        f"use_first(runtime='onnxruntime', path=Path({str(row.path)!r}), place='cpu', threads=1, precision='fp32',"
        "batch_size=2); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_torch_rows_and_the_runtimes_of_a_directory(tmp_path: Path) -> None:
    for row in open_rows(save_model_dir(tmp_path), "cpu", "cpu"):
        first_use = measure_first_use(row, 8)
        assert first_use.first_call_ms > 0
        assert first_use.peak_memory_mib is not None
        assert 0 < first_use.peak_memory_mib < 500


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed")
def test_openvino(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)  # OpenVINO heeds it half: "object is not initialized"
    row, _ = open_rows(save_model_dir(tmp_path), "cpu", "cpu", ("openvino",))
    assert measure_first_use(row, 8).first_call_ms > 0


@pytest.mark.parametrize("kind", ["onnxruntime", "onnxruntime.io_binding"])
def test_nothing_is_claimed_about_onnxruntimes_memory_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, row: Row, kind: str
) -> None:
    class OnGpu:
        preprocess, runtime, provider = row.predictor.preprocess, kind, "CUDAExecutionProvider:1"

        def logits(self, images: np.ndarray) -> None:
            pass

    monkeypatch.setattr(first_use, "open_predictor", lambda **_: OnGpu())
    found = first_use.use_first(runtime=kind, path=row.path, place="auto:1", threads=1, batch_size=1)
    assert found.peak_memory_mib is None
    assert found.first_call_ms > 0


def test_i_o_binding_is_opened_in_a_process_of_its_own_too(row: Row) -> None:
    bound = IoBindingPredictor(row.path, "cpu", threads=1)
    first_use = measure_first_use(replace(row, predictor=bound), 2)
    assert first_use.first_call_ms > 0


def test_a_file_that_cannot_be_opened_again_names_the_row(row: Row) -> None:
    row.path.unlink()
    with pytest.raises(DeviceError) as caught:
        measure_first_use(row, 1)
    assert str(caught.value) == (
        f"student fp32 (onnxruntime) fails in a process of its own: there is no ONNX file {row.path}; make one with:"
        " toolkit export --onnx; see toolkit doctor, or leave that runtime out (bench.runtimes)"
    )


def test_a_bug_in_the_process_is_reported_in_one_line(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    question = SimpleNamespace(dumps=lambda *_: '{"path": "/nowhere"}', loads=json.loads)
    monkeypatch.setattr(first_use, "json", question)
    with pytest.raises(DeviceError, match="fails in a process of its own: KeyError: ") as caught:
        measure_first_use(row, 1)
    assert "\n" not in str(caught.value)


class MadeUpProcess:
    """Popen of a process that says it is ready and then answers; `events` is shared by all of them."""

    def __init__(self, events: list[str], stdout: str, exit_code: int = 0, stderr: str = "", hangs: bool = False):
        self.events, self.said, self.exit_code, self.last_words, self.hangs = events, stdout, exit_code, stderr, hangs
        self.stdout, self.returncode, self.commands, self.environments = self, None, [], []  # type: ignore[var-annotated]

    def __call__(self, command: list[str], **settings: Any) -> "MadeUpProcess":
        self.commands.append(command)
        self.environments.append(settings["env"])
        self.errors = settings["stderr"]
        self.events.append("starts")
        return self

    def readline(self) -> str:
        self.events.append("is waited for")
        return "ready\n"

    def communicate(self, words: str | None = None, timeout: float | None = None) -> tuple[str, None]:
        if words is not None:
            self.events.append("is asked")
            if self.hangs:
                raise subprocess.TimeoutExpired("python", 1800)
            self.errors.write(self.last_words)
            self.returncode = self.exit_code
        return self.said, None

    def kill(self) -> None:
        self.events.append("is ended")


def start_instead(monkeypatch: pytest.MonkeyPatch, process: MadeUpProcess) -> None:
    """Of this one module alone: other threads and modules start processes of their own."""
    monkeypatch.setattr(first_use, "subprocess", SimpleNamespace(**vars(subprocess) | {"Popen": process}))


ANSWER = 'noise\n{"first_call_ms": 1.5, "peak_memory_mib": null}\n'


@pytest.mark.parametrize(
    ("process", "reason"),
    [
        (MadeUpProcess([], "", -9), "it was ended by SIGKILL"),
        (MadeUpProcess([], "", -11, "warning"), "it was ended by SIGSEGV"),
        (MadeUpProcess([], "", 3, "\n"), "exit code 3"),
        (MadeUpProcess([], "", 1, "Traceback\n  ...\nRuntimeError: no\n\n"), "RuntimeError: no"),
        (MadeUpProcess([], "", hangs=True), "no answer after 1800 s"),
    ],
)
def test_the_end_of_the_process_is_reported(
    row: Row, monkeypatch: pytest.MonkeyPatch, process: MadeUpProcess, reason: str
) -> None:
    start_instead(monkeypatch, process)
    with pytest.raises(DeviceError) as caught:
        measure_first_use(row, 1)
    assert f"student fp32 (onnxruntime) fails in a process of its own: {reason}; see" in str(caught.value)
    assert process.events[-1] == "is ended"


def test_the_process_is_asked_about_the_row(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    process = MadeUpProcess([], ANSWER)
    start_instead(monkeypatch, process)
    assert measure_first_use(row, 32) == FirstUse(1.5, None)
    assert json.loads(process.commands[0][-1]) == {
        "runtime": "onnxruntime",
        "path": str(row.path),
        "place": "cpu",
        "threads": 1,
        "precision": "fp32",
        "batch_size": 32,
        "modules": [],
        "trust": None,
    }
    assert process.environments[0]["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] == "1"


class TestSideBySide:
    """Processes may start at the same time, but nothing is measured beside anything."""

    def events(self, rows: list[Row], gib: float, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        process = MadeUpProcess([], ANSWER)
        start_instead(monkeypatch, process)
        monkeypatch.setattr(first_use, "memory_bytes", lambda: round(gib * 2**30))
        done: list[int] = []
        assert measure_first_uses(rows, 1, done.append) == [FirstUse(1.5, None)] * len(rows)
        assert done == [1] * len(rows)
        return process.events

    def test_all_are_ready_before_the_first_is_asked(self, row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
        steps = ("starts", "is waited for", "is asked", "is ended")
        assert self.events([row] * 3, 8, monkeypatch) == [step for step in steps for _ in range(3)]

    def test_one_after_the_other_with_little_memory(self, row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
        steps = ["starts", "is waited for", "is asked", "is ended"]
        assert self.events([row] * 2, 1.5, monkeypatch) == steps * 2

    def test_and_on_a_gpu(self, row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
        row.predictor.provider = "CUDAExecutionProvider"
        assert self.events([row] * 2, 64, monkeypatch)[:3] == ["starts", "is waited for", "is asked"]

    def test_a_real_one_answers_only_when_it_is_asked(self, row: Row) -> None:
        with first_use._Process(row, 1) as process:
            process.wait_until_ready()
            with pytest.raises(subprocess.TimeoutExpired):
                process._process.wait(0.3)
            assert process.answer().first_call_ms > 0

    def test_one_that_nobody_asks_ends_by_itself(self, row: Row) -> None:
        with first_use._Process(row, 1) as process:
            process.wait_until_ready()
            assert process._process.stdin is not None
            process._process.stdin.close()
            assert process._process.wait(600) == 1
            process._process.stdin = None


def test_modules_that_build_the_network_are_imported_before_the_clock_starts(tmp_path: Path) -> None:
    """torchvision takes a second to import, and 100 MB."""
    network = build("squeezenet1_1", 3)
    info = ModelInfo(
        "teacher", NetworkSpec("squeezenet1_1"), COLOURS, PREPROCESS, {}, "0" * 64, "1" * 64, None, "0.1.0"
    )
    save_model(path := tmp_path / "teacher.safetensors", network, info)
    code = (
        "import sys; from pathlib import Path; from toolkit.runtimes.opening import RUNTIMES;"
        f"RUNTIMES['torch'].start(Path({str(path)!r}), 'cpu'); assert 'torchvision' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.gpu
def test_torchs_memory_on_a_gpu_is_its_allocators_peak(tmp_path: Path) -> None:
    import torch

    model_dir = save_model_dir(tmp_path)
    row, *_ = open_rows(model_dir, "cuda:0", "auto", ("torch",))
    other = torch.zeros(2**26, device="cuda:0")  # 256 MiB of this process: the other one must not count them
    one, many = (measure_first_use(row, count).peak_memory_mib for count in (1, 1024))
    assert one is not None
    assert many is not None
    pixels_mib = 1024 * 32 * 32 * 3 * 4 / 2**20  # as float32: the least of what a batch needs
    assert 0 < one < pixels_mib < many < 256
    del other
