"""One Protocol over torch and onnxruntime: uint8 images → logits. Bench, predict and the demo see only this.

N images, S px their side, C classes. Importing this module, and predicting from an ONNX file, does not import torch.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from toolkit.data.preprocess import Preprocess
from toolkit.environment import available_cores, pick_provider, preload_gpu_libraries
from toolkit.errors import ArtifactError, DeviceError, WeightsError

Pixels = NDArray[np.uint8]
Logits = NDArray[np.float32]

METADATA_NEEDED = ("classes", "preprocess")


class Predictor(Protocol):
    """A classifier that is ready to run."""

    classes: tuple[str, ...]
    preprocess: Preprocess
    runtime: str
    """`torch` or `onnxruntime`"""
    provider: str
    """what it runs on: a torch device, or onnxruntime's name of an execution provider"""

    def logits(self, images: Pixels) -> Logits:
        """uint8 images (N, S, S, 3), N ≥ 1, as `preprocess` makes them → float32 (N, C); ValueError for others."""
        ...


class OnnxPredictor:
    """An ONNX file that this toolkit exported, in onnxruntime; class names and preprocessing come from its metadata."""

    runtime = "onnxruntime"

    def __init__(self, path: Path, provider: str = "auto", threads: int | None = None) -> None:
        """`provider` is auto, cpu, cuda or tensorrt; `threads` takes the cores this process may use where not given.

        Raises ArtifactError for a missing or foreign file, DeviceError where the provider does not run this model.
        """
        self.path = path
        wanted = pick_provider(provider)
        self._session = _open_session(path, wanted, threads or available_cores())
        self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        self.provider: str = self._session.get_providers()[0]
        if self.provider != wanted:
            raise DeviceError(
                f"onnxruntime put {path.name} on {self.provider} instead of {wanted}",
                "see `toolkit doctor` for what is missing, or use the CPU with --provider cpu",
            )
        self.classes, self.preprocess = _read_metadata(self.metadata, path)
        self._input = self._session.get_inputs()[0].name
        _check_outputs(self._session, len(self.classes), path)

    def logits(self, images: Pixels) -> Logits:
        _check_images(images, self.preprocess.image_size)
        (logits,) = self._session.run(["logits"], {self._input: images})
        return np.asarray(logits, dtype=np.float32)


class TorchPredictor:
    """A .safetensors file of the toolkit, in torch."""

    runtime = "torch"

    def __init__(self, path: Path, device: str = "cpu", threads: int | None = None) -> None:
        """`device` is a torch device as `environment.pick_device` names it; `threads` sets torch's for this process.

        Without `threads` torch keeps its number, at most the cores this process may use. Raises WeightsError.
        """
        import torch

        from toolkit.networks.weights import load_model

        classifier, self.info = load_model(path)
        torch.set_num_threads(threads or min(torch.get_num_threads(), available_cores()))
        self.path = path
        self.classes, self.preprocess = self.info.classes, self.info.preprocess
        self.provider = device
        self._classifier = classifier.to(device)

    def logits(self, images: Pixels) -> Logits:
        import torch

        _check_images(images, self.preprocess.image_size)
        with torch.inference_mode():
            pixels = torch.from_numpy(np.require(images, requirements=["C", "W"])).to(self.provider).permute(0, 3, 1, 2)
            return np.asarray(self._classifier(pixels.float() / 255).float().cpu().numpy(), dtype=np.float32)


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


def _open_session(path: Path, provider: str, threads: int) -> Any:
    if not path.is_file():
        raise ArtifactError(f"there is no ONNX file {path}", "make one with: toolkit export --onnx")
    import onnxruntime

    preload_gpu_libraries()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors only: warnings about graph details help nobody at a prompt
    try:
        return onnxruntime.InferenceSession(path.read_bytes(), options, providers=[provider], enable_fallback=0)
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}", "check the file's permissions") from None
    except Exception as error:  # onnxruntime raises a class of its own for every status code, none with a useful base
        reason = str(error).rpartition(" : ")[2].splitlines()[0][:160]
        if provider != "CPUExecutionProvider" and _runs_on_cpu(path):
            raise DeviceError(
                f"{provider} cannot run {path.name}: {reason}",
                "use the CPU with --provider cpu, or see `toolkit doctor`",
            ) from error
        raise ArtifactError(
            f"onnxruntime cannot open {path}: {reason}",
            "give an .onnx file that is whole: make it again with `toolkit export --onnx`",
        ) from error


def _runs_on_cpu(path: Path) -> bool:
    try:
        _open_session(path, "CPUExecutionProvider", 1)
    except ArtifactError:
        return False
    return True


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


def _check_outputs(session: Any, num_classes: int, path: Path) -> None:
    shape = next((output.shape for output in session.get_outputs() if output.name == "logits"), None)
    remedy = "export the weights with `toolkit export --onnx`"
    if shape is None:
        raise ArtifactError(f"{path} has no output `logits`, so it was not exported by this toolkit", remedy)
    if shape[-1] != num_classes:
        raise ArtifactError(f"{path} names {num_classes} classes, its logits are for {shape[-1]}", remedy)


def _check_images(images: Pixels, image_size: int) -> None:
    square = (image_size, image_size, 3)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != square or len(images) == 0:
        raise ValueError(
            f"images must be uint8 (N, {image_size}, {image_size}, 3), N ≥ 1, not {images.dtype} {images.shape}"
        )
