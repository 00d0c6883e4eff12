"""An ONNX file's answers in a fresh process, which knows nothing but the file; the proof compares them.

The process is `python -m toolkit.export.replay FILE THREADS [rounded]`: images come through its stdin, answers go to
its stdout. It imports numpy, onnx and onnxruntime, not torch, and nothing of the program that started it: that may be a
plain script.
N images, S px their side, C classes.
"""

import contextlib
import os
import pickle
import subprocess
import sys
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from toolkit.errors import GateError
from toolkit.graphs.rounding import round_as_half
from toolkit.machine.devices import same_imports
from toolkit.machine.limits import available_cores
from toolkit.sessions.session import open_session, why_refused

ROUNDED = "rounded"

FileOutput = tuple[NDArray[np.float32], NDArray[np.float32]]
"""logits (N, C) and probabilities (N, C)"""


class Replay:
    """A context manager; `answer` asks the file at `path`, called `title` in messages, on the CPU.

    With `rounded` every tensor that is float16 in the file is rounded to it: see round_as_half.
    """

    def __init__(self, path: Path, title: str, *, rounded: bool = False) -> None:
        self._path, self._title, self._rounded = path, title, rounded

    def __enter__(self) -> Self:
        how = [str(self._path), str(available_cores()), *([ROUNDED] if self._rounded else [])]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "toolkit.export.replay", *how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | same_imports(),
        )
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.communicate()

    @cached_property
    def operators(self) -> int:
        """How many operators the file has."""
        return len(onnx.load(str(self._path), load_external_data=False).graph.node)

    def answer(self, images: NDArray[np.uint8]) -> FileOutput:
        """uint8 (N, S, S, 3) → the file's answer. GateError if onnxruntime cannot open or run it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            pickle.dump(images, self._process.stdin)
            self._process.stdin.flush()
            answer: FileOutput | str = pickle.load(self._process.stdout)  # noqa: S301 - of our own process
        except (BrokenPipeError, EOFError):
            raise _failed(self._title, "the process that opened it has ended") from None
        if isinstance(answer, str):
            raise _failed(self._title, answer)
        return answer


def main() -> None:
    """The process: answer images with the file's output, or the reason why there is none, until stdin ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library's output must not go into the answers
    try:
        session = _open(Path(sys.argv[1]), int(sys.argv[2]), rounded=ROUNDED in sys.argv[3:])
    except Exception as error:  # sent as the first answer
        session = why_refused(error)
    with contextlib.suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        while True:
            images = pickle.load(sys.stdin.buffer)  # noqa: S301 - of the process that started this
            pickle.dump(session if isinstance(session, str) else _run(session, images), answers)
            answers.flush()


def _open(path: Path, threads: int, *, rounded: bool) -> Any:
    model = round_as_half(onnx.load(str(path))).SerializeToString() if rounded else path
    return open_session(model, threads)


def _run(session: Any, images: NDArray[np.uint8]) -> FileOutput | str:
    try:
        logits, probabilities = session.run(["logits", "probabilities"], {"image": images})
    except Exception as error:  # onnxruntime's classes cannot be pickled
        return why_refused(error)
    return logits, probabilities


def _failed(title: str, reason: str) -> GateError:
    return GateError(
        f"{title} cannot be used by onnxruntime {onnxruntime.__version__}: {reason}",
        "the file was not kept; try another export.opset (18 to 23)",
    )


if __name__ == "__main__":
    main()
