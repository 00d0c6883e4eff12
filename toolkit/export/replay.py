"""What an ONNX file answers in a fresh process, which knows nothing but the file: the proof compares with that.

N images, S px their side, C classes. The process imports numpy and onnxruntime, not torch.
"""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from toolkit.errors import GateError
from toolkit.graphs.session import open_session, why_refused
from toolkit.machine.limits import available_cores

FileOutput = tuple[NDArray[np.float32], NDArray[np.float32]]
"""logits (N, C) and probabilities (N, C)"""

_session: Any = None
"""The process's one session: a process answers for one file."""


class Replay:
    """A context manager; `answer` asks the file at `path`, called `title` in messages, on the CPU."""

    def __init__(self, path: Path, title: str) -> None:
        self._path, self._title = path, title

    def __enter__(self) -> Self:
        fresh = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, fresh, initializer=_open, initargs=(self._path, available_cores()))
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown()

    def answer(self, images: NDArray[np.uint8]) -> FileOutput:
        """uint8 (N, S, S, 3) → what the file says. GateError where onnxruntime cannot open or run it."""
        try:
            return self._pool.submit(_run, images).result()
        except BrokenProcessPool:
            raise _failed(self._title, "the process that opened it died") from None
        except _Unusable as error:
            raise _failed(self._title, str(error)) from None


class _Unusable(Exception):  # noqa: N818 - told as a GateError by the process that asked
    """onnxruntime's refusal, as a picklable exception."""


def _open(path: Path, threads: int) -> None:
    global _session
    try:
        _session = open_session(path, threads)
    except Exception as error:  # told at the first question: what fails here would only break the pool
        _session = _Unusable(why_refused(error))


def _run(images: NDArray[np.uint8]) -> FileOutput:
    if isinstance(_session, _Unusable):
        raise _session
    try:
        logits, probabilities = _session.run(["logits", "probabilities"], {"image": images})
    except Exception as error:  # onnxruntime's classes cannot be pickled
        raise _Unusable(why_refused(error)) from None
    return logits, probabilities


def _failed(title: str, reason: str) -> GateError:
    return GateError(
        f"{title} cannot be used by onnxruntime {onnxruntime.__version__}: {reason}",
        "the file was not kept; try another --set export.opset=18 (to 23)",
    )
