"""The toolkit's weights in torch, uncompiled and compiled."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from toolkit.errors import DeviceError, one_line
from toolkit.machine.devices import fp32_products_in
from toolkit.machine.limits import available_cores
from toolkit.modeldir import FilePrecision
from toolkit.runtimes.base import ImageBatch, Logits, Runtime, check_images


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
        """`device` is a torch device as `devices.pick_device` names it; `threads` sets torch's for this process.

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

    def logits(self, images: ImageBatch) -> Logits:
        import torch

        check_images(images, self.preprocess.image_size)
        with torch.inference_mode(), without_tf32(self.provider):
            pixels = torch.from_numpy(np.require(images, requirements=["C", "W"])).to(self.provider).permute(0, 3, 1, 2)
            return np.asarray(self._classifier(pixels.to(self._dtype) / 255).float().cpu().numpy(), dtype=np.float32)


class CompiledPredictor(TorchPredictor):
    """The same, compiled by torch.compile: when it is opened, for one image, and once more for the first batch."""

    runtime = "torch.compile"

    def __init__(self, path: Path, device: str = "cpu", threads: int | None = None) -> None:
        """See TorchPredictor; in fp32 alone, and it takes up to a minute.

        Raises DeviceError if the network cannot be compiled here.
        """
        import torch

        super().__init__(path, device, threads)
        self._classifier = torch.compile(self._classifier)
        self.logits(np.zeros((1, self.preprocess.image_size, self.preprocess.image_size, 3), np.uint8))

    def logits(self, images: ImageBatch) -> Logits:
        from torch._dynamo.exc import TorchDynamoException

        try:
            return super().logits(images)
        except TorchDynamoException as error:
            raise DeviceError(
                f"torch.compile cannot compile {self.path.name} for {self.provider}: {one_line(error)}",
                "it needs a C++ compiler on the CPU and Triton on a GPU; or leave torch.compile out of bench.runtimes",
            ) from error


@dataclass(frozen=True)
class TorchRuntime(Runtime):
    """`place` is a torch device."""

    def precisions(self, *, on_gpu: bool) -> tuple[FilePrecision, ...]:
        return ("fp32", "fp16") if on_gpu else ("fp32",)

    def start(self, path: Path, place: str) -> None:
        import torch

        from toolkit.networks.registry import import_builder
        from toolkit.networks.weights import read_info

        import_builder(read_info(path).architecture)
        torch.conv2d(torch.ones(1, 1, 4, 4, device=place), torch.ones(1, 1, 3, 3, device=place))

    def open(self, path: Path, place: str, threads: int, precision: FilePrecision) -> TorchPredictor:
        return TorchPredictor(path, place, threads, "fp16" if precision == "fp16" else "fp32")


@dataclass(frozen=True)
class CompiledRuntime(TorchRuntime):
    """torch.compile, in fp32 alone."""

    def precisions(self, *, on_gpu: bool) -> tuple[FilePrecision, ...]:
        return ("fp32",)

    def open(self, path: Path, place: str, threads: int, precision: FilePrecision) -> CompiledPredictor:
        return CompiledPredictor(path, place, threads)


TORCH = TorchRuntime("torch", reads="weights")
COMPILED = CompiledRuntime("torch.compile", reads="weights", compiles=True)


def without_tf32(device: str) -> contextlib.AbstractContextManager[None]:
    """A GPU's float32 is float32 within this; nothing on the CPU."""
    return contextlib.nullcontext() if device == "cpu" else fp32_products_in("ieee")
