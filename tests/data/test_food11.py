"""food-11 from a server of our own: download, resume, unpack, refuse."""

import contextlib
import io
import stat
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import make_image

from toolkit.data import food11
from toolkit.data.food11 import load_food11, teacher_weights
from toolkit.data.sources import load_dataset
from toolkit.errors import DataError
from toolkit.settings import DataRecipe

RECIPE = DataRecipe(source="food-11")


@dataclass
class Server:
    """Serves `files`; each answer's body ends after `cut_bytes`, as if the line broke. Notes what was asked for."""

    address: str
    files: dict[str, bytes] = field(default_factory=dict)
    cut_bytes: int | None = None
    ranges: list[str | None] = field(default_factory=list)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = state.files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            asked = self.headers["Range"]
            state.ranges.append(asked)
            first = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
            self.send_response(206 if asked else 200)
            if asked:
                self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - first))
            self.send_header("Content-Type", "application/octet-stream")
            self.end_headers()
            body = content[first:]
            if state.cut_bytes is not None:
                body = body[: state.cut_bytes]
            with contextlib.suppress(ConnectionError):  # gdown reads the head of a whole answer, then asks for a part
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state = Server(f"http://127.0.0.1:{http.server_port}")
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(food11, "ARCHIVE_URL", f"{state.address}/food-11.zip")
    monkeypatch.setattr(food11, "TEACHER_URL", f"{state.address}/teacher_resnet18.bin")
    monkeypatch.setattr(food11, "RETRIES", 0)
    yield state
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KD_TOOLKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "food-11"


def make_archive(top: str = "food-11/", labels: int = 11, extra: dict[str, bytes] | None = None) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for split in ("training", "validation", "evaluation"):
            for label in range(labels):
                picture = io.BytesIO()
                make_image(label, seed=label, size=(6, 5)).save(picture, "PNG")
                archive.writestr(f"{top}{split}/{label}_0.png", picture.getvalue())
        for name, body in (extra or {}).items():
            archive.writestr(name, body)
    return content.getvalue()


@pytest.mark.parametrize("top", ["food-11/", ""])
def test_the_archive_is_fetched_unpacked_and_kept(server: Server, cache: Path, top: str) -> None:
    pytest.importorskip("gdown")
    server.files["/food-11.zip"] = make_archive(top)
    dataset = load_dataset(RECIPE)
    assert dataset.name == "food-11"
    assert dataset.classes == food11.CLASSES
    assert [len(images) for images in dataset.splits.values()] == [11, 11, 11]
    assert all("evaluation/" in name for name in dataset.test.names)
    assert dataset.test.read(0).size == (6, 5)
    server.files.clear()
    assert load_dataset(RECIPE).sha256 == dataset.sha256
    assert sorted(path.name for path in cache.iterdir()) == ["food-11.zip", "images"]


def test_an_interrupted_download_goes_on_where_it_stopped(server: Server, cache: Path) -> None:
    pytest.importorskip("gdown")
    content = bytes(range(256)) * 8000  # 2 MB
    server.files["/teacher_resnet18.bin"] = content
    server.cut_bytes = 1_300_000
    with pytest.raises(DataError) as caught:
        teacher_weights()
    message = str(caught.value)
    assert "could not be downloaded from http://127.0.0.1" in message
    assert f"run again to resume, or put the file at {cache / 'teacher_resnet18.bin'} by hand" in message
    assert "\n" not in message
    assert not (cache / "teacher_resnet18.bin").exists()
    (part,) = cache.iterdir()
    got = part.stat().st_size
    assert 0 < got <= 1_300_000
    server.cut_bytes = None
    assert teacher_weights().read_bytes() == content
    assert server.ranges[-1] == f"bytes={got}-"
    assert [path.name for path in cache.iterdir()] == ["teacher_resnet18.bin"]


