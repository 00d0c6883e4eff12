"""The `toolkit` command in a process of its own, as a terminal starts it, or forked, which is faster.

`distill_samples.ToolkitCommands` forks such processes too, and can stop them.
"""

import atexit
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TOOLKIT = (sys.executable, "-m", "toolkit")
TIMEOUT_S = 600.0
HEAVY = (
    *("toolkit.cli.ending", "toolkit.pipeline", "toolkit.distill.student", "toolkit.distill.teacher"),
    *("toolkit.distill.curves", "toolkit.export.export", "toolkit.bench.bench", "toolkit_process", "distill_samples"),
    *("torchvision.models", "torch._dynamo", "torch.distributed.tensor"),
)
"""Modules that commands import in seconds; torch._dynamo is of DistributedDataParallel."""


def toolkit(*arguments: str | Path, code: int = 0, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command to its end, which is exit code `code` without a traceback; `options` are subprocess.run's."""
    command = [*TOOLKIT, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S, **options)
    return _ended(result, code)


def forked_toolkit(*arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """As `toolkit`, for tests of what a command does: its process has imported torch when it begins."""
    words = [str(argument) for argument in arguments]
    with tempfile.TemporaryDirectory() as folder:
        out, err = (Path(folder) / name for name in ("out", "err"))
        process = other_processes().Process(target=_be_toolkit, args=(words, out, err, dict(os.environ)))
        process.start()
        process.join(TIMEOUT_S)
        if process.is_alive():
            process.kill()
            process.join()
        result = subprocess.CompletedProcess(words, process.exitcode or 0, out.read_text(), err.read_text())
    return _ended(result, code)


def other_processes() -> Any:
    """multiprocessing whose processes are forked from one that has imported torch: 0.1 s instead of 3 s."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(HEAVY))
    return context


def _ended(result: subprocess.CompletedProcess[str], code: int) -> subprocess.CompletedProcess[str]:
    assert result.returncode == code, f"exit {result.returncode}\n{result.stdout}\n{result.stderr}"
    assert "Traceback" not in result.stderr
    return result


def _be_toolkit(arguments: list[str], out: Path, err: Path, environment: dict[str, str]) -> None:
    atexit._clear()  # what is registered from here on is the command's
    os.environ.clear()
    os.environ.update(environment)
    for path, number in ((out, 1), (err, 2)):
        with path.open("w") as file:
            os.dup2(file.fileno(), number)
    from toolkit.cli import ending

    sys.argv = ["toolkit", *arguments]
    try:
        ending.main()
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves them out


def start_toolkit(*arguments: str | Path, **options: Any) -> "subprocess.Popen[str]":
    """Start the command, with its stderr as a pipe; `options` are subprocess.Popen's."""
    # a suite that a script runs in the background has Ctrl-C ignored, and children inherit that
    listens = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    return subprocess.Popen([*TOOLKIT, *map(str, arguments)], stderr=subprocess.PIPE, text=True, **listens, **options)
