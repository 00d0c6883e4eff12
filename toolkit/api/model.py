"""A network that answers: from an ONNX file, or from weights in torch. N images, S px their side, C classes."""

import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeGuard, overload

import numpy as np
from PIL import Image

from toolkit.api.process import leaving_torch
from toolkit.data.arrays import to_image
from toolkit.data.preprocess import UNREADABLE, why_unreadable
from toolkit.errors import ArtifactError, DataError, UsageError
from toolkit.networks.trust import allowing
from toolkit.predict import Prediction, ask, find_model, read_pixels, warm_up
from toolkit.runtimes.base import ImageBatch, Logits, Predictor

Picture = str | os.PathLike[str] | Image.Image | np.ndarray
"""A file; an image of any mode but F; uint8 (H, W, 3) or grey (H, W). A tensor of torch on the CPU is an array."""


def load(path: str | Path, *, provider: str = "auto", trust: bool = False) -> "Model":
    """A network that is ready to answer: an .onnx file, a model directory (its student.onnx), or a .safetensors file.

    Only a .safetensors file needs torch. `provider` is auto, cpu, cuda or cuda:N. `trust` allows the network in it to
    run the code of a package, which its name package.module:function says. Raises ArtifactError, WeightsError,
    DeviceError, RecipeError.
    """
    path = Path(path)
    with allowing(set() if trust else None):
        predictor = _open_weights(path, provider) if path.suffix == ".safetensors" else _open_onnx(path, provider)
    warm_up(predictor)
    return Model(predictor)


class Model:
    """A network that answers, with its class names and its preprocessing; `toolkit.load` makes one."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    @property
    def classes(self) -> tuple[str, ...]:
        return self._predictor.classes

    @property
    def image_size(self) -> int:
        """S, px"""
        return self._predictor.preprocess.image_size

    @property
    def provider(self) -> str:
        """The device or execution provider that it runs on."""
        return self._predictor.provider

    @overload
    def predict(self, images: Picture, k: int = 5) -> Prediction: ...  # type: ignore[overload-overlap]
    @overload
    def predict(self, images: Iterable[Picture], k: int = 5) -> list[Prediction]: ...
    def predict(self, images: Picture | Iterable[Picture], k: int = 5) -> Prediction | list[Prediction]:
        """The `k` most probable classes of one picture, or of each in a list; DataError for one that cannot be read."""
        if not isinstance(k, int | np.integer) or k < 1:
            raise UsageError(f"k = {k!r} is not allowed", "give the number of classes to name, 1 or more")
        if _are_several(images):
            return [ask(self._predictor, self._see(image, f"image {i}"), k) for i, image in enumerate(images)]
        return ask(self._predictor, self._see(images, "the image"), k)

    def preprocess(self, image: Picture) -> np.ndarray:
        """What the network sees of a picture, uint8 (S, S, 3); DataError if it cannot be read."""
        return self._see(image, "the image")

    def logits(self, images: ImageBatch) -> Logits:
        """Logits of images that `preprocess` made, an array or a list: uint8 (N, S, S, 3) → float32 (N, C).

        ValueError for others.
        """
        return self._predictor.logits(np.asarray(images))

    def __repr__(self) -> str:
        return f"<toolkit model of {len(self.classes)} classes, {self._predictor.runtime} on {self.provider}>"

    def _see(self, image: Any, where: str) -> np.ndarray:
        """uint8 (S, S, 3)"""
        preprocess = self._predictor.preprocess
        if isinstance(image, str | os.PathLike):
            return read_pixels(Path(image), preprocess)
        try:
            return preprocess(to_image(image, where))
        except UNREADABLE as error:
            raise DataError(f"{where} cannot be read: {why_unreadable(error)}", "give another one") from None


def _are_several(images: Picture | Iterable[Picture]) -> TypeGuard[Iterable[Picture]]:
    """Whether it is a list of pictures, and not one; what is neither counts as one, and is refused as such."""
    one = (str, bytes, bytearray, Mapping, io.IOBase, os.PathLike, Image.Image)
    return isinstance(images, Iterable) and not isinstance(images, one) and not hasattr(images, "__array__")


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
