"""A network that answers: from an ONNX file, or from weights in torch. N images, S px their side, C classes."""

from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np
from PIL import Image

from toolkit.api.process import leaving_torch
from toolkit.data.arrays import to_image
from toolkit.data.preprocess import UNREADABLE, Preprocess, why_unreadable
from toolkit.errors import ArtifactError, DataError
from toolkit.predict import Prediction, ask, find_model, read_pixels
from toolkit.runtimes.base import ImageBatch, Logits, Predictor

Picture = str | Path | Image.Image | np.ndarray
"""A file; an image of any mode; uint8 (H, W, 3) or grey (H, W)."""


def load(path: str | Path, *, provider: str = "auto") -> "Model":
    """A network that is ready to answer: an .onnx file, a model directory (its student.onnx), or a .safetensors file.

    Only a .safetensors file needs torch. `provider` is auto, cpu, cuda or cuda:N. Raises ArtifactError, WeightsError,
    DeviceError.
    """
    path = Path(path)
    return Model(_open_weights(path, provider) if path.suffix == ".safetensors" else _open_onnx(path, provider))


class Model:
    """A network that answers, with its class names and its preprocessing; `toolkit.load` makes one."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    @property
    def classes(self) -> tuple[str, ...]:
        return self._predictor.classes

    @property
    def preprocess(self) -> Preprocess:
        """A function of a PIL image: what the network sees of it, uint8 (S, S, 3)."""
        return self._predictor.preprocess

    @property
    def provider(self) -> str:
        """The device or execution provider that it runs on."""
        return self._predictor.provider

    @overload
    def predict(self, images: Picture, k: int = 5) -> Prediction: ...  # type: ignore[overload-overlap]
    @overload
    def predict(self, images: Sequence[Picture], k: int = 5) -> list[Prediction]: ...
    def predict(self, images: Picture | Sequence[Picture], k: int = 5) -> Prediction | list[Prediction]:
        """The `k` most probable classes of one picture, or of each in a list; DataError for one that cannot be read."""
        if isinstance(images, str | Path | Image.Image | np.ndarray):
            return ask(self._predictor, self._see(images, "the image"), k)
        return [ask(self._predictor, self._see(image, f"image {i}"), k) for i, image in enumerate(images)]

    def logits(self, images: ImageBatch) -> Logits:
        """Logits of images that `preprocess` made: uint8 (N, S, S, 3) → float32 (N, C); ValueError for others."""
        return self._predictor.logits(images)

    def __repr__(self) -> str:
        return f"<toolkit model of {len(self.classes)} classes, {self._predictor.runtime} on {self.provider}>"

    def _see(self, image: Picture, where: str) -> np.ndarray:
        """uint8 (S, S, 3)"""
        if isinstance(image, str | Path):
            return read_pixels(Path(image), self.preprocess)
        try:
            return self.preprocess(to_image(image, where))
        except UNREADABLE as error:
            raise DataError(f"{where} cannot be read: {why_unreadable(error)}", "give another one") from None


def _open_onnx(path: Path, provider: str) -> Predictor:
    from toolkit.runtimes.onnxruntime import OnnxPredictor

    return OnnxPredictor(find_model(path), provider)


def _open_weights(path: Path, provider: str) -> Predictor:
    from toolkit.machine.devices import pick_device
    from toolkit.runtimes.pytorch import TorchPredictor

    if not path.is_file():
        raise ArtifactError(f"there is no file {path}", "check the path; toolkit distill makes such a file")
    with leaving_torch(None):
        return TorchPredictor(path, pick_device(provider))
