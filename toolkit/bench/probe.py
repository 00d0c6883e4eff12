"""What the first use of a model costs, measured in a process of its own: time to the first answer, and memory.

A process that holds every row's network can tell neither. So each row is opened once more, by

    python -m toolkit.bench.probe '{"runtime": "onnxruntime", "path": "/models/x/student.onnx", ...}'

which prints a FirstUse as JSON. For an ONNX file that process does not import torch, as one that serves it would not.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit import console
from toolkit.environment import pick_provider, same_imports, tiny_model
from toolkit.errors import DeviceError, ToolkitError
from toolkit.predictor import ONNX_RUNTIMES, OpenVinoPredictor, Predictor, import_openvino, open_predictor

if TYPE_CHECKING:
    from toolkit.bench.rows import Row

MIB = 2**20
LIMIT_S = 1800.0
"""s after which a process that has not answered is stopped"""

OWN_SETTINGS = {"TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
"""Environment of the process: what torch.compile compiled before must not make its first call look cheap."""


@dataclass(frozen=True)
class FirstUse:
    """Of one row, once, with its file in the system's cache."""

    first_call_ms: float
    """From opening the file to the answer for one image, compiling included.

    Imports and the start of the runtime and its device are not: it has run a tiny convolution before.
    """
    peak_memory_mib: float | None
    """What opening it and running one image and one batch added to the process at its peak.

    Resident memory on the CPU; for torch on a GPU what its allocator gave out there. None where neither is known.
    """


def measure_first_use(row: "Row", batch_size: int) -> FirstUse:
    """Measure a row with `batch_size` images; DeviceError, naming the row, where its process fails."""
    question = {
        "runtime": row.predictor.runtime,
        "path": str(row.path.resolve()),
        "place": row.place,
        "threads": row.predictor.threads,
        "precision": row.precision,
        "batch_size": batch_size,
    }
    command = [sys.executable, "-P", "-m", "toolkit.bench.probe", json.dumps(question)]
    environment = os.environ | OWN_SETTINGS | same_imports()
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", env=environment, timeout=LIMIT_S, check=True
        )
        return FirstUse(**json.loads(done.stdout.splitlines()[-1]))
    except subprocess.TimeoutExpired:
        raise _failed(row, f"no answer after {LIMIT_S:.0f} s") from None
    except subprocess.CalledProcessError as error:
        raise _failed(row, _why_it_ended(error)) from None


def main(argument: str) -> int:
    """Answer one question, given as JSON, on stdout."""
    question: dict[str, Any] = json.loads(argument)
    try:
        first_use = use_first(**question | {"path": Path(question["path"])})
    except ToolkitError as error:
        console.say(str(error))
        return error.exit_code
    sys.stdout.write(json.dumps(asdict(first_use)) + "\n")
    return 0


def use_first(*, batch_size: int, **opening: Any) -> FirstUse:
    """Open a predictor, in this process, by the arguments of `open_predictor`, and measure that."""
    _start_runtime(opening["runtime"], opening["place"])
    read_peak = _watch_memory(opening["runtime"], opening["place"])
    start = time.perf_counter_ns()
    predictor = open_predictor(**opening)
    _answer(predictor, 1)
    first_call_ms = (time.perf_counter_ns() - start) / 1e6
    _answer(predictor, batch_size)
    on_gpu = predictor.runtime == "onnxruntime" and predictor.provider != "CPUExecutionProvider"
    return FirstUse(first_call_ms, None if on_gpu else read_peak())


def _answer(predictor: Predictor, count: int) -> None:
    side = predictor.preprocess.image_size
    predictor.logits(np.full((count, side, side, 3), 127, np.uint8))


def _start_runtime(runtime: str, place: str) -> None:
    """Import what the runtime needs and run a tiny convolution: what it costs to start is no model's cost."""
    if runtime == "onnxruntime":
        pick_provider(place)
    elif runtime == "openvino":
        core = import_openvino().Core()
        core.compile_model(core.read_model(tiny_model()), OpenVinoPredictor.provider)(np.ones((1, 1, 4, 4), np.float32))
    else:
        import torch

        import toolkit.networks.weights  # noqa: F401

        torch.conv2d(torch.ones(1, 1, 4, 4, device=place), torch.ones(1, 1, 3, 3, device=place))
    if runtime == "torch.compile":
        import torch._dynamo
        import torch._inductor.compile_fx


def _watch_memory(runtime: str, place: str) -> Callable[[], float | None]:
    """Begin to watch; what is returned tells by how many MiB memory has grown at its peak since then."""
    if runtime not in ONNX_RUNTIMES and place != "cpu":
        import torch

        torch.cuda.reset_peak_memory_stats(place)
        allocated = torch.cuda.memory_allocated(place)
        return lambda: (torch.cuda.max_memory_allocated(place) - allocated) / MIB
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew (proc(5))
    before = _peak_resident_mib()

    def read() -> float | None:
        after = _peak_resident_mib()
        return None if before is None or after is None else after - before

    return read


def _peak_resident_mib() -> float | None:
    """Not getrusage's ru_maxrss: a process inherits that from the one that started it."""
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) / 1024 if found else None


def _failed(row: "Row", reason: str) -> DeviceError:
    return DeviceError(
        f"{row.name} fails in a process of its own: {reason}",
        "see toolkit doctor, or leave that runtime out with --set bench.runtimes='[...]'",
    )


def _why_it_ended(error: subprocess.CalledProcessError) -> str:
    if error.returncode < 0:
        return f"it was ended by {signal.Signals(-error.returncode).name}"
    lines = [line.strip() for line in error.stderr.splitlines() if line.strip()]
    return str(lines[-1][:300]) if lines else f"exit code {error.returncode}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
