"""`python -m toolkit.machine.health`: a container engine's regular health check; exit code 0 means healthy.

A demo is healthy if its /healthz answers 200. Any other command ends by itself with an exit code of its own; while it
runs, it counts as healthy. A healthy check prints nothing.
"""

import http.client
import os
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

PORT = 7860
TIMEOUT_S = 4.0


def examine(arguments: Sequence[str], port: int = PORT) -> str:
    """The problem of the process with those arguments, "" if none. `port` is a demo's port, unless they give one."""
    commands = [after for before, after in pairwise(arguments) if Path(before).name == "toolkit"]
    if commands[:1] != ["demo"]:
        return ""
    for flag, value in zip(arguments, [*arguments[1:], ""], strict=True):
        name, _, joined = flag.partition("=")
        if name == "--port":
            port = int(joined or value)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/healthz")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return f"the demo does not answer on port {port}: {error}"
    finally:
        connection.close()
    return "" if status == http.client.OK else f"the demo answers /healthz on port {port} with {status}"


def main() -> int:
    arguments = Path("/proc/1/cmdline").read_text(encoding="utf-8", errors="replace").split("\0")
    problem = examine(arguments, int(os.environ.get("KD_TOOLKIT_PORT") or PORT))
    if problem:
        sys.stderr.write(f"{problem}\n")
    return bool(problem)


if __name__ == "__main__":
    sys.exit(main())
