"""onnxruntime as it would be on a machine with a GPU: sessions that remember what they are asked, and use the CPU."""

from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import onnxruntime
import pytest

from toolkit.sessions import providers

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


class FakeValue:
    """An OrtValue on some device; it holds its numbers here."""

    made: ClassVar[list[tuple[tuple[int, ...], type, str, int]]] = []

    def __init__(self, shape: tuple[int, ...], kind: type, device: str, index: int) -> None:
        self.array = np.zeros(shape, kind)
        self.made.append((tuple(shape), kind, device, index))

    def update_inplace(self, array: np.ndarray) -> None:
        self.array[...] = array

    def numpy(self) -> np.ndarray:
        return self.array


class Binding:
    def __init__(self) -> None:
        self.inputs: dict[str, FakeValue] = {}
        self.outputs: dict[str, FakeValue] = {}
        self.synchronized = 0

    def bind_ortvalue_input(self, name: str, value: FakeValue) -> None:
        self.inputs[name] = value

    def bind_ortvalue_output(self, name: str, value: FakeValue) -> None:
        self.outputs[name] = value

    def synchronize_outputs(self) -> None:
        self.synchronized += 1


class OnCuda:
    """A session that says it is on CUDA, and computes on the CPU; `wrong` and `error` are of its graph."""

    def __init__(self, wrong: float = 0.0, error: str = "", error_when_opened: str = "") -> None:
        self.wrong, self.error, self.error_when_opened = wrong, error, error_when_opened
        self.opened: list[dict[str, str]] = []
        self.graph_ids: list[tuple[int, str]] = []
        self.real = onnxruntime.InferenceSession

    def __call__(self, content: bytes, options: Any, providers: list[Any], **_: Any) -> Any:
        if providers == [CPU]:
            return self.real(content, options, providers=providers)
        ((name, settings),) = providers
        assert name == CUDA
        self.opened.append(settings)
        has_graph = settings.get("enable_cuda_graph") == "1"
        if has_graph and self.error_when_opened:
            raise RuntimeError(self.error_when_opened)
        session = self.real(content, options, providers=[CPU])
        return Session(session, self, has_graph)


class Session:
    def __init__(self, real: Any, fake: OnCuda, has_graph: bool) -> None:
        self.real, self.fake, self.has_graph = real, fake, has_graph

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def get_providers(self) -> list[str]:
        return [CUDA]

    def get_provider_graph_assignment_info(self) -> list[Any]:
        node = SimpleNamespace(op_type="MatMul", name="MatMul")
        return [SimpleNamespace(ep_name=CUDA, get_nodes=lambda: [node])]

    def io_binding(self) -> Binding:
        return Binding()

    def run_with_iobinding(self, binding: Binding, options: Any) -> None:
        (image,) = binding.inputs.values()
        graph_id = options.get_run_config_entry("gpu_graph_id")
        self.fake.graph_ids.append((len(image.array), graph_id))
        if self.has_graph and graph_id != "-1" and self.fake.error:
            raise RuntimeError(self.fake.error)
        (logits,) = self.real.run(["logits"], {"image": image.array})
        binding.outputs["logits"].array[...] = logits + (self.fake.wrong if self.has_graph else 0)


def pretend_cuda(monkeypatch: pytest.MonkeyPatch, fake: OnCuda) -> None:
    """Every provider is there and has proven itself."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(providers, "probe_provider", lambda _: "")
    monkeypatch.setattr(onnxruntime, "InferenceSession", fake)
    monkeypatch.setattr(onnxruntime, "OrtValue", SimpleNamespace(ortvalue_from_shape_and_type=FakeValue))
    monkeypatch.setattr(FakeValue, "made", [])
