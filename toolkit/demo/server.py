"""The demo's server: its address, its visitors, its limits, and its end.

Gradio is imported while the server starts, because it reads its environment on import.
"""

import contextlib
import ctypes
import logging
import os
import secrets
import signal
import socket
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from PIL import Image
from starlette.middleware import Middleware

from toolkit import console
from toolkit.demo.firewall import MB, Firewall
from toolkit.errors import ToolkitError, one_line
from toolkit.modeldir import ModelDir

MAX_UPLOAD_MB = 10
QUEUE_LENGTH = 64
"""Requests that may wait; the rest are asked to come back later."""
GRACE_S = 2
"""s that requests get to finish after the server was asked to stop"""
LOGIN = ("KD_TOOLKIT_USER", "KD_TOOLKIT_PASSWORD")

Login = Callable[[str, str], bool]


def serve(
    model_dirs: Sequence[ModelDir],
    host: str = "127.0.0.1",
    port: int = 7860,
    *,
    provider: str = "auto",
    max_upload_mb: int = MAX_UPLOAD_MB,
    queue_length: int = QUEUE_LENGTH,
) -> None:
    """Serve the page until Ctrl-C or SIGTERM (main thread only). Only this machine sees it, unless `host` says more.

    Raises ToolkitError if half a login is set, or if the address or a temporary folder is not available; ArtifactError
    and DeviceError as build_app does.
    """
    login = read_login(os.environ)
    _give_memory_back()
    # predict.py checks sizes; its own filter holds in one thread at a time, and requests run in several.
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM ends containers and services
    try:
        # The address first, so that its errors show before the models are loaded. Early requests wait.
        with _listen(host, port) as listener, _private_folder() as uploads:
            _set_environment(uploads)
            from toolkit.demo.page import build_app

            blocks = build_app(model_dirs, provider, queue_length)
            app = _make_app(blocks, uploads, login, max_upload_mb)
            _Server(app, f"http://{_name(host)}:{port}/").run([listener])
    except KeyboardInterrupt:
        console.say("the demo has ended")


def read_login(environment: Mapping[str, str]) -> Login | None:
    """The check of user and password, None if nobody needs to sign in."""
    name, word = (environment.get(variable, "") for variable in LOGIN)
    if not name and not word:
        return None
    if not name or not word:
        given, missing = LOGIN if name else reversed(LOGIN)
        problem, remedy = (
            f"{given} is set and {missing} is not",
            f"set both, so that visitors sign in, or unset {given}",
        )
        raise ToolkitError(problem, remedy)
    user, password = name.strip().encode(), word.encode()  # Gradio strips the name, but not the password

    def check(given_user: str, given_password: str) -> bool:
        # Both, in constant time, so that the time of a refusal reveals nothing.
        same_user = secrets.compare_digest(given_user.encode(), user)
        return secrets.compare_digest(given_password.encode(), password) and same_user

    return check


def _give_memory_back() -> None:
    """Let glibc return the memory of a large picture; by default each thread that has read one keeps some of it."""
    mmap_threshold = -3  # M_MMAP_THRESHOLD of malloc.h: blocks from this size on are not reused
    with contextlib.suppress(OSError, AttributeError, TypeError):  # other C libraries have no such setting
        ctypes.CDLL(None).mallopt(mmap_threshold, 1 << 20)


@contextlib.contextmanager
def _private_folder() -> Iterator[Path]:
    """The folder of this run's uploads: readable by its user alone, deleted at the end."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="kd-toolkit-demo-", ignore_cleanup_errors=True)
    except OSError as error:
        raise ToolkitError(
            f"there is no folder for uploads: {error.strerror}", "make /tmp writable, or set TMPDIR to a folder"
        ) from None
    with folder as name:
        yield Path(name)


def _set_environment(uploads: Path) -> None:
    """Remove the variables that could make Gradio share, report or serve more files."""
    for name in list(os.environ):
        if name.startswith("GRADIO_") and name != "GRADIO_ROOT_PATH":
            del os.environ[name]
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)
    os.environ["GRADIO_EXAMPLES_CACHE"] = str(uploads)  # by default a folder in the current one, and served


def _make_app(blocks: Any, uploads: Path, login: Login | None, max_upload_mb: int) -> Firewall:
    import gradio

    from toolkit.demo.language import SpeakLanguage
    from toolkit.demo.page import page_style

    outer = gradio.mount_gradio_app(
        FastAPI(openapi_url=None),
        blocks,
        path="/",
        app_kwargs={"middleware": [Middleware(SpeakLanguage)], "openapi_url": None},
        auth=login,
        max_file_size=max_upload_mb * MB,
        show_error=False,  # of bugs; errors that a visitor can fix are shown anyway
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        **page_style(),
    )
    blocks.has_launched = True  # only then does Gradio refuse files that were not uploaded
    (mount,) = outer.routes
    return Firewall(outer, mount.app, uploads, max_upload_mb)


def _listen(host: str, port: int) -> socket.socket:
    try:
        if not host:
            raise OSError(0, "the address is empty")
        family, kind, protocol, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            if os.name == "posix":  # on other systems it would let two programs use one port
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen()
        except OSError:
            listener.close()
            raise
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise ToolkitError(f"cannot serve on {host}, port {port}: {reason}", "give another --port or --host") from None
    return listener


def _name(host: str) -> str:
    """The name to type into this machine's browser."""
    if host in ("0.0.0.0", "::", "[::]"):
        return "localhost"
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


class _Server(uvicorn.Server):
    """Says when it is ready, and lets no open connection delay its end."""

    def __init__(self, app: Firewall, url: str) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="on",
                ws="none",
                log_config=None,
                log_level="error",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=GRACE_S,
            )
        )
        self.gate = app
        self.url = url

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        console.out.print(f"the demo is at {self.url} (Ctrl-C ends it)", markup=False)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.gate.gradio_app.stop_event.set()  # ends the streams that only tell a browser that the server is alive
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # from here on connections are cut on purpose
        await super().shutdown(sockets)
