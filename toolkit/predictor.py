"""One Protocol over torch, onnxruntime and OpenVINO: uint8 images → logits. Bench, predict and the demo see only this.

N images, S px their side, C classes. Importing this module, and predicting from an ONNX file, does not import torch.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from toolkit import console
from toolkit.data.preprocess import Preprocess
from toolkit.environment import (
    available_cores,
    fp32_products_in,
    gpu_index,
    pick_provider,
    preload_gpu_libraries,
    session_providers,
)
from toolkit.errors import ArtifactError, DeviceError, WeightsError
from toolkit.modeldir import Precision
from toolkit.placement import RECORD, Placement
from toolkit.recipe import Runtime

Pixels = NDArray[np.uint8]
Logits = NDArray[np.float32]

METADATA_NEEDED = ("classes", "preprocess")

ONNX_RUNTIMES: tuple[Runtime, ...] = ("onnxruntime", "openvino")
"""Those that read the ONNX file; the others read the weights."""

IO_BINDING: Literal["onnxruntime.io_binding"] = "onnxruntime.io_binding"
"""onnxruntime on a GPU, without the copies to it and back: a row of the benchmark, and nobody's choice."""

RowRuntime = Runtime | Literal["onnxruntime.io_binding"]

TELEMETRY = "openvino_telemetry"


class Predictor(Protocol):
    """A classifier that is ready to run."""

    classes: tuple[str, ...]
    preprocess: Preprocess
    runtime: str
    """one of RowRuntime"""
    provider: str
    """what it runs on: a torch device, a provider as environment.pick_provider names it, or OpenVINO's device"""
    threads: int
    """that one call may keep busy on the CPU"""

    def logits(self, images: Pixels) -> Logits:
        """uint8 images (N, S, S, 3), N ≥ 1, as `preprocess` makes them → float32 (N, C); ValueError for others."""
        ...


def open_predictor(
    runtime: RowRuntime, path: Path, place: str, threads: int, precision: Precision = "fp32"
) -> Predictor:
    """Open weights or an ONNX file in any runtime.

    `place` is a torch device, or onnxruntime's provider by its short name; OpenVINO takes the CPU. `precision` is that
    of torch's arithmetic; in an ONNX file it is settled. Raises what the predictors raise.
    """
    if runtime == "onnxruntime":
        return OnnxPredictor(path, place, threads)
    if runtime == IO_BINDING:
        from toolkit.io_binding import IoBindingPredictor

        return IoBindingPredictor(path, place, threads)
    if runtime == "openvino":
        return OpenVinoPredictor(path, threads)
    kind = CompiledPredictor if runtime == "torch.compile" else TorchPredictor
    return kind(path, place, threads, "fp16" if precision == "fp16" else "fp32")


class OnnxPredictor:
    """An ONNX file that this toolkit exported, in onnxruntime; class names and preprocessing come from its metadata."""

    runtime: str = "onnxruntime"

    def __init__(self, path: Path, provider: str = "auto", threads: int | None = None) -> None:
        """`provider` is for environment.pick_provider; `threads` takes the cores this process may use if not given.

        Raises ArtifactError for a missing or foreign file, DeviceError where the provider does not run this model, or
        leaves operators that the images go through to another; with auto that is said on stderr instead.
        """
        self.path = path
        wanted = pick_provider(provider)
        self.threads = threads or available_cores()
        self._session = open_session(path, wanted, self.threads)
        self.provider = _find_provider(self._session, wanted, path, is_wish=not provider.startswith("auto"))
        self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        self.classes, self.preprocess = _read_metadata(self.metadata, path)
        self._input = self._session.get_inputs()[0].name
        shapes = {output.name: output.shape for output in self._session.get_outputs()}
        _check_logits(shapes.get("logits"), len(self.classes), path)

    def logits(self, images: Pixels) -> Logits:
        check_images(images, self.preprocess.image_size)
        (logits,) = self._session.run(["logits"], {self._input: images})
        return np.asarray(logits, dtype=np.float32)


class OpenVinoPredictor:
    """The same files in OpenVINO, on the CPU and tuned for latency."""

    runtime = "openvino"
    provider = "CPU"

    def __init__(self, path: Path, threads: int | None = None) -> None:
        """Raises ArtifactError for a missing or foreign file, DeviceError where OpenVINO is missing or fails on it."""
        self.path = path
        self.threads = threads or available_cores()
        self._model, self.metadata = _compile_openvino(path, self.threads)
        self.classes, self.preprocess = _read_metadata(self.metadata, path)
        shapes = {name: output.partial_shape for output in self._model.outputs for name in output.names}
        shape = [dim.get_length() if dim.is_static else None for dim in shapes.get("logits", ())]
        _check_logits(shape or None, len(self.classes), path)

    def logits(self, images: Pixels) -> Logits:
        check_images(images, self.preprocess.image_size)
        return np.asarray(self._model([np.ascontiguousarray(images)])["logits"], dtype=np.float32)


