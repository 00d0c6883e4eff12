"""The `toolkit` command in a process of its own, as a terminal starts it.

`distill_samples.ToolkitCommands` starts many of them faster, forked from a process that has imported torch.
"""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

TOOLKIT = (sys.executable, "-m", "toolkit")


def toolkit(*arguments: str | Path, code: int = 0, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command to its end, which is exit code `code` without a traceback; `options` are subprocess.run's."""
    command = [*TOOLKIT, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, **options)
    assert result.returncode == code, f"exit {result.returncode}\n{result.stdout}\n{result.stderr}"
    assert "Traceback" not in result.stderr
    return result


def start_toolkit(*arguments: str | Path, **options: Any) -> "subprocess.Popen[str]":
    """Start the command, with its stderr as a pipe; `options` are subprocess.Popen's."""
    # a suite that a script runs in the background has Ctrl-C ignored, and children inherit that
    listens = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    return subprocess.Popen([*TOOLKIT, *map(str, arguments)], stderr=subprocess.PIPE, text=True, **listens, **options)