def test_retries_within_one_call_go_on_too(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gdown")
    monkeypatch.setattr(food11, "RETRIES", 3)
    monkeypatch.setattr("random.uniform", lambda *_: 0.0)
    content = bytes(range(256)) * 8000
    server.files["/teacher_resnet18.bin"] = content
    server.cut_bytes = 900_000
    assert teacher_weights().read_bytes() == content


def test_no_network_says_where_to_put_the_file_and_then_works_from_there(server: Server, cache: Path) -> None:
    pytest.importorskip("gdown")
    with pytest.raises(DataError) as caught:
        load_food11(RECIPE)
    assert f"put the file at {cache / 'food-11.zip'} by hand" in str(caught.value)
    assert "404" in str(caught.value)
    assert "\n" not in str(caught.value)
    cache.mkdir(parents=True, exist_ok=True)
    (cache / "food-11.zip").write_bytes(make_archive())
    assert len(load_food11(RECIPE).classes) == 11
    (cache / "teacher_resnet18.bin").write_bytes(b"weights")
    assert teacher_weights() == cache / "teacher_resnet18.bin"


@pytest.mark.usefixtures("server")
def test_a_server_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gdown")
    monkeypatch.setattr(food11, "TEACHER_URL", "http://127.0.0.1:9/teacher_resnet18.bin")
    with pytest.raises(
        DataError,
        match=r"teacher could not be downloaded from .*the connection to 127.0.0.1 failed\); run again to resume",
    ):
        teacher_weights()


def test_without_gdown_one_line_says_how_to_get_it(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(DataError) as caught:
        load_food11(RECIPE)
    assert "pip install 'kd-toolkit[food11]', or put the file at" in str(caught.value)
    assert str(cache / "food-11.zip") in str(caught.value)


@pytest.mark.parametrize(
    "name", ["../evil.png", "a/../../evil.png", "/evil.png", "..\\evil.png", "C:\\evil.png", "C:evil"]
)
def test_a_member_that_would_leave_the_folder_is_refused(cache: Path, tmp_path: Path, name: str) -> None:
    cache.mkdir(parents=True)
    (cache / "food-11.zip").write_bytes(make_archive(extra={name: b"evil"}))
    with pytest.raises(DataError, match=r"has a member outside of its folder: .*evil.*; delete the archive"):
        load_food11(RECIPE)
    assert [path.name for path in cache.iterdir()] == ["food-11.zip"], "nothing was unpacked"
    assert not list(tmp_path.rglob("*evil*"))


def test_a_link_in_the_archive_is_refused(cache: Path) -> None:
    cache.mkdir(parents=True)
    link = zipfile.ZipInfo("food-11/training/0_1.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(cache / "food-11.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(DataError, match="has a member outside of its folder"):
        load_food11(RECIPE)
    assert [path.name for path in cache.iterdir()] == ["food-11.zip"]


@pytest.mark.parametrize("damage", ["truncated", "no zip", "flipped"])
def test_a_damaged_archive_is_named(cache: Path, damage: str) -> None:
    cache.mkdir(parents=True)
    whole = make_archive()
    middle = len(whole) // 3
    spoiled = {
        "truncated": whole[:-500],
        "no zip": b"<html>Quota exceeded</html>",
        "flipped": whole[:middle] + bytes(255 - byte for byte in whole[middle : middle + 40]) + whole[middle + 40 :],
    }
    (cache / "food-11.zip").write_bytes(spoiled[damage])
    with pytest.raises(DataError, match=r"food-11\.zip is not a whole zip archive .*; delete it to fetch it again"):
        load_food11(RECIPE)
    assert [path.name for path in cache.iterdir()] == ["food-11.zip"]


def test_an_archive_of_something_else_is_named(cache: Path) -> None:
    cache.mkdir(parents=True)
    with zipfile.ZipFile(cache / "food-11.zip", "w") as archive:
        archive.writestr("readme.txt", "x")
    with pytest.raises(DataError, match="holds no folder training/"):
        load_food11(RECIPE)


def test_without_gdown_the_way_out_is_said(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(food11.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"is not at .*, and its download needs the package gdown; pip install"):
        teacher_weights()


def test_a_folder_that_cannot_be_written_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    archive = tmp_path / "food-11.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("food-11/training/0_0.jpg", b"")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "extract", full)
    with pytest.raises(DataError, match=r"cannot unpack .*food-11.zip into .*: No space left on device; "):
        food11._unpack(archive, tmp_path / "set")
