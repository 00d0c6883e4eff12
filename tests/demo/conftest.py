"""The running demo that the tests of this folder share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from demo_server import LAST_WORDS, Server, connect, make_model_dir
from gradio_client import Client

from toolkit.modeldir import ModelDir


@pytest.fixture(scope="session")
def model_dirs(tmp_path_factory: pytest.TempPathFactory) -> list[ModelDir]:
    root = tmp_path_factory.mktemp("models")
    return [make_model_dir(root / "first", 0), make_model_dir(root / "second", 1)]


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the server runs in, with files that are nobody's business."""
    folder = tmp_path_factory.mktemp("home")
    for name in ("secret.txt", ".env", ".gradio/cached_examples/secret.png"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"this is the server's own")
    return folder


@pytest.fixture(scope="session")
def server(model_dirs: list[ModelDir], home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server.start(model_dirs, tmp_path_factory.mktemp("log") / "stderr", folder=home)
    yield server
    assert server.stop() == LAST_WORDS
    assert server.process.returncode == 0


@pytest.fixture(scope="session")
def url(server: Server) -> str:
    return server.url


@pytest.fixture(scope="session")
def client(url: str) -> Client:
    return connect(url)
