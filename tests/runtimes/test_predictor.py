"""Predictors: torch, onnxruntime and OpenVINO behind one interface, and their refusals."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from toolkit.data.preprocess import Preprocess
from toolkit.errors import ArtifactError, DeviceError, WeightsError
from toolkit.export.export import ExportOptions, export_onnx
from toolkit.networks.depthwise import DepthwiseStudent
from toolkit.networks.registry import NetworkSpec
from toolkit.networks.weights import ModelInfo, save_model
from toolkit.recipe import Recipe
from toolkit.runtimes import onnxruntime as onnx_runtime
from toolkit.runtimes import openvino, pytorch
from toolkit.runtimes.base import Predictor, softmax, top_k
from toolkit.runtimes.onnxruntime import OnnxPredictor
from toolkit.runtimes.opening import open_predictor
from toolkit.runtimes.openvino import OpenVinoPredictor
from toolkit.runtimes.pytorch import CompiledPredictor, TorchPredictor

SIDE = 16
CLASSES = ("crème brûlée", "ramen", "tacos")
PREPROCESS = Preprocess(SIDE, 20, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"

needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    student = DepthwiseStudent(len(CLASSES), base=2)
    student(torch.rand(8, 3, SIDE, SIDE))
    info = ModelInfo("student", NetworkSpec("depthwise", {"base": 2}), CLASSES, PREPROCESS, {}, "", "", None, "0.0")
    path = tmp_path_factory.mktemp("predictor") / "student.safetensors"
    save_model(path, student, info)
    return path


@pytest.fixture(scope="module")
def onnx_file(weights: Path) -> Path:
    return export_onnx(weights, weights.with_suffix(".onnx"), ExportOptions(Recipe()))[0].path


@pytest.fixture(params=["torch", "onnxruntime", pytest.param("openvino", marks=needs_openvino)])
def predictor(request: pytest.FixtureRequest, weights: Path, onnx_file: Path) -> Predictor:
    path = weights if request.param == "torch" else onnx_file
    return open_predictor(request.param, path, "cpu", threads=1)


def images(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)


class TestAll:
    def test_its_description(self, predictor: Predictor) -> None:
        assert predictor.classes == CLASSES
        assert predictor.preprocess == PREPROCESS
        assert (predictor.runtime, predictor.provider) in {("torch", "cpu"), ("onnxruntime", CPU), ("openvino", "CPU")}
        assert predictor.threads == 1

    @pytest.mark.parametrize("count", [1, 3, 8])
    def test_logits(self, predictor: Predictor, weights: Path, count: int) -> None:
        """Against float64 arithmetic on the network alone, normalised by hand."""
        from safetensors.torch import load_file

        network = DepthwiseStudent(len(CLASSES), base=2).double().eval()
        network.load_state_dict(load_file(weights))
        normalised = (images(count) / 255 - np.array(PREPROCESS.mean)) / np.array(PREPROCESS.std)
        with torch.no_grad():
            expected = network(torch.from_numpy(normalised.transpose(0, 3, 1, 2))).numpy()
        logits = predictor.logits(images(count))
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)

    def test_any_memory_layout(self, predictor: Predictor) -> None:
        backwards = images(4)[::-1]
        frozen = images(4)
        frozen.setflags(write=False)
        np.testing.assert_allclose(predictor.logits(backwards)[::-1], predictor.logits(frozen), rtol=0, atol=1e-5)

    @pytest.mark.parametrize(
        "wrong",
        [
            np.zeros((1, SIDE, SIDE, 3), np.float32),
            np.zeros((SIDE, SIDE, 3), np.uint8),
            np.zeros((1, 3, SIDE, SIDE), np.uint8),
            np.zeros((1, SIDE + 1, SIDE, 3), np.uint8),
            np.zeros((0, SIDE, SIDE, 3), np.uint8),
            np.zeros((), np.uint8),
        ],
        ids=lambda wrong: f"{wrong.dtype}{wrong.shape}",
    )
    def test_wrong_images(self, predictor: Predictor, wrong: np.ndarray) -> None:
        with pytest.raises(ValueError, match=r"images must be uint8 \(N, 16, 16, 3\), N ≥ 1, not ") as info:
            predictor.logits(wrong)
        assert f"{wrong.dtype} {wrong.shape}" in str(info.value)


class TestOnnx:
    def fails(self, path: Path) -> str:
        with pytest.raises(ArtifactError) as info:
            OnnxPredictor(path, "cpu")
        assert str(path) in str(info.value)
        assert "\n" not in str(info.value)
        return str(info.value)

    def rewritten(self, onnx_file: Path, tmp_path: Path, **metadata: str | None) -> Path:
        model = onnx.load(str(onnx_file))
        kept = {entry.key: entry.value for entry in model.metadata_props} | metadata
        del model.metadata_props[:]
        onnx.helper.set_model_props(model, {key: value for key, value in kept.items() if value is not None})
        onnx.save(model, str(tmp_path / "rewritten.onnx"))
        return tmp_path / "rewritten.onnx"

    def test_metadata(self, onnx_file: Path) -> None:
        metadata = OnnxPredictor(onnx_file, "cpu").metadata
        assert json.loads(metadata["classes"]) == list(CLASSES)
        assert metadata["architecture"] == "depthwise"

    def test_files_that_are_none(self, tmp_path: Path, onnx_file: Path) -> None:
        assert "there is no ONNX file" in self.fails(tmp_path / "nowhere.onnx")
        assert "there is no ONNX file" in self.fails(tmp_path)
        for name, content in (("empty", b""), ("text", b"hello"), ("truncated", onnx_file.read_bytes()[:-3000])):
            (tmp_path / f"{name}.onnx").write_bytes(content)
            message = self.fails(tmp_path / f"{name}.onnx")
            assert "onnxruntime cannot open" in message
            assert "make it again with `toolkit export --onnx`" in message

    def test_no_permission(self, onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def deny(_: Path) -> bytes:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "read_bytes", deny)
        assert "Permission denied; check the file's permissions" in self.fails(onnx_file)

    def test_metadata_that_is_missing_or_odd(self, onnx_file: Path, tmp_path: Path) -> None:
        both = self.rewritten(onnx_file, tmp_path, classes=None, preprocess=None)
        assert "has no classes and no preprocess in its metadata, so it was not exported by this" in self.fails(both)
        assert "has no preprocess in its metadata" in self.fails(self.rewritten(onnx_file, tmp_path, preprocess=None))
        for classes in ("{", "{}", "[1, 2, 3]"):
            path = self.rewritten(onnx_file, tmp_path, classes=classes)
            assert "the metadata `classes` is not a JSON list of names" in self.fails(path)
        assert "`preprocess` metadata cannot be read" in self.fails(
            self.rewritten(onnx_file, tmp_path, preprocess="{}")
        )

    def test_a_class_list_that_does_not_fit_the_logits(self, onnx_file: Path, tmp_path: Path) -> None:
        path = self.rewritten(onnx_file, tmp_path, classes='["a", "b"]')
        assert "names 2 classes, but its logits are for 3" in self.fails(path)

    def test_files_with_other_inputs(self, onnx_file: Path, tmp_path: Path) -> None:
        model = onnx.load(str(onnx_file))
        model.graph.output[0].name = model.graph.node[-2].output[0] = "scores"
        model.graph.node[-1].input[0] = "scores"
        onnx.save(model, str(tmp_path / "other.onnx"))
        assert "has no output `logits`" in self.fails(tmp_path / "other.onnx")

    def test_an_unavailable_provider_is_refused(self, onnx_file: Path) -> None:
        with pytest.raises(DeviceError, match="unknown provider 'npu'"):
            OnnxPredictor(onnx_file, "npu")

    def test_no_silent_fallback(self, onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A provider that passed its probe but gives this session to the CPU."""
        import onnxruntime

        class Elsewhere:
            def __init__(self, *args: Any, **_: Any) -> None:
                self.session = real(args[0], providers=["CPUExecutionProvider"])

            def __getattr__(self, name: str) -> Any:
                return getattr(self.session, name)

        real = onnxruntime.InferenceSession
        monkeypatch.setattr(onnxruntime, "InferenceSession", Elsewhere)
        monkeypatch.setattr(onnx_runtime, "pick_provider", lambda _: "CUDAExecutionProvider")
        expected = (
            r"onnxruntime put student\.onnx on CPUExecutionProvider instead of CUDAExecutionProvider; see `toolkit"
        )
        with pytest.raises(DeviceError, match=expected):
            OnnxPredictor(onnx_file, "cuda")

    def placed(self, onnx_file: Path, monkeypatch: pytest.MonkeyPatch, *nodes: tuple[str, str]) -> None:
        """Sessions are asked to run on CUDA, say so, and tell that the file's nodes were placed like this."""
        import onnxruntime

        real = onnxruntime.InferenceSession

        class Placed:
            def __init__(self, content: bytes, options: Any, **_: Any) -> None:
                assert options.get_session_config_entry("session.record_ep_graph_assignment_info") == "1"
                self.session = real(content, options, providers=[CPU])

            def __getattr__(self, name: str) -> Any:
                return getattr(self.session, name)

            def get_providers(self) -> list[str]:
                return [CUDA, CPU]

            def get_provider_graph_assignment_info(self) -> list[Any]:
                return [
                    SimpleNamespace(ep_name=provider, get_nodes=lambda operator=operator: [node_of(operator)])
                    for provider, operator in nodes
                ]

        def node_of(operator: str) -> Any:
            return SimpleNamespace(op_type=operator, name=names.get(operator, ""))

        names = {node.op_type: node.name for node in onnx.load(str(onnx_file)).graph.node}
        monkeypatch.setattr(onnxruntime, "InferenceSession", Placed)
        monkeypatch.setattr(onnx_runtime, "pick_provider", lambda _: CUDA)

    def test_operators_that_no_image_goes_through_may_run_elsewhere(
        self, onnx_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.placed(onnx_file, monkeypatch, (CUDA, "Conv"), (CUDA, "Gemm"), (CPU, "Shape"), (CPU, "Gather"))
        assert OnnxPredictor(onnx_file, "cuda").provider == CUDA
        assert capsys.readouterr().err == ""

    def test_operators_elsewhere_are_refused_if_the_provider_was_requested(
        self, onnx_file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.placed(
            *(onnx_file, monkeypatch),
            *((CPU, "Cast"), (CUDA, "Conv"), (CUDA, "Conv"), (CPU, "Gemm"), (CPU, "Shape")),
        )
        with pytest.raises(DeviceError) as info:
            OnnxPredictor(onnx_file, "cuda")
        assert str(info.value) == (
            f"student.onnx does not run wholly on {CUDA}: 2 of its 4 operators run on {CPU} (Cast, Gemm);"
            " use the CPU (provider cpu), or accept that (provider auto)"
        )

    @pytest.mark.parametrize(
        ("nodes", "ran"),
        [([(CUDA, "Conv"), (CPU, "QLinearConv"), (CPU, "MatMul")], CPU), ([(CUDA, "Conv"), (CPU, "Gemm")], CUDA)],
    )
    def test_auto_says_so_and_names_the_provider_that_does_the_work(
        self,
        onnx_file: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        nodes: list[tuple[str, str]],
        ran: str,
    ) -> None:
        self.placed(onnx_file, monkeypatch, *nodes)
        assert OnnxPredictor(onnx_file, "auto:0").provider == ran
        assert f"warning: student.onnx does not run wholly on {CUDA}: " in capsys.readouterr().err

    @pytest.mark.parametrize(("wish", "provider", "gpu"), [("cuda", CUDA, "0"), ("cuda:1", f"{CUDA}:1", "1")])
    def test_cuda_s_options(
        self, onnx_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wish: str, provider: str, gpu: str
    ) -> None:
        """Its own GPU, no search by trial, true float32; the tensor cores' layout, except if weights are int8."""
        asked: list[Any] = []
        self.placed(onnx_file, monkeypatch, (CUDA, "Conv"))
        placed = onnxruntime.InferenceSession

        def spy(content: bytes, options: Any, **settings: Any) -> Any:
            asked.append(settings)
            return placed(content, options)

        monkeypatch.setattr(onnxruntime, "InferenceSession", spy)
        monkeypatch.setattr(onnx_runtime, "pick_provider", lambda name: {wish: provider}[name])
        quantized = onnx.load(str(onnx_file))
        quantized.graph.node.append(onnx.helper.make_node("DequantizeLinear", ["whole", "scale"], ["weight"], "dq"))
        for name, value in (("whole", np.ones(3, np.int8)), ("scale", np.array(1, np.float32))):
            quantized.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
        onnx.save(quantized, str(tmp_path / "student.int8.onnx"))
        for path, nhwc in ((onnx_file, "1"), (tmp_path / "student.int8.onnx", "0")):
            assert OnnxPredictor(path, wish).provider == provider
            ((name, options),) = asked[-1]["providers"]
            assert name == CUDA
            assert options == {
                "device_id": gpu, "cudnn_conv_algo_search": "HEURISTIC", "prefer_nhwc": nhwc, "use_tf32": "0"
            }  # fmt: skip
            assert asked[-1]["enable_fallback"] == 0

    def test_a_provider_that_fails_on_this_model(self, onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import onnxruntime

        real = onnxruntime.InferenceSession

        def fail_beyond_cpu(*args: Any, providers: list[str], **settings: Any) -> Any:
            if providers != ["CPUExecutionProvider"]:
                raise RuntimeError("[ONNXRuntimeError] : 1 : FAIL : no kernel for Clip")
            return real(*args, providers=providers, **settings)

        monkeypatch.setattr(onnxruntime, "InferenceSession", fail_beyond_cpu)
        monkeypatch.setattr(onnx_runtime, "pick_provider", lambda _: "CUDAExecutionProvider")
        with pytest.raises(DeviceError, match=r"CUDAExecutionProvider cannot run student\.onnx: no kernel for Clip"):
            OnnxPredictor(onnx_file, "cuda")

    def test_threads_default_to_the_cores_this_process_may_use(
        self, onnx_file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import onnxruntime

        asked: list[int] = []
        real = onnxruntime.InferenceSession

        def spy(content: bytes, options: Any, **settings: Any) -> Any:
            asked.append(options.intra_op_num_threads)
            return real(content, options, **settings)

        monkeypatch.setattr(onnxruntime, "InferenceSession", spy)
        monkeypatch.setattr(onnx_runtime, "available_cores", lambda: 3)
        OnnxPredictor(onnx_file, "cpu")
        OnnxPredictor(onnx_file, "cpu", threads=1)
        assert asked == [3, 1]

    def test_torch_is_not_imported(self, onnx_file: Path) -> None:
        code = (
            "import sys; import numpy as np; from pathlib import Path;"
            "from toolkit.runtimes.onnxruntime import OnnxPredictor;"
            f"p = OnnxPredictor(Path({str(onnx_file)!r}), 'cpu', 1);"
            f"p.logits(np.zeros((2, {SIDE}, {SIDE}, 3), np.uint8));"
            "assert 'torch' not in sys.modules"
        )
        subprocess.run([sys.executable, "-c", code], check=True)

    @pytest.mark.gpu
    def test_on_a_gpu(self, onnx_file: Path) -> None:
        on_gpu, on_cpu = OnnxPredictor(onnx_file, "cuda"), OnnxPredictor(onnx_file, "cpu")
        assert on_gpu.provider == "CUDAExecutionProvider"
        np.testing.assert_allclose(on_gpu.logits(images(5)), on_cpu.logits(images(5)), rtol=0, atol=1e-4)


@needs_openvino
class TestOpenVino:
    def test_arithmetic_is_fp32_even_if_the_cpu_has_bfloat16(self, onnx_file: Path) -> None:
        in_openvino, in_onnxruntime = OpenVinoPredictor(onnx_file, 1), OnnxPredictor(onnx_file, "cpu", 1)
        np.testing.assert_allclose(in_openvino.logits(images(9)), in_onnxruntime.logits(images(9)), rtol=0, atol=1e-5)
        assert in_openvino.metadata == in_onnxruntime.metadata

    def test_files_that_are_none(self, tmp_path: Path, onnx_file: Path) -> None:
        with pytest.raises(ArtifactError, match="there is no ONNX file"):
            OpenVinoPredictor(tmp_path / "nowhere.onnx")
        for name, content in (("text", b"hello"), ("truncated", onnx_file.read_bytes()[:-3000])):
            (tmp_path / f"{name}.onnx").write_bytes(content)
            with pytest.raises(ArtifactError, match=r"OpenVINO cannot open .*; give an \.onnx file") as info:
                OpenVinoPredictor(tmp_path / f"{name}.onnx")
            assert "\n" not in str(info.value)
        (tmp_path / "empty.onnx").write_bytes(b"")
        with pytest.raises(ArtifactError, match="has no classes and no preprocess in its metadata"):
            OpenVinoPredictor(tmp_path / "empty.onnx")

    def test_files_with_other_outputs(self, onnx_file: Path, tmp_path: Path) -> None:
        model = onnx.load(str(onnx_file))
        model.graph.output[0].name = model.graph.node[-2].output[0] = "scores"
        model.graph.node[-1].input[0] = "scores"
        onnx.save(model, str(tmp_path / "other.onnx"))
        with pytest.raises(ArtifactError, match="has no output `logits`"):
            OpenVinoPredictor(tmp_path / "other.onnx")
        model = onnx.load(str(onnx_file))
        next(entry for entry in model.metadata_props if entry.key == "classes").value = '["a", "b"]'
        onnx.save(model, str(tmp_path / "other.onnx"))
        with pytest.raises(ArtifactError, match="names 2 classes, but its logits are for 3"):
            OpenVinoPredictor(tmp_path / "other.onnx")

    def test_an_operator_that_openvino_does_not_have(self, onnx_file: Path, tmp_path: Path) -> None:
        model = onnx.load(str(onnx_file))
        model.graph.node[-1].op_type, model.graph.node[-1].domain = "Fathom", "org.example"
        model.opset_import.append(onnx.helper.make_opsetid("org.example", 1))
        onnx.save(model, str(tmp_path / "odd.onnx"))
        with pytest.raises(DeviceError, match=r"OpenVINO cannot run odd\.onnx: .*; leave openvino out") as info:
            OpenVinoPredictor(tmp_path / "odd.onnx")
        assert "\n" not in str(info.value)

    def test_no_word_to_its_makers_and_no_torch(self, onnx_file: Path, tmp_path: Path) -> None:
        """Its import writes an identifier into the home directory before it sends it."""
        code = (
            "import sys; import numpy as np; from pathlib import Path;"
            "from toolkit.runtimes.openvino import OpenVinoPredictor;"
            f"p = OpenVinoPredictor(Path({str(onnx_file)!r}), 1);"
            f"p.logits(np.zeros((2, {SIDE}, {SIDE}, 3), np.uint8));"
            "assert not {'torch', 'openvino_telemetry'} & set(sys.modules)"
        )
        home = {"HOME": str(tmp_path), "CI": "", "XDG_CACHE_HOME": str(tmp_path)}
        subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | home)
        assert not (tmp_path / "intel").exists()


def test_openvino_that_is_not_installed_is_named_with_its_command(
    onnx_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(DeviceError) as info:
        OpenVinoPredictor(onnx_file)
    assert str(info.value).startswith("the runtime openvino is not installed (")
    assert str(info.value).endswith("; pip install 'kd-toolkit[openvino]', or leave openvino out of bench.runtimes")
    assert openvino.TELEMETRY not in sys.modules


class TestTorch:
    def test_missing_weights(self, tmp_path: Path) -> None:
        with pytest.raises(WeightsError, match="there is no weights file"):
            TorchPredictor(tmp_path / "student.safetensors")

    def test_half_precision_is_near_and_not_the_same(self, weights: Path) -> None:
        whole, half = TorchPredictor(weights), open_predictor("torch", weights, "cpu", 1, "fp16")
        assert half.logits(images(5)).dtype == np.float32
        np.testing.assert_allclose(half.logits(images(5)), whole.logits(images(5)), rtol=0, atol=2e-2)
        assert not np.array_equal(half.logits(images(5)), whole.logits(images(5)))

    def test_a_compiler_that_fails_is_reported_in_one_line(
        self, weights: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from torch._dynamo.exc import TorchDynamoException

        def fail(_: torch.Tensor) -> torch.Tensor:
            raise TorchDynamoException("backend='inductor' raised:\nInvalidCxxCompiler: none found\n\nSet TORCHDYNAMO")

        monkeypatch.setattr(torch, "compile", lambda _: fail)
        with pytest.raises(DeviceError) as info:
            CompiledPredictor(weights)
        assert str(info.value) == (
            "torch.compile cannot compile student.safetensors for cpu: backend='inductor' raised: InvalidCxxCompiler:"
            " none found; it needs a C++ compiler on the CPU and Triton on a GPU; or leave torch.compile out of"
            " bench.runtimes"
        )

    @pytest.mark.slow
    @pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
    def test_compiled_it_answers_the_same(self, weights: Path) -> None:
        compiled = open_predictor("torch.compile", weights, "cpu", 1)
        assert (compiled.runtime, compiled.provider, compiled.classes) == ("torch.compile", "cpu", CLASSES)
        for count in (1, 7, 3):
            expected = TorchPredictor(weights).logits(images(count))
            np.testing.assert_allclose(compiled.logits(images(count)), expected, rtol=0, atol=1e-5)

    @pytest.mark.slow
    def test_without_a_compiler(self, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from torch._inductor import config

        monkeypatch.setattr(config.cpp, "cxx", ("/nowhere/c++",))
        monkeypatch.setattr(config, "force_disable_caches", True)
        torch._dynamo.reset()
        with pytest.raises(DeviceError, match=r"torch\.compile cannot compile student\.safetensors for cpu: ") as info:
            CompiledPredictor(weights)
        assert "\n" not in str(info.value)

    def test_never_more_threads_than_cores(self, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(2)
            monkeypatch.setattr(pytorch, "available_cores", lambda: 1)
            TorchPredictor(weights)
            assert torch.get_num_threads() == 1
            TorchPredictor(weights, threads=2)
            assert torch.get_num_threads() == 2
        finally:
            torch.set_num_threads(before)

    @pytest.mark.gpu
    def test_on_a_gpu(self, weights: Path) -> None:
        on_gpu, on_cpu = TorchPredictor(weights, "cuda:0"), TorchPredictor(weights)
        np.testing.assert_allclose(on_gpu.logits(images(5)), on_cpu.logits(images(5)), rtol=0, atol=1e-4)

    def test_float32_on_a_gpu_is_not_tf32_and_training_s_setting_stays(self) -> None:
        settings: tuple[Any, ...] = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)

        def precisions() -> list[str]:
            return [setting.fp32_precision for setting in settings]

        before = precisions()
        assert before[0] == "tf32", "torch's default has changed: is without_tf32 still needed?"
        with pytorch.without_tf32("cpu"):
            assert precisions() == before
        with pytorch.without_tf32("cuda:0"):
            assert precisions() == ["ieee", "ieee"]
        assert precisions() == before
        with pytest.raises(ZeroDivisionError), pytorch.without_tf32("cuda:0"):
            1 / 0  # noqa: B018
        assert precisions() == before

    def test_every_answer_is_without_tf32(self, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[str] = []

        def spy(planes: torch.Tensor) -> torch.Tensor:
            seen.append(torch.backends.cudnn.conv.fp32_precision)
            return torch.zeros(len(planes), len(CLASSES))

        predictor = TorchPredictor(weights)
        monkeypatch.setattr(predictor, "_classifier", spy)
        monkeypatch.setattr(pytorch, "without_tf32", partial(without_tf32_on, pytorch.without_tf32, predictor))
        predictor.logits(images(2))
        assert seen == ["ieee"]


def without_tf32_on(real: Any, predictor: TorchPredictor, device: str) -> Any:
    """As if the predictor were on a GPU."""
    assert device == predictor.provider
    return real("cuda:0")


class TestSoftmax:
    def test_against_hand_worked_numbers(self) -> None:
        np.testing.assert_allclose(softmax(np.log([[1.0, 2.0, 5.0]])), [[0.125, 0.25, 0.625]], rtol=1e-15)

    def test_temperature(self) -> None:
        logits = np.log([[1.0, 4.0, 16.0]])
        np.testing.assert_allclose(softmax(logits, temperature=2.0), [[1 / 7, 2 / 7, 4 / 7]], rtol=1e-14)

    def test_extreme_logits(self) -> None:
        with np.errstate(all="raise", under="ignore"):
            probabilities = softmax(np.array([[3e38, -3e38, 3e38]], dtype=np.float32))
        np.testing.assert_array_equal(probabilities, [[0.5, 0.0, 0.5]])

    def test_against_torch(self) -> None:
        logits = np.random.default_rng(0).normal(0, 30, (50, 7))
        np.testing.assert_allclose(softmax(logits), torch.from_numpy(logits).softmax(1).numpy(), rtol=1e-12)


class TestTopK:
    def test_order(self) -> None:
        assert top_k(np.array([0.1, 0.6, 0.3]), CLASSES, 2) == [("ramen", 0.6), ("tacos", 0.3)]

    def test_ties_go_in_class_order(self) -> None:
        probabilities = np.full(40, 1 / 40)
        names = [str(i) for i in range(40)]
        assert [name for name, _ in top_k(probabilities, names, 5)] == ["0", "1", "2", "3", "4"]

    def test_more_than_there_are(self) -> None:
        assert len(top_k(np.array([0.2, 0.5, 0.3]), CLASSES, 10)) == 3

    def test_shapes_that_do_not_belong_together(self) -> None:
        with pytest.raises(ValueError, match=r"probabilities \(1, 3\) are not one for each of 3 classes"):
            top_k(np.zeros((1, 3)), CLASSES, 1)
