"""The table of runtimes: it has every runtime that may be asked for, and reading it starts none of them."""

import subprocess
import sys

import pytest

from toolkit.errors import DeviceError
from toolkit.names import RUNTIME_NAMES
from toolkit.runtimes import openvino
from toolkit.runtimes.opening import ONNX_RUNTIMES, RUNTIMES, rows_of


def test_every_runtime_that_a_recipe_may_name_is_in_the_table() -> None:
    assert [name for name, runtime in RUNTIMES.items() if runtime.beside is None] == list(RUNTIME_NAMES)
    assert all(name == runtime.name for name, runtime in RUNTIMES.items())
    assert ONNX_RUNTIMES == ("onnxruntime", "openvino")


def test_the_table_imports_no_runtime() -> None:
    heavy = ("torch", "onnxruntime", "openvino", "onnx")
    code = (
        "import sys; import toolkit.runtimes.opening as opening;"
        f"assert opening.RUNTIMES; loaded = set({heavy}) & set(sys.modules); assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("name", "on_cpu", "on_gpu"),
    [
        ("torch", ("fp32",), ("fp32", "fp16")),
        ("torch.compile", ("fp32",), ("fp32",)),
        ("onnxruntime", ("fp32", "fp16", "int8"), ("fp32", "fp16")),
        ("openvino", ("fp32", "fp16", "int8"), ("fp32", "fp16", "int8")),
    ],
)
def test_precisions(name: str, on_cpu: tuple[str, ...], on_gpu: tuple[str, ...]) -> None:
    assert RUNTIMES[name].precisions(on_gpu=False) == on_cpu
    assert RUNTIMES[name].precisions(on_gpu=True) == on_gpu


def test_io_binding_is_measured_beside_onnxruntime_on_a_gpu() -> None:
    assert [runtime.name for runtime in rows_of("onnxruntime", on_gpu=False)] == ["onnxruntime"]
    assert [runtime.name for runtime in rows_of("onnxruntime", on_gpu=True)] == [
        "onnxruntime",
        "onnxruntime.io_binding",
    ]
    assert [runtime.name for runtime in rows_of("torch", on_gpu=True)] == ["torch"]


def test_a_runtime_that_is_not_installed_says_so_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise DeviceError("the runtime openvino is not installed", "pip install it")

    monkeypatch.setattr(openvino, "import_openvino", fail)
    with pytest.raises(DeviceError, match="not installed"):
        RUNTIMES["openvino"].require()
    for name in ("torch", "torch.compile", "onnxruntime"):
        RUNTIMES[name].require()