class TorchPredictor:
    """A .safetensors file of the toolkit, in torch."""

    runtime: str = "torch"

    def __init__(
        self,
        path: Path,
        device: str = "cpu",
        threads: int | None = None,
        precision: Literal["fp32", "fp16"] = "fp32",
    ) -> None:
        """`device` is a torch device as `environment.pick_device` names it; `threads` sets torch's for this process.

        Without `threads` torch keeps its number, at most the cores this process may use. Raises WeightsError.
        """
        import torch

        from toolkit.networks.weights import load_model

        classifier, self.info = load_model(path)
        torch.set_num_threads(threads or min(torch.get_num_threads(), available_cores()))
        self.path = path
        self.threads = torch.get_num_threads()
        self.classes, self.preprocess = self.info.classes, self.info.preprocess
        self.provider = device
        self._dtype = torch.float16 if precision == "fp16" else torch.float32
        self._classifier: Callable[[torch.Tensor], torch.Tensor] = classifier.to(device, self._dtype)

    def logits(self, images: Pixels) -> Logits:
        import torch

        check_images(images, self.preprocess.image_size)
        with torch.inference_mode(), without_tf32(self.provider):
            pixels = torch.from_numpy(np.require(images, requirements=["C", "W"])).to(self.provider).permute(0, 3, 1, 2)
            return np.asarray(self._classifier(pixels.to(self._dtype) / 255).float().cpu().numpy(), dtype=np.float32)


class CompiledPredictor(TorchPredictor):
    """The same, compiled by torch.compile: when it is opened, for one image, and once more for the first batch."""

    runtime = "torch.compile"

    def __init__(
        self,
        path: Path,
        device: str = "cpu",
        threads: int | None = None,
        precision: Literal["fp32", "fp16"] = "fp32",
    ) -> None:
        """See TorchPredictor. Takes up to a minute. Raises DeviceError where the network cannot be compiled here."""
        import torch

        super().__init__(path, device, threads, precision)
        self._classifier = torch.compile(self._classifier)
        self.logits(np.zeros((1, self.preprocess.image_size, self.preprocess.image_size, 3), np.uint8))

    def logits(self, images: Pixels) -> Logits:
        from torch._dynamo.exc import TorchDynamoException

        try:
            return super().logits(images)
        except TorchDynamoException as error:
            reason = " ".join(str(error).strip().split("\n\n")[0].split())[:200]
            raise DeviceError(
                f"torch.compile cannot compile {self.path.name} for {self.provider}: {reason}",
                "it needs a C++ compiler on the CPU and Triton on a GPU; or leave torch.compile out of bench.runtimes",
            ) from error


def without_tf32(device: str) -> contextlib.AbstractContextManager[None]:
    """A GPU's float32 is float32 within this; nothing on the CPU."""
    return contextlib.nullcontext() if device == "cpu" else fp32_products_in("ieee")


def softmax(logits: NDArray[np.floating], temperature: float = 1.0) -> NDArray[np.float64]:
    """Probabilities over the last axis of logits / temperature, in float64; no overflow for any finite logits."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    powers = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def top_k(probabilities: NDArray[np.floating], classes: Sequence[str], k: int) -> list[tuple[str, float]]:
    """The k likeliest classes of one image (C,), likeliest first; equal ones in class order. At most C of them."""
    if probabilities.shape != (len(classes),):
        raise ValueError(f"probabilities {probabilities.shape} are not one for each of {len(classes)} classes")
    order = np.argsort(-probabilities, kind="stable")[:k]
    return [(classes[i], float(probabilities[i])) for i in order]


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise ArtifactError(f"there is no ONNX file {path}", "make one with: toolkit export --onnx")


def open_session(path: Path, provider: str, threads: int, **wishes: str) -> Any:
    """An onnxruntime.InferenceSession; `wishes` are options for environment.session_providers."""
    _require_file(path)
    import onnxruntime

    preload_gpu_libraries()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors only: warnings about graph details help nobody at a prompt
    options.add_session_config_entry(RECORD, "1")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}", "check the file's permissions") from None
    if b"DequantizeLinear" in content:  # in that layout CUDA takes no convolution whose weights are an operator's
        wishes["prefer_nhwc"] = "0"
    providers = session_providers(provider, **wishes)
    try:
        return onnxruntime.InferenceSession(content, options, providers=providers, enable_fallback=0)
    except Exception as error:  # onnxruntime raises a class of its own for every status code, none with a useful base
        reason = str(error).rpartition(" : ")[2].splitlines()[0][:160]
        if gpu_index(provider) is not None and _runs_on_cpu(path):
            raise DeviceError(
                f"{provider} cannot run {path.name}: {reason}",
                "use the CPU with --provider cpu, or see `toolkit doctor`",
            ) from error
        raise _damaged("onnxruntime", path, reason) from error


def _runs_on_cpu(path: Path) -> bool:
    try:
        open_session(path, "CPUExecutionProvider", 1)
    except ArtifactError:
        return False
    return True


def _find_provider(session: Any, wanted: str, path: Path, *, is_wish: bool) -> str:
    """The provider that does the session's work: `wanted`, or the one that onnxruntime left most of it to."""
    kind, first = wanted.partition(":")[0], session.get_providers()[0]
    if first != kind:
        raise DeviceError(
            f"onnxruntime put {path.name} on {first} instead of {wanted}",
            "see `toolkit doctor` for what is missing, or use the CPU with --provider cpu",
        )
    placement = Placement.of(session)
    if strays := placement.describe_strays(kind, path):
        told = f"{path.name} is not wholly on {wanted}: {strays}"
        if is_wish:
            raise DeviceError(told, "use the CPU with --provider cpu, or auto to run it like that")
        console.say(f"careful: {told}")
    main = placement.main_provider(kind)
    return wanted if main == kind else main


