"""An ONNX file on a GPU with images and logits that stay there: the network's time without the copies.

N images, S px their side, C classes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.errors import ToolkitError
from toolkit.modeldir import FilePrecision
from toolkit.runtimes.base import IO_BINDING, ImageBatch, Logits, check_images
from toolkit.runtimes.onnxruntime import OnnxPredictor, OnnxRuntime, open_session
from toolkit.sessions.providers import gpu_index
from toolkit.sessions.session import why_refused


@dataclass(frozen=True)
class BoundBatch:
    """The place of a batch of N on the GPU; every batch of that size uses it."""

    binding: Any
    """onnxruntime.IOBinding of the two below"""
    images: Any
    """onnxruntime.OrtValue, uint8 (N, S, S, 3)"""
    logits: Any
    """the same, float32 (N, C)"""
    options: Any
    """onnxruntime.RunOptions"""


class IoBindingPredictor(OnnxPredictor):
    """Copies images to the GPU by `send`, and computes by `run`: the benchmark times the second alone.

    One image runs as one CUDA graph, if onnxruntime can capture it and it answers as the operators one by one do;
    `remark` says why it does not, "" if it does.
    """

    runtime: str = IO_BINDING

    def __init__(self, path: Path, provider: str = "cuda", threads: int | None = None) -> None:
        """See OnnxPredictor; it also works on the CPU."""
        super().__init__(path, provider, threads)
        gpu = gpu_index(self.provider)
        self._place = ("cpu", 0) if gpu is None else ("cuda", gpu)
        self._batches: dict[int, BoundBatch] = {}
        self.remark = "" if gpu is None else self._take_graph()

    def logits(self, images: ImageBatch) -> Logits:
        batch = self.send(images)
        self.run(batch)
        return np.array(batch.logits.numpy(), dtype=np.float32)

    def send(self, images: ImageBatch) -> BoundBatch:
        """Copy images (N, S, S, 3) to the place of a batch of N."""
        check_images(images, self.preprocess.image_size)
        if len(images) not in self._batches:
            self._batches[len(images)] = self._bind(images.shape)
        batch = self._batches[len(images)]
        batch.images.update_inplace(np.ascontiguousarray(images))
        return batch

    def run(self, batch: BoundBatch) -> None:
        """Compute the logits of what was sent there; they are complete when this returns."""
        self._session.run_with_iobinding(batch.binding, batch.options)
        batch.binding.synchronize_outputs()

    def _bind(self, shape: tuple[int, ...]) -> BoundBatch:
        from onnxruntime import OrtValue, RunOptions

        images = OrtValue.ortvalue_from_shape_and_type(shape, np.uint8, *self._place)
        logits = OrtValue.ortvalue_from_shape_and_type((shape[0], len(self.classes)), np.float32, *self._place)
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(self._input, images)
        binding.bind_ortvalue_output("logits", logits)
        options = RunOptions()
        options.add_run_config_entry("gpu_graph_id", "1" if shape[0] == 1 else "-1")  # -1: no graph for this run
        return BoundBatch(binding, images, logits, options)

    def _take_graph(self) -> str:
        """Change to a session that captures graphs; else keep the present one, and return the reason."""
        side, plain = self.preprocess.image_size, self._session
        pictures = [np.full((1, side, side, 3), value, np.uint8) for value in (0, 200)]  # a replay must see the second
        expected = [super(IoBindingPredictor, self).logits(picture) for picture in pictures]
        try:
            self._session = open_session(self.path, self.provider, self.threads, enable_cuda_graph="1")
            if np.allclose([self.logits(picture) for picture in pictures], expected, rtol=1e-3, atol=1e-3):
                return ""
            reason = "its answers differ from those without"
        except ToolkitError as error:
            reason = error.problem
        except Exception as error:  # onnxruntime's, of any class, from the first run
            reason = why_refused(error)
        self._session, self._batches = plain, {}
        return f"{self.path.name} runs without a CUDA graph in {IO_BINDING}: {reason}"


@dataclass(frozen=True)
class BoundRuntime(OnnxRuntime):
    """onnxruntime on a GPU without the copies to it and back."""

    def open(self, path: Path, place: str, threads: int, precision: FilePrecision) -> IoBindingPredictor:
        return IoBindingPredictor(path, place, threads)


BOUND = BoundRuntime(IO_BINDING, reads="onnx", beside="onnxruntime")
