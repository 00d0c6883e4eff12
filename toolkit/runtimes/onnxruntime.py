"""An exported ONNX file in onnxruntime."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toolkit import console
from toolkit.errors import ArtifactError, DeviceError
from toolkit.machine.limits import available_cores
from toolkit.modeldir import FilePrecision
from toolkit.runtimes.base import (
    ImageBatch,
    Logits,
    Runtime,
    check_images,
    check_logits,
    damaged_file,
    read_metadata,
    require_file,
)
from toolkit.runtimes.placement import RECORD, Placement
from toolkit.sessions import session
from toolkit.sessions.providers import gpu_index, pick_provider, preload_gpu_libraries, session_providers


class OnnxPredictor:
    """An ONNX file that this toolkit exported, in onnxruntime; class names and preprocessing come from its metadata."""

    runtime: str = "onnxruntime"

    def __init__(self, path: Path, provider: str = "auto", threads: int | None = None) -> None:
        """`provider` is for providers.pick_provider; `threads` takes the cores this process may use if not given.

        Raises ArtifactError for a missing or foreign file, DeviceError if the provider does not run this model, or
        leaves operators that the images go through to another; with auto, that is a warning instead.
        """
        self.path = path
        wanted = pick_provider(provider)
        self.threads = threads or available_cores()
        self._session = open_session(path, wanted, self.threads)
        self.provider = _find_provider(self._session, wanted, path, is_wish=not provider.startswith("auto"))
        self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        self.classes, self.preprocess = read_metadata(self.metadata, path)
        self._input = self._session.get_inputs()[0].name
        shapes = {output.name: output.shape for output in self._session.get_outputs()}
        check_logits(shapes.get("logits"), len(self.classes), path)

    def logits(self, images: ImageBatch) -> Logits:
        check_images(images, self.preprocess.image_size)
        (logits,) = self._session.run(["logits"], {self._input: images})
        return np.asarray(logits, dtype=np.float32)


@dataclass(frozen=True)
class OnnxRuntime(Runtime):
    """`place` is for providers.pick_provider."""

    def start(self, path: Path, place: str) -> None:
        pick_provider(place)

    def open(self, path: Path, place: str, threads: int, precision: FilePrecision) -> OnnxPredictor:
        return OnnxPredictor(path, place, threads)


ONNXRUNTIME = OnnxRuntime(
    "onnxruntime",
    reads="onnx",
    not_on_gpu={"int8": "its CUDA provider computes int8 files in float; measure them with provider cpu"},
)


def open_session(path: Path, provider: str, threads: int, **wishes: str) -> Any:
    """An onnxruntime.InferenceSession; `wishes` are options for providers.session_providers."""
    require_file(path)
    preload_gpu_libraries()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}", "check the file's permissions") from None
    if b"DequantizeLinear" in content:  # in that layout CUDA takes no convolution whose weights are an operator's
        wishes["prefer_nhwc"] = "0"
    try:
        return session.open_session(content, threads, session_providers(provider, **wishes), {RECORD: "1"})
    except Exception as error:
        reason = session.why_refused(error)
        if gpu_index(provider) is not None and _runs_on_cpu(path):
            raise DeviceError(
                f"{provider} cannot run {path.name}: {reason}",
                "use the CPU (provider cpu), or see `toolkit doctor`",
            ) from error
        raise damaged_file("onnxruntime", path, reason) from error


def _runs_on_cpu(path: Path) -> bool:
    try:
        open_session(path, session.CPU, 1)
    except ArtifactError:
        return False
    return True


def _find_provider(opened: Any, wanted: str, path: Path, *, is_wish: bool) -> str:
    """The provider that does the session's work: `wanted`, or the one that onnxruntime left most of it to."""
    kind, first = wanted.partition(":")[0], opened.get_providers()[0]
    if first != kind:
        raise DeviceError(
            f"onnxruntime put {path.name} on {first} instead of {wanted}",
            "see `toolkit doctor` for what is missing, or use the CPU (provider cpu)",
        )
    placement = Placement.of(opened)
    if strays := placement.describe_strays(kind, path):
        problem = f"{path.name} does not run wholly on {wanted}: {strays}"
        if is_wish:
            raise DeviceError(problem, "use the CPU (provider cpu), or accept that (provider auto)")
        console.say(f"warning: {problem}")
    main = placement.main_provider(kind)
    return wanted if main == kind else main
