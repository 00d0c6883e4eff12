"""The demo, driven as a program would: the same answers as `toolkit predict`, clear messages, nothing given away."""

import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from tiny_onnx import save_colour_model

from toolkit.demo.page import build_app
from toolkit.demo.pair import open_pair
from toolkit.errors import ArtifactError, DataError
from toolkit.modeldir import ModelDir
from toolkit.predict import predict_files

CLASSES = ("red", "green", "blue", "<b>bold</b>", "cyan", "magenta", "grey")


def make_model_dir(path: Path, seed: int = 0) -> ModelDir:
    """A teacher that knows its colours, and a student that takes blue for class 3; `seed` adds a little of the rest."""
    rng = np.random.default_rng(seed)
    directory = ModelDir(path)
    for role, blue in (("teacher", 2), ("student", 3)):
        weight = rng.uniform(0, 2, (3, len(CLASSES)))
        weight[[0, 1, 2], [0, 1, blue]] += 8
        save_colour_model(directory.onnx(role), CLASSES, weight=weight)  # type: ignore[arg-type]
    return directory


def save_picture(path: Path, seed: int = 0) -> Path:
    """Noise that is mostly red, green or blue."""
    pixels = np.random.default_rng(seed).integers(0, 120, (50, 70, 3), dtype=np.uint8)
    pixels[..., seed % 3] += 130
    Image.fromarray(pixels).save(path)
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def model_dirs(tmp_path_factory: pytest.TempPathFactory) -> list[ModelDir]:
    root = tmp_path_factory.mktemp("models")
    return [make_model_dir(root / "first", 0), make_model_dir(root / "second", 1)]


SERVE = """
import sys
hosts = set()
def watch(event, arguments):
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        hosts.add(arguments[1][0])
    if event == "socket.getaddrinfo":
        hosts.add(arguments[0])
sys.addaudithook(watch)
from pathlib import Path
from toolkit.demo.server import serve
from toolkit.modeldir import ModelDir
serve([ModelDir(Path(path)) for path in sys.argv[2:]], port=int(sys.argv[1]), provider="cpu")
print("torch imported:", "torch" in sys.modules, "hosts asked:", sorted(hosts - {None}, key=str))
"""
LAST_WORDS = "torch imported: False hosts asked: ['127.0.0.1']\n"


@dataclass
class Server:
    """`toolkit demo` in a process of its own: gradio leaves event loops and sockets open, which pytest would report."""

    process: subprocess.Popen[str]
    url: str
    log: Path

    @classmethod
    def start(cls, model_dirs: list[ModelDir], log: Path) -> "Server":
        port = free_port()
        command = [sys.executable, "-c", SERVE, str(port), *(str(directory.path) for directory in model_dirs)]
        with log.open("w") as file:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line == f"the demo is at http://127.0.0.1:{port}/ (Ctrl-C ends it)\n", log.read_text()
        return cls(process, f"http://127.0.0.1:{port}", log)

    def stop(self) -> str:
        """End it as a service manager does; what it printed after its first line."""
        os.kill(self.process.pid, signal.SIGTERM)
        try:
            output, _ = self.process.communicate(timeout=20)
        finally:
            self.process.kill()
        return output


