"""Opening an onnxruntime session, and the reason in one line if that fails."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit.errors import one_line

CPU = "CPUExecutionProvider"

NO_SPINNING = {"session.intra_op.allow_spinning": "0"}
"""Threads that wait for work leave their cores to others."""

WARNINGS, ERRORS, NOTHING = 2, 3, 4
"""onnxruntime's log levels; warnings about details of a graph help nobody at a prompt. Errors are raised as well."""

_PLACE_IN_SOURCE = re.compile(r"^.*?/onnxruntime_src/\S+:\d+ .*?\) (?=[A-Z])", re.DOTALL)
"""A file, a line and a function of onnxruntime's own, before what it has to say."""


def open_session(
    model: Path | bytes,
    threads: int,
    providers: Sequence[Any] = (CPU,),
    settings: Mapping[str, str] | None = None,
    log_level: int = ERRORS,
) -> Any:
    """An onnxruntime.InferenceSession of a file or its content, on `providers` and no others.

    `threads` compute one operator; `settings` are entries of the session's configuration. Raises what onnxruntime
    raises: it has a class of its own for every status code, none with a useful base.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = log_level
    for name, value in (settings or {}).items():
        options.add_session_config_entry(name, value)
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=list(providers), enable_fallback=0)


def why_refused(error: BaseException) -> str:
    """The cause in one line, without the status code, the node's name and the place that onnxruntime puts before it."""
    message = _PLACE_IN_SOURCE.sub("", str(error).rpartition("Status Message: ")[2])
    return one_line(re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", message)) or type(error).__name__
