"""onnxruntime's execution providers: which ones truly run a model here, and how a session asks for one."""

import contextlib
import functools
import io
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from toolkit import console
from toolkit.errors import DeviceError
from toolkit.machine import hardware
from toolkit.machine.hardware import MIB
from toolkit.sessions import session

PROVIDERS = {"cpu": session.CPU, "cuda": "CUDAExecutionProvider"}
"""Short name → onnxruntime's name."""

CUDA_OPTIONS = {
    # the default tries every algorithm of a convolution for each new shape, for up to a second
    "cudnn_conv_algo_search": "HEURISTIC",
    # the layout of tensor cores; else cuDNN turns the data around each convolution
    "prefer_nhwc": "1",
    # the default rounds the products of float32 networks to 10 bits
    "use_tf32": "0",
}
"""Options of onnxruntime's CUDA provider."""

_runs_nchw_alone: set[str] = set()
"""GPUs on which the small model ran without `prefer_nhwc` alone."""

LIBRARY_OWNERS = {"libcuda.": "the NVIDIA driver", "libcudnn": "cuDNN", "libcu": "CUDA"}
"""Start of a shared library's name → what installs it."""


def working_providers() -> dict[str, str]:
    """Those of PROVIDERS that onnxruntime lists → "" if a small model truly ran there, else the reason."""
    import onnxruntime

    listed = onnxruntime.get_available_providers()
    return {provider: probe_provider(provider) for provider in PROVIDERS.values() if provider in listed}


@functools.cache
def probe_provider(provider: str) -> str:
    """Run tiny_model.py's classifier on `provider` alone (no fallback of any kind); "" if it did, else the reason.

    `provider` is a name as `pick_provider` gives it. A GPU that fails is tried once more without `prefer_nhwc`, for
    which some operators have no kernel on some GPUs; if that runs, it stays without for the rest of the process.
    """
    reason = _reason_not_to_answer(provider)
    if reason and gpu_index(provider) is not None:
        _runs_nchw_alone.add(provider)
        if not _reason_not_to_answer(provider):
            return ""
        _runs_nchw_alone.remove(provider)
    return reason


def pick_provider(name: str) -> str:
    """Turn `auto`, `cpu`, `cuda` or `cuda:N` into an onnxruntime provider that a small model has really run on.

    GPU 0 is `CUDAExecutionProvider`, GPU N `CUDAExecutionProvider:N`. `auto` (`auto:N`) takes CUDA if it runs, else
    the CPU, and a line on stderr names a GPU that cannot be used. Raises DeviceError.
    """
    found = re.fullmatch(r"(?:auto|cuda)(?::(\d+))?|cpu", name)
    if not found:
        raise DeviceError(f"unknown provider {name!r}", "give auto, cpu, cuda or cuda:N")
    gpu = int(found[1] or 0)
    provider = PROVIDERS["cpu"] if name == "cpu" else f"{PROVIDERS['cuda']}:{gpu}".removesuffix(":0")
    reason = _why_not(provider)
    if reason and not name.startswith("auto"):
        raise DeviceError(f"onnxruntime cannot run on {name}: {reason}", "use cpu or auto, or see toolkit doctor")
    if reason and hardware.visible_gpus():
        console.say(f"onnxruntime runs on the CPU, not on the GPU here: {reason}; see toolkit doctor")
    return PROVIDERS["cpu"] if reason else provider


def follow_device(provider: str, device: str) -> str:
    """`auto` and `cuda` mean the GPU that torch was given: `cuda:1` for the device cuda:1."""
    return f"{provider}:{device[5:]}" if provider in ("auto", "cuda") and device.startswith("cuda:") else provider


def require_provider(provider: str, device: str = "auto") -> None:
    """DeviceError if one that was asked for cannot run, before other work; `auto` and `auto:N` take what there is."""
    if not provider.startswith("auto"):
        pick_provider(follow_device(provider, device))


def gpu_index(provider: str) -> int | None:
    """The number of the GPU that a provider of `pick_provider` runs on; None for the CPU."""
    kind, _, gpu = provider.partition(":")
    return int(gpu or 0) if kind == PROVIDERS["cuda"] else None


def session_providers(provider: str, **options: str) -> list[Any]:
    """The argument `providers` of onnxruntime.InferenceSession: that one, on its GPU and with CUDA_OPTIONS.

    `options` of the CUDA provider take the place of those.
    """
    gpu = gpu_index(provider)
    if gpu is None:
        return [provider]
    layout = {"prefer_nhwc": "0"} if provider in _runs_nchw_alone else {}
    return [(PROVIDERS["cuda"], {"device_id": str(gpu)} | CUDA_OPTIONS | layout | options)]


def preload_gpu_libraries() -> None:
    """Let onnxruntime find CUDA and cuDNN in their wheels; does nothing if there are none."""
    import onnxruntime

    if hasattr(onnxruntime, "preload_dlls"):
        with captured_output():
            onnxruntime.preload_dlls()


def _reason_not_to_answer(provider: str) -> str:
    with captured_output() as captured:
        try:
            _answer_on(provider)
        except Exception as error:  # onnxruntime has a class of its own for every status code
            return _explain(captured(), error)
    return ""


def _answer_on(provider: str) -> None:
    """Raises unless `provider`, and it alone, gives tiny_model.py's answer."""
    import numpy as np

    from toolkit.sessions import tiny_model

    preload_gpu_libraries()
    alone = {} if gpu_index(provider) is None else {"session.disable_cpu_ep_fallback": "1"}
    log = session.WARNINGS  # for _explain
    opened = session.open_session(tiny_model.build(), 1, session_providers(provider), alone, log)
    first = opened.get_providers()[0]
    if first != provider.partition(":")[0]:
        raise RuntimeError(f"onnxruntime put {first} in its place")
    (probabilities,) = opened.run(["probabilities"], {"image": tiny_model.images()})
    if not np.allclose(probabilities, tiny_model.PROBABILITIES, rtol=0, atol=1e-3):
        raise RuntimeError("a small classifier's answer came out wrong")


def _why_not(provider: str) -> str:
    """Why onnxruntime cannot run on `provider`, "" if it can."""
    import onnxruntime

    listed = provider.partition(":")[0] in onnxruntime.get_available_providers()
    return probe_provider(provider) if listed else "this onnxruntime is built without it"


def _explain(native_log: str, error: Exception) -> str:
    """The cause in one phrase: a missing library or a CUDA failure from onnxruntime's log, else what `error` says."""
    output = f"{native_log}{error}"
    missing = re.search(r"(lib[\w.+-]+?): cannot open shared object file", output)
    if missing:
        owner = next((owner for start, owner in LIBRARY_OWNERS.items() if missing[1].startswith(start)), "")
        return f"{missing[1]}{f' ({owner})' if owner else ''} is not on this machine"
    if re.search(r"cuDNN is (?:not available|unavailable)|cuDNN library was not found", output):
        return "cuDNN is not on this machine"  # the provider opens it when a convolution needs it, not before
    failure = re.search(r"(\w+) failure \d+: ([^;\n]+)", output)
    if failure:
        return f"{failure[1]} says: {failure[2].strip()}"
    return session.why_refused(error)


@contextlib.contextmanager
def captured_output() -> Iterator[Callable[[], str]]:
    """Keep what onnxruntime's C++ writes to stderr, and its Python to stdout, off the screen; yields a reader."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file, contextlib.redirect_stdout(io.StringIO()):
        saved = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield lambda: os.pread(file.fileno(), MIB, 0).decode(errors="replace")
        finally:
            os.dup2(saved, 2)
            os.close(saved)
