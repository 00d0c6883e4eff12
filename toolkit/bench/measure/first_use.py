"""The cost of a model's first use, measured in a process of its own: time to the first answer, and memory.

A process that holds every row's network cannot measure either. So each row is opened once more, by

    python -m toolkit.bench.measure.first_use '{"runtime": "onnxruntime", "path": "/models/x/student.onnx", ...}'

This process imports and starts what the runtime needs and says that it is ready. After a line on stdin, it measures and
prints a FirstUse as JSON. For an ONNX file it does not import torch: a server of that file would not either.
"""

import contextlib
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from toolkit import console
from toolkit.errors import DeviceError, ToolkitError, one_line
from toolkit.machine.devices import same_imports
from toolkit.machine.hardware import GIB, MIB
from toolkit.machine.limits import memory_bytes
from toolkit.networks import trust
from toolkit.runtimes.base import Predictor
from toolkit.runtimes.opening import RUNTIMES, open_predictor

if TYPE_CHECKING:
    from toolkit.bench.measure.rows import Row

ON_CPU = ("cpu", "CPU", "CPUExecutionProvider")
"""torch's, OpenVINO's and onnxruntime's name of it"""
READY = "ready"
LIMIT_S = 1800.0
"""s after which a process that has not answered is stopped"""

OWN_SETTINGS = {"TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
"""Environment of the process: earlier compilations of torch.compile must not make its first call look cheap."""


@dataclass(frozen=True)
class FirstUse:
    """Figures of one row, measured once, with its file in the system's cache."""

    first_call_ms: float
    """From opening the file to the answer for one image, compiling included.

    Imports and the start of the runtime and its device are not included: it has run something tiny before.
    """
    peak_memory_mib: float | None
    """How much memory the process gained at its peak, by opening the file and running one image and one batch.

    Resident memory on the CPU; for torch on a GPU, memory from its allocator. None if it is not known.
    """


def measure_first_uses(
    rows: Sequence["Row"], batch_size: int, advance: Callable[[int], None] = lambda count: None
) -> list[FirstUse]:
    """Measure every row with `batch_size` images; DeviceError, naming the row, if its process fails.

    Several processes start side by side, but only one of them measures at a time, while the others wait for their turn.
    `advance` is called with 1 for each row that is done.
    """
    found: list[FirstUse] = []
    at_once = _count_at_once(rows)
    for first in range(0, len(rows), at_once):
        with contextlib.ExitStack() as stack:
            processes = [stack.enter_context(_process_of(row, batch_size)) for row in rows[first : first + at_once]]
            for process in processes:
                process.wait_until_ready()
            for process in processes:
                found.append(process.answer())
                advance(1)
    return found


def _count_at_once(rows: Sequence["Row"]) -> int:
    """Processes that wait at the same time: one for each GiB of memory but the first; on a GPU one."""
    if any(row.predictor.provider not in ON_CPU for row in rows):
        return 1
    return max(1, memory_bytes() // GIB - 1)


def _process_of(row: "Row", batch_size: int) -> "_Process | _ThisProcess":
    """The process to measure a row in: this one, if another could not know the network of a script or a notebook."""
    modules: list[str] | None = []
    if row.predictor.runtime.startswith("torch"):
        from toolkit.networks.registry import modules_to_import
        from toolkit.networks.weights import read_info

        modules = modules_to_import(read_info(row.path).architecture)
    return _ThisProcess(row, batch_size) if modules is None else _Process(row, batch_size, modules)


def _opening(row: "Row") -> dict[str, Any]:
    """The arguments of `open_predictor`."""
    return {
        "runtime": row.predictor.runtime,
        "path": row.path.resolve(),
        "place": row.place,
        "threads": row.predictor.threads,
        "precision": row.precision,
    }


class _ThisProcess(contextlib.nullcontext[Any]):
    """Answers as a _Process does, but without the memory: this process's own memory would hide it."""

    def __init__(self, row: "Row", batch_size: int) -> None:
        super().__init__(self)
        self._row, self._batch_size = row, batch_size

    def wait_until_ready(self) -> None:
        """Its runtime has run."""

    def answer(self) -> FirstUse:
        from torch._inductor import config

        with config.patch(force_disable_caches=True):
            first_use = use_first(batch_size=self._batch_size, **_opening(self._row))
        return replace(first_use, peak_memory_mib=None)


class _Process:
    """A context manager: the process of one row, which says READY once and then waits until it is asked.

    It imports `modules` first, which register the row's network.
    """

    def __init__(self, row: "Row", batch_size: int, modules: Sequence[str] = ()) -> None:
        self._row = row
        opening = _opening(row)
        self._question = opening | {"path": str(opening["path"]), "batch_size": batch_size, "modules": list(modules)}
        self._question["trust"] = trust.announced()

    def __enter__(self) -> Self:
        command = [sys.executable, "-P", "-m", "toolkit.bench.measure.first_use", json.dumps(self._question)]
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # a pipe might fill up
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            encoding="utf-8",
            errors="replace",
            env=os.environ | OWN_SETTINGS | same_imports(),
        )
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def wait_until_ready(self) -> None:
        """Wait until its runtime has started, or it has ended; `answer` raises in the second case."""
        assert self._process.stdout is not None
        limit = threading.Timer(LIMIT_S, self._process.kill)
        limit.start()
        try:
            while (line := self._process.stdout.readline()) and line.strip() != READY:
                pass
        finally:
            limit.cancel()

    def answer(self) -> FirstUse:
        try:
            output, _ = self._process.communicate("\n", timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            raise self._failed(f"no answer after {LIMIT_S:.0f} s") from None
        if self._process.returncode:
            self._errors.seek(0)
            raise self._failed(_why_it_ended(self._process.returncode, self._errors.read()))
        return FirstUse(**json.loads(output.splitlines()[-1]))

    def _failed(self, reason: str) -> DeviceError:
        return DeviceError(
            f"{self._row.name} fails in a process of its own: {reason}",
            "see toolkit doctor, or leave that runtime out (bench.runtimes)",
        )


def main(argument: str) -> int:
    """Answer one question, given as JSON, on stdout, after it said READY there and read a line from stdin."""
    question: dict[str, Any] = json.loads(argument)
    question["path"] = Path(question["path"])
    trust.allow(question.pop("trust", None))
    for module in question.pop("modules", []):
        importlib.import_module(module)
    try:
        RUNTIMES[question["runtime"]].start(question["path"], question["place"])
        sys.stdout.write(READY + "\n")
        sys.stdout.flush()
        if not sys.stdin.readline():
            return 1  # the process that asked is gone
        first_use = use_first(**question)
    except ToolkitError as error:
        console.say(str(error))
        return error.exit_code
    sys.stdout.write(json.dumps(asdict(first_use)) + "\n")
    return 0


def use_first(*, batch_size: int, **opening: Any) -> FirstUse:
    """Open a predictor, by the arguments of `open_predictor`, in this process, which has started its runtime."""
    read_peak = _watch_memory(opening["runtime"], opening["place"])
    start = time.perf_counter_ns()
    predictor = open_predictor(**opening)
    _answer(predictor, 1)
    first_call_ms = (time.perf_counter_ns() - start) / 1e6
    _answer(predictor, batch_size)
    is_untold = RUNTIMES[predictor.runtime].reads == "onnx" and predictor.provider not in ON_CPU
    return FirstUse(first_call_ms, None if is_untold else read_peak())


def _answer(predictor: Predictor, count: int) -> None:
    side = predictor.preprocess.image_size
    predictor.logits(np.full((count, side, side, 3), 127, np.uint8))


def _watch_memory(runtime: str, place: str) -> Callable[[], float | None]:
    """Begin to watch memory; the returned function gives its growth since then, in MiB, at the peak."""
    if RUNTIMES[runtime].reads == "weights" and place != "cpu":
        import torch

        torch.cuda.reset_peak_memory_stats(place)
        allocated = torch.cuda.memory_allocated(place)
        return lambda: (torch.cuda.max_memory_allocated(place) - allocated) / MIB
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets the peak (proc(5))
    before = _peak_resident_mib()

    def read() -> float | None:
        after = _peak_resident_mib()
        return None if before is None or after is None else after - before

    return read


def _peak_resident_mib() -> float | None:
    """Not getrusage's ru_maxrss: a process inherits that from the one that started it."""
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) / 1024 if found else None


def _why_it_ended(exit_code: int, stderr: str) -> str:
    if exit_code < 0:
        return f"it was ended by {signal.Signals(-exit_code).name}"
    return one_line(stderr, last=True) or f"exit code {exit_code}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