def _compile_openvino(path: Path, threads: int) -> tuple[Any, dict[str, str]]:
    """The compiled model, and the file's metadata."""
    _require_file(path)
    openvino = import_openvino()
    frontend = openvino.frontend.FrontEndManager().load_by_framework("onnx")
    try:
        content = frontend.load(str(path))
    except Exception as error:  # OpenVINO, too, raises classes of its own
        raise _damaged("OpenVINO", path, _last_line(error)) from error
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        # where the CPU has bfloat16 it is the default, and would be compared with others' fp32
        "INFERENCE_PRECISION_HINT": "f32",
    }
    try:
        model = frontend.convert(content)
        compiled = openvino.Core().compile_model(model, OpenVinoPredictor.provider, settings)
    except Exception as error:
        raise DeviceError(
            f"OpenVINO cannot run {path.name}: {_last_line(error)}", "leave openvino out of bench.runtimes"
        ) from error
    return compiled, dict(model.get_rt_info("framework").value) if model.has_rt_info("framework") else {}


def import_openvino() -> Any:
    """OpenVINO, kept from what its import does where it can: send word of itself to its makers."""
    loaded = sys.modules.get(TELEMETRY)
    # None is Python's way to say that a module cannot be imported
    sys.modules[TELEMETRY] = None  # type: ignore[assignment]
    try:
        import openvino.frontend
    except ImportError as error:
        raise DeviceError(
            f"the runtime openvino is not installed ({error})",
            "pip install 'kd-toolkit[openvino]', or leave openvino out of bench.runtimes",
        ) from None
    finally:
        del sys.modules[TELEMETRY]
        if loaded is not None:
            sys.modules[TELEMETRY] = loaded
    return openvino


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:160] if lines else type(error).__name__


def _damaged(runtime: str, path: Path, reason: str) -> ArtifactError:
    return ArtifactError(
        f"{runtime} cannot open {path}: {reason}",
        "give an .onnx file that is whole: make it again with `toolkit export --onnx`",
    )


def _read_metadata(metadata: dict[str, str], path: Path) -> tuple[tuple[str, ...], Preprocess]:
    missing = [key for key in METADATA_NEEDED if key not in metadata]
    if missing:
        raise ArtifactError(
            f"{path} has no {' and no '.join(missing)} in its metadata, so it was not exported by this toolkit",
            "export the weights with `toolkit export --onnx`",
        )
    try:
        classes = json.loads(metadata["classes"])
    except ValueError:
        classes = None
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ArtifactError(
            f"{path}: the metadata `classes` is not a JSON list of names",
            "export it again with `toolkit export --onnx`",
        )
    try:
        return tuple(classes), Preprocess.from_json(metadata["preprocess"])
    except WeightsError as error:
        raise ArtifactError(f"{path}: {error.problem}", error.remedy) from None


def _check_logits(shape: Sequence[Any] | None, num_classes: int, path: Path) -> None:
    """`shape` is that of the output `logits`, None where there is no such output."""
    remedy = "export the weights with `toolkit export --onnx`"
    if shape is None:
        raise ArtifactError(f"{path} has no output `logits`, so it was not exported by this toolkit", remedy)
    if shape[-1] != num_classes:
        raise ArtifactError(f"{path} names {num_classes} classes, its logits are for {shape[-1]}", remedy)


def check_images(images: Pixels, image_size: int) -> None:
    square = (image_size, image_size, 3)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != square or len(images) == 0:
        raise ValueError(
            f"images must be uint8 (N, {image_size}, {image_size}, 3), N ≥ 1, not {images.dtype} {images.shape}"
        )
