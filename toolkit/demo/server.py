"""The demo's server: where the page is served, to whom, within which limits, and how it ends."""

import os
import signal
import threading
from collections.abc import Sequence

import gradio
from starlette.middleware import Middleware

from toolkit import console
from toolkit.demo.language import SpeakLanguage
from toolkit.demo.page import build_app, page_style
from toolkit.errors import ToolkitError
from toolkit.modeldir import ModelDir

MAX_UPLOAD = "10mb"


def start_server(app: gradio.Blocks, host: str = "127.0.0.1", port: int = 7860) -> str:
    """Serve the page from a thread; its address. Raises ToolkitError where host and port cannot be had."""
    _reach_localhost_directly()
    try:
        _, url, _ = app.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            inbrowser=False,
            max_file_size=MAX_UPLOAD,
            **page_style(),
            app_kwargs={"middleware": [Middleware(SpeakLanguage)]},
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
        )
    except (OSError, gradio.http_server.ServerFailedToStartError) as error:
        raise ToolkitError(
            f"cannot serve on {host}, port {port}: the port is taken, or the address is not this machine's",
            "give another --port or --host",
        ) from error
    return str(url)


def serve(model_dirs: Sequence[ModelDir], host: str = "127.0.0.1", port: int = 7860, *, provider: str = "auto") -> None:
    """Serve the page until Ctrl-C or SIGTERM (main thread only). Only this machine sees it, unless `host` says more."""
    app = build_app(model_dirs, provider)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what ends a container or a service is a Ctrl-C, too
    url = start_server(app, host, port)
    try:
        console.out.print(f"the demo is at {url} (Ctrl-C ends it)", markup=False)
        threading.Event().wait()
    except KeyboardInterrupt:
        console.say("the demo has ended")
    finally:
        app.close(verbose=False)


def _reach_localhost_directly() -> None:
    """Gradio asks its own server whether it is up: that must not go through a proxy."""
    for name in ("NO_PROXY", "no_proxy"):
        hosts = [host for host in os.environ.get(name, "").split(",") if host]
        os.environ[name] = ",".join(dict.fromkeys([*hosts, "127.0.0.1", "localhost"]))