@pytest.fixture(scope="module")
def server(model_dirs: list[ModelDir], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server.start(model_dirs, tmp_path_factory.mktemp("log") / "stderr")
    yield server
    output = server.stop()
    assert output == LAST_WORDS
    assert server.process.returncode == 0


@pytest.fixture(scope="module")
def url(server: Server) -> str:
    return server.url


@pytest.fixture(scope="module")
def client(url: str) -> Client:
    return Client(url, verbose=False, analytics_enabled=False)


def ask(client: Client, picture: Path, *args: str) -> dict[str, Any]:
    names = ("verdict", "teacher", "teacher_facts", "student", "student_facts", "seen")
    return dict(zip(names, client.predict(handle_file(picture), *args, api_name="/compare"), strict=True))


def as_pairs(label: dict[str, Any]) -> list[tuple[str, float]]:
    return [(entry["label"], entry["confidence"]) for entry in label["confidences"]]


def test_answers_are_those_of_predict(client: Client, model_dirs: list[ModelDir], tmp_path: Path) -> None:
    for seed in range(4):
        picture = save_picture(tmp_path / f"{seed}.png", seed)
        got = ask(client, picture)
        for role in ("teacher", "student"):
            (expected,) = predict_files(model_dirs[0].onnx(role), [picture], provider="cpu")  # type: ignore[arg-type]
            assert expected.answer is not None
            assert as_pairs(got[role]) == list(expected.answer.top)
            assert len(expected.answer.top) == 5


def test_agreement_latency_size_and_what_the_network_sees(
    client: Client, model_dirs: list[ModelDir], tmp_path: Path
) -> None:
    pair = open_pair(model_dirs[0], "cpu")
    verdicts = set()
    for seed in range(6):
        picture = save_picture(tmp_path / f"{seed}.png", seed)
        got, expected = ask(client, picture), pair.compare(picture)
        verdicts.add(expected.agree)
        assert got["verdict"].startswith("✓ They agree" if expected.agree else "✗ They disagree: the teacher says")
        with Image.open(picture) as image, Image.open(got["seen"]) as seen:
            np.testing.assert_array_equal(np.asarray(seen.convert("RGB")), pair.student.preprocess(image))
        latency, size = got["student_facts"].split(" ms on this picture · ")
        assert 0 < float(latency) < 1000
        assert size == f"{model_dirs[0].onnx('student').stat().st_size / 1000:.1f} kB"
    assert verdicts == {True, False}  # else this test has seen only half


def test_the_picker_changes_the_model(client: Client, model_dirs: list[ModelDir], tmp_path: Path) -> None:
    picture = save_picture(tmp_path / "a.png")
    for directory in model_dirs:
        (expected,) = predict_files(directory.path, [picture], provider="cpu")
        assert expected.answer is not None
        assert as_pairs(ask(client, picture, directory.name)["student"]) == list(expected.answer.top)
    with pytest.raises(AppError, match="there is no model"):
        ask(client, picture, "third")
    with pytest.raises(AppError, match=r"there is no model .*&lt;img&gt;"):  # gradio shows messages as HTML
        ask(client, picture, "<img>")


def huge_png() -> bytes:
    """A header of 60,000×60,000 px over almost no data."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    header = (60_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("text.jpg", b"this is no picture", r"cannot read text\.jpg as an image: not a JPEG"),
        ("empty.png", b"", r"cannot read empty\.png as an image: the file is empty"),
        ("bomb.png", huge_png(), r"bomb\.png is too large"),
        ("drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", r"cannot read drawing\.svg as an image"),
    ],
    ids=["text", "empty", "bomb", "svg"],
)
def test_a_bad_file_ends_in_a_clear_message_and_no_traceback(
    client: Client, server: Server, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    bad = tmp_path / name
    bad.write_bytes(content)
    with pytest.raises(AppError, match=message) as error:
        ask(client, bad)
    assert str(tmp_path) not in str(error.value)
    assert "gradio" not in str(error.value)  # nor the server's own path of the upload
    assert "Traceback" not in server.log.read_text()


def test_no_picture_clears_the_page(client: Client) -> None:
    verdict, teacher, facts, *_ = client.predict(None, api_name="/compare")
    assert verdict.startswith("Drop a picture")
    assert not teacher
    assert facts == ""


def get(url: str, path: str) -> tuple[int, bytes]:
    host, port = url.removeprefix("http://").rstrip("/").split(":")
    with contextlib.closing(http.client.HTTPConnection(host, int(port), timeout=10)) as connection:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()


def test_the_server_gives_no_other_file_away(url: str, model_dirs: list[ModelDir]) -> None:
    secret = model_dirs[0].onnx("teacher")
    for path in (str(secret), "/etc/passwd", "../../../../etc/passwd", "pyproject.toml"):
        for route in ("/gradio_api/file=", "/file=", "/static/", "/assets/"):
            status, body = get(url, f"{route}{path}")
            assert status >= 400, f"{route}{path}"
            assert b"root:" not in body


def test_a_file_that_was_not_uploaded_is_refused(client: Client, model_dirs: list[ModelDir]) -> None:
    stranger = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    with pytest.raises(AppError):
        client.predict(stranger, api_name="/compare")


def test_the_page_asks_no_other_host(url: str) -> None:
    status, page = get(url, "/")
    assert status == 200
    for outside in (b"googleapis", b"gstatic", b"cdnjs", b"jsdelivr", b"unpkg"):
        assert outside not in page
    addresses = re.findall(rb"""(?:url\(|@import)\s*["']?([^"')]*)""", get(url, "/theme.css")[1])
    assert [address for address in addresses if not address.startswith(b"data:")] == []


def test_only_this_machine_is_served_by_default(url: str) -> None:
    port = int(url.rpartition(":")[2])
    with socket.socket() as other_address, pytest.raises(ConnectionRefusedError):
        other_address.connect(("127.0.0.2", port))


def test_a_missing_file_names_the_command(tmp_path: Path) -> None:
    directory = make_model_dir(tmp_path / "half")
    directory.onnx("teacher").unlink()
    with pytest.raises(ArtifactError, match=r"has no teacher\.onnx; make it with: toolkit export --onnx .*half"):
        build_app([directory])
    with pytest.raises(ArtifactError, match="there is no model directory to show; name one: toolkit demo MODEL_DIR"):
        build_app([])


def test_a_taken_port_is_one_clear_line(url: str, model_dirs: list[ModelDir]) -> None:
    port = int(url.rpartition(":")[2])
    command = [sys.executable, "-m", "toolkit", "demo", str(model_dirs[0].path), "--port", str(port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        f"error: cannot serve on 127.0.0.1, port {port}: the port is taken, or the address is not this machine's; "
        "give another --port or --host\n"
    )


def test_teacher_and_student_may_see_different_crops(tmp_path: Path) -> None:
    directory = make_model_dir(tmp_path / "sizes")
    save_colour_model(directory.onnx("teacher"), CLASSES, image_size=16, resize=20)
    picture = save_picture(tmp_path / "a.png")
    comparison = open_pair(directory, "cpu").compare(picture)
    (expected,) = predict_files(directory.onnx("teacher"), [picture], provider="cpu")
    assert expected.answer is not None
    assert comparison.teacher.top == expected.answer.top
    assert comparison.seen.shape == (32, 32, 3)


def test_a_pair_names_the_file_as_it_is_told(model_dirs: list[ModelDir], tmp_path: Path) -> None:
    pair = open_pair(model_dirs[0], "cpu")
    (tmp_path / "x").write_bytes(b"?")
    with pytest.raises(DataError, match=r"cannot read holiday\.jpg as"):
        pair.compare(tmp_path / "x", "holiday.jpg")
    assert replace(pair, teacher_bytes=1).teacher_bytes == 1


def test_sigterm_ends_it_within_seconds(model_dirs: list[ModelDir], tmp_path: Path) -> None:
    server = Server.start(model_dirs[:1], tmp_path / "stderr")
    start = time.monotonic()
    assert server.stop() == LAST_WORDS
    assert time.monotonic() - start < 10
    assert server.process.returncode == 0
    assert server.log.read_text() == "the demo has ended\n"


def test_many_visitors_at_once_all_get_their_own_answer(
    client: Client, model_dirs: list[ModelDir], tmp_path: Path
) -> None:
    pictures = [save_picture(tmp_path / f"{seed}.png", seed) for seed in range(6)]
    answers: dict[int, list[tuple[str, float]]] = {}

    def visit(seed: int) -> None:
        answers[seed] = as_pairs(ask(client, pictures[seed])["student"])

    threads = [threading.Thread(target=visit, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, picture in enumerate(pictures):
        (expected,) = predict_files(model_dirs[0].path, [picture], provider="cpu")
        assert expected.answer is not None
        assert answers[seed] == list(expected.answer.top)
