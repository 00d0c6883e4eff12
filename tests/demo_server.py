"""`toolkit demo` in a process of its own: gradio leaves threads and sockets behind, which pytest would report."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from conftest import free_port
from gradio_client import Client, handle_file
from PIL import Image
from tiny_onnx import save_colour_model

from toolkit.modeldir import ModelDir

CLASSES = ("red", "green", "blue", "<b>bold</b>", "cyan", "magenta", "grey")

# Every host that any code asks Python to find or to connect to is noted.
SERVE = """
import json, sys
hosts = set()
def watch(event, arguments):
    if event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
        hosts.add(arguments[1][0])
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        hosts.add(arguments[0])
sys.addaudithook(watch)
from pathlib import Path
from toolkit.demo.server import serve
from toolkit.modeldir import ModelDir
serve([ModelDir(Path(path)) for path in sys.argv[2:]], provider="cpu", **json.loads(sys.argv[1]))
print("torch imported:", "torch" in sys.modules, "hosts asked:", sorted(hosts - {None}, key=str))
"""
LAST_WORDS = "torch imported: False hosts asked: ['127.0.0.1']\n"


def make_model_dir(path: Path, seed: int = 0) -> ModelDir:
    """A teacher that knows its colours, and a student that takes blue for class 3; `seed` adds a little of the rest."""
    rng = np.random.default_rng(seed)
    directory = ModelDir(path)
    for role, blue in (("teacher", 2), ("student", 3)):
        weight = rng.uniform(0, 2, (3, len(CLASSES)))
        weight[[0, 1, 2], [0, 1, blue]] += 8
        save_colour_model(directory.onnx(role), CLASSES, weight=weight)  # type: ignore[arg-type]
    return directory


def save_picture(path: Path, seed: int = 0, size: tuple[int, int] = (70, 50)) -> Path:
    """Noise that is mostly red, green or blue; size is (width, height) in px."""
    pixels = np.random.default_rng(seed).integers(0, 120, (size[1], size[0], 3), dtype=np.uint8)
    pixels[..., seed % 3] += 130
    Image.fromarray(pixels).save(path)
    return path


def connect(url: str, **settings: Any) -> Client:
    """Gradio's client, as a program uses it."""
    return Client(url, verbose=False, analytics_enabled=False, **settings)


def ask(client: Client, picture: Path, *args: str) -> dict[str, Any]:
    """The answer of the API: model and precision may follow the picture."""
    answer: dict[str, Any] = client.predict(handle_file(str(picture)), *args, api_name="/predict")
    return answer


def as_pairs(answer: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Class and probability of the API's `teacher` or `student`."""
    return [(entry["class"], entry["probability"]) for entry in answer["top"]]


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes


def request(
    url: str, path: str, method: str = "GET", body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> Reply:
    """Exactly this path: clients that are kinder would mend `..`."""
    host, port = url.removeprefix("http://").rstrip("/").split(":")
    with contextlib.closing(http.client.HTTPConnection(host, int(port), timeout=600)) as connection:
        connection.request(method, path, body, dict(headers or {}))
        response = connection.getresponse()
        names = {name.lower(): value for name, value in response.getheaders()}
        return Reply(response.status, names, response.read())


def post_json(url: str, path: str, content: Any) -> Reply:
    return request(url, path, "POST", json.dumps(content).encode(), {"Content-Type": "application/json"})


def post_file(url: str, content: bytes, name: str = "a.png") -> Reply:
    """Upload as a browser does."""
    head = f'--=\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    body = head.encode() + content + b"\r\n--=--\r\n"
    return request(url, "/gradio_api/upload", "POST", body, {"Content-Type": "multipart/form-data; boundary=="})


@dataclass
class Server:
    process: subprocess.Popen[str]
    url: str
    log: Path

    @classmethod
    def start(
        cls,
        model_dirs: Sequence[ModelDir],
        log: Path,
        *,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        **settings: Any,
    ) -> "Server":
        """`settings` are those of `serve`; `folder` is the one it runs in. Returns when it says that it serves."""
        settings.setdefault("port", free_port())
        command = [sys.executable, "-c", SERVE, json.dumps(settings), *(str(one.path) for one in model_dirs)]
        with log.open("w") as file:
            process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                cwd=folder,
                env={**os.environ, **(environment or {})},
            )
        assert process.stdout is not None
        url = f"http://127.0.0.1:{settings['port']}"
        line = process.stdout.readline()
        if not line.startswith("the demo is at "):
            process.wait(600)
            raise AssertionError(log.read_text())
        return cls(process, url, log)

    def stop(self, by: signal.Signals = signal.SIGTERM) -> str:
        """End it as a service manager does; returns its output after the first line."""
        os.kill(self.process.pid, by)
        try:
            output, _ = self.process.communicate(timeout=600)
        finally:
            self.process.kill()
        return output
