"""First use: measured in a process of its own, against sizes that are known."""

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_samples import save_model_dir
from tiny_onnx import save_colour_model

from toolkit.bench import probe
from toolkit.bench.probe import FirstUse, measure_first_use
from toolkit.bench.rows import Row, open_rows
from toolkit.errors import DeviceError
from toolkit.networks.registry import build
from toolkit.predictor import OnnxPredictor


def row_of(path: Path) -> Row:
    return Row("student", "fp32", path, OnnxPredictor(path, "cpu", threads=1), build("depthwise", 3, base=2), {})


@pytest.fixture
def row(tmp_path: Path) -> Row:
    return row_of(save_colour_model(tmp_path / "colour.onnx"))


def test_a_small_file_is_opened_and_answers(row: Row) -> None:
    first_use = measure_first_use(row, 4)
    assert 0 < first_use.first_call_ms < 10_000
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
        "import sys; from pathlib import Path; from toolkit.bench.probe import use_first;"
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
def test_openvino(tmp_path: Path) -> None:
    row, _ = open_rows(save_model_dir(tmp_path), "cpu", "cpu", ("openvino",))
    assert measure_first_use(row, 8).first_call_ms > 0


def test_nothing_is_claimed_about_onnxruntimes_memory_on_a_gpu(monkeypatch: pytest.MonkeyPatch, row: Row) -> None:
    class OnGpu:
        preprocess, runtime, provider = row.predictor.preprocess, "onnxruntime", "CUDAExecutionProvider"

        def logits(self, images: np.ndarray) -> None:
            pass

    monkeypatch.setattr(probe, "open_predictor", lambda **_: OnGpu())
    first_use = probe.use_first(runtime="onnxruntime", path=row.path, place="cpu", threads=1, batch_size=1)
    assert first_use.peak_memory_mib is None
    assert first_use.first_call_ms > 0


def test_a_file_that_cannot_be_opened_again_names_the_row(row: Row) -> None:
    row.path.unlink()
    with pytest.raises(DeviceError) as caught:
        measure_first_use(row, 1)
    assert str(caught.value) == (
        f"student fp32 (onnxruntime) fails in a process of its own: there is no ONNX file {row.path}; make one with:"
        " toolkit export --onnx; see toolkit doctor, or leave that runtime out with --set bench.runtimes='[...]'"
    )


def test_a_bug_in_the_process_is_told_in_one_line(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe.json, "dumps", lambda *_: '{"path": "/nowhere"}')
    with pytest.raises(DeviceError, match="fails in a process of its own: TypeError: ") as caught:
        measure_first_use(row, 1)
    assert "\n" not in str(caught.value)


def fail_with(error: Exception) -> Callable[..., Any]:
    def run(*_: Any, **__: Any) -> None:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (subprocess.CalledProcessError(-9, "python", "", ""), "it was ended by SIGKILL"),
        (subprocess.CalledProcessError(-11, "python", "", "warning"), "it was ended by SIGSEGV"),
        (subprocess.CalledProcessError(3, "python", "", "\n"), "exit code 3"),
        (subprocess.CalledProcessError(1, "python", "", "Traceback\n  ...\nRuntimeError: no\n\n"), "RuntimeError: no"),
        (subprocess.TimeoutExpired("python", 1800), "no answer after 1800 s"),
    ],
)
def test_how_the_process_ended_is_told(
    row: Row, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    monkeypatch.setattr(probe.subprocess, "run", fail_with(error))
    with pytest.raises(DeviceError) as caught:
        measure_first_use(row, 1)
    assert f"student fp32 (onnxruntime) fails in a process of its own: {reason}; see" in str(caught.value)


def test_the_process_is_asked_about_the_row(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def run(command: list[str], **settings: Any) -> Any:
        asked.append((command, settings["env"]))
        return subprocess.CompletedProcess(command, 0, 'noise\n{"first_call_ms": 1.5, "peak_memory_mib": null}\n', "")

    monkeypatch.setattr(probe.subprocess, "run", run)
    assert measure_first_use(row, 32) == FirstUse(1.5, None)
    ((command, environment),) = asked
    assert probe.json.loads(command[-1]) == {
        "runtime": "onnxruntime",
        "path": str(row.path),
        "place": "cpu",
        "threads": 1,
        "precision": "fp32",
        "batch_size": 32,
    }
    assert environment["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] == "1"


@pytest.mark.gpu
def test_torchs_memory_on_a_gpu_is_its_allocators_peak(tmp_path: Path) -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    model_dir = save_model_dir(tmp_path)
    row, *_ = open_rows(model_dir, "cuda:0", "auto", ("torch",))
    other = torch.zeros(2**26, device="cuda:0")  # 256 MiB of this process: the other one must not count them
    one, many = (measure_first_use(row, count).peak_memory_mib for count in (1, 1024))
    assert one is not None
    assert many is not None
    pixels_mib = 1024 * 32 * 32 * 3 * 4 / 2**20  # as float32: the least of what a batch needs
    assert 0 < one < pixels_mib < many < 256
    del other
