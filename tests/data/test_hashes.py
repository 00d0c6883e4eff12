"""Hashes of files: the same as reading every file, without reading it again while nothing changed."""

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from toolkit.data import hashes
from toolkit.data.dataset import fingerprint_files
from toolkit.data.hashes import hash_files
from toolkit.files import sha256_file

NAMES = ["a/0.png", "a/1.png", "b/0.png", "b/ü.png"]
LABELS = [0, 0, 1, 1]
CLASSES = ("a", "b")
BEFORE_MEMOS = "6f8752298942aae0753ea6c7ff2d1df73a2e828168f7cce40bd3e04a3fec7e7c"
"""The fingerprint of the files below from when every file was still read every time (commit 1ce06bc)."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small roots are remembered, and at once, unless a test says otherwise."""
    monkeypatch.setenv("KD_TOOLKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "MEMO_FROM_BYTES", 0)
    monkeypatch.setattr(hashes, "UNSETTLED_NS", 0)
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for i, name in enumerate(NAMES):
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([i]) * (100 + i))
    time.sleep(0.02)  # longer than a tick of the file system's clock
    return tmp_path / "set"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were read in full."""
    names: list[str] = []

    def note(path: Path) -> str:
        names.append(path.name if path.parent.name != "a" else f"a/{path.name}")
        return sha256_file(path)

    monkeypatch.setattr(hashes, "sha256_file", note)
    return names


def reference(root: Path, names: list[str] = NAMES, labels: list[int] = LABELS) -> str:
    """The definition, written out: class names, then name, label and SHA-256 of each file, sorted."""
    total = hashlib.sha256("\n".join(CLASSES).encode())
    for name, label in sorted(zip(names, labels, strict=True)):
        path = root / name
        digest = hashlib.sha256(path.read_bytes()).digest() if path.is_file() else b"unreadable"
        total.update(f"\n{name}\t{label}\t".encode(errors="surrogateescape") + digest)
    return total.hexdigest()


def fingerprint(root: Path) -> str:
    return fingerprint_files(root, NAMES, LABELS, CLASSES)


def memo(cache: Path) -> Path:
    (path,) = (cache / "hashes").iterdir()
    return path


def test_the_fingerprint_is_the_definition_s_remembered_or_not(root: Path, cache: Path) -> None:
    assert reference(root) == BEFORE_MEMOS
    assert fingerprint(root) == reference(root)
    assert memo(cache).stat().st_size == 32 + 64 * len(NAMES)
    assert fingerprint(root) == reference(root)


def test_unchanged_files_are_not_read_again(root: Path, opened: list[str]) -> None:
    first = hash_files(root, NAMES)
    assert len(opened) == len(NAMES)
    assert hash_files(root, NAMES) == first
    assert hash_files(root, NAMES[::-1]) == first[::-1]
    assert len(opened) == len(NAMES)


def test_another_way_to_the_same_folder_is_the_same_folder(
    root: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = hash_files(root, NAMES)
    (root.parent / "link").symlink_to(root)
    monkeypatch.chdir(root.parent)
    for way in (root.parent / "link", Path("set"), root / "a" / ".."):
        assert hash_files(way, NAMES) == first
    assert len(opened) == len(NAMES)


@pytest.mark.parametrize("replace", ["in place", "by another file"])
def test_a_change_that_keeps_size_and_mtime_is_noticed(root: Path, opened: list[str], replace: str) -> None:
    before = fingerprint(root)
    path = root / "a/1.png"
    was = path.stat()
    target = path if replace == "in place" else root / "new"
    target.write_bytes(b"x" * was.st_size)
    os.utime(target, ns=(was.st_atime_ns, was.st_mtime_ns))
    target.replace(path)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (was.st_size, was.st_mtime_ns)
    opened.clear()
    assert fingerprint(root) == reference(root) != before
    assert opened == ["a/1.png"]


def test_a_touched_file_is_read_again_and_the_fingerprint_stays(root: Path, opened: list[str]) -> None:
    before = fingerprint(root)
    opened.clear()
    os.utime(root / "a/1.png", (1, 1))
    assert fingerprint(root) == before
    assert opened == ["a/1.png"]
    assert fingerprint(root) == before
    assert opened == ["a/1.png"], "remembered again"


def test_two_files_that_change_places_are_noticed(root: Path) -> None:
    for name in ("a/0.png", "a/1.png"):
        (root / name).write_bytes(name.encode())
    before = fingerprint(root)
    (root / "a/0.png").rename(root / "x")
    (root / "a/1.png").rename(root / "a/0.png")
    (root / "x").rename(root / "a/1.png")
    assert fingerprint(root) == reference(root) != before


def test_files_are_distinguished_without_inodes(root: Path, monkeypatch: pytest.MonkeyPatch, opened: list[str]) -> None:
    """Some file systems number no inodes, and an archive may give all its files one time."""
    real = Path.stat

    def stat(path: Path, **options: bool) -> os.stat_result | SimpleNamespace:
        found = real(path, **options)
        if path.suffix != ".png":
            return found
        return SimpleNamespace(st_mode=found.st_mode, st_size=100, st_ino=0, st_mtime_ns=1, st_ctime_ns=1)

    monkeypatch.setattr(Path, "stat", stat)
    for _ in range(2):
        assert fingerprint(root) == BEFORE_MEMOS
    assert len(opened) == len(NAMES)


def test_a_file_that_just_changed_is_not_remembered(
    root: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may change again within the same tick of the clock and keep its size and times."""
    monkeypatch.undo()
    monkeypatch.setenv("KD_TOOLKIT_CACHE", str(root.parent / "cache"))
    monkeypatch.setattr(hashes, "MEMO_FROM_BYTES", 0)
    monkeypatch.setattr(hashes, "sha256_file", lambda path: opened.append(path.name) or sha256_file(path))
    os.utime(root / "a/1.png", (1, 1))
    changed_ns = [(root / name).stat().st_ctime_ns for name in NAMES]
    now_ns = min(changed_ns) + 1_000_000_000
    monkeypatch.setattr(hashes, "time", SimpleNamespace(time_ns=lambda: now_ns))
    for _ in range(2):
        assert fingerprint(root) == reference(root)
    assert len(opened) == 2 * len(NAMES), "mtime is old, ctime is not"
    assert not (root.parent / "cache").exists()

    now_ns = max(changed_ns) + 3_000_000_000
    for _ in range(2):
        assert fingerprint(root) == reference(root)
    assert len(opened) == 3 * len(NAMES)


def test_a_file_from_the_future_is_read_every_time(root: Path, opened: list[str]) -> None:
    future = time.time() + 10_000
    os.utime(root / "a/1.png", (future, future))
    time.sleep(0.02)
    for _ in range(3):
        assert fingerprint(root) == reference(root)
    assert opened.count("a/1.png") == 3
    assert len(opened) == 3 + len(NAMES) - 1


def test_unreadable_files_are_not_remembered(root: Path, opened: list[str]) -> None:
    (root / "a/1.png").unlink()
    (root / "a/1.png").symlink_to(root / "nowhere")
    assert hash_files(root, NAMES)[1] == b"unreadable"
    assert fingerprint(root) == reference(root)
    (root / "nowhere").write_bytes(b"there")
    assert fingerprint(root) == reference(root)


def test_files_that_are_gone_are_forgotten(root: Path, cache: Path) -> None:
    fingerprint(root)
    (root / "a/1.png").write_bytes(b"new")
    time.sleep(0.02)
    hash_files(root, NAMES[:2])
    assert memo(cache).stat().st_size == 32 + 64 * 2


def test_small_roots_leave_no_memo(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes, "MEMO_FROM_BYTES", 1000)
    assert fingerprint(root) == reference(root)
    assert not cache.exists()


@pytest.mark.parametrize("damage", ["empty", "cut", "longer", "one bit", "foreign"])
def test_a_damaged_memo_is_replaced(
    root: Path, cache: Path, opened: list[str], damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = fingerprint(root)
    path = memo(cache)
    good = content = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "cut": content[:-64],
            "longer": content + bytes(64),
            "one bit": content[:-1] + bytes([content[-1] ^ 1]),
            "foreign": b"<html>" * 30,
        }[damage]
    )
    opened.clear()
    assert fingerprint(root) == expected
    assert len(opened) == len(NAMES)
    assert fingerprint(root) == expected
    assert len(opened) == len(NAMES)
    assert memo(cache).read_bytes() == good
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("place", ["file/cache", "~nobody-of-this-name/cache"])
def test_a_cache_that_cannot_be_written_is_no_error(
    root: Path, monkeypatch: pytest.MonkeyPatch, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (root.parent / "file").write_bytes(b"")
    monkeypatch.setenv("KD_TOOLKIT_CACHE", place if place[0] == "~" else str(root.parent / place))
    for _ in range(2):
        assert fingerprint(root) == reference(root)
    assert capsys.readouterr().err == ""


def test_processes_that_hash_at_once_do_not_disturb_each_other(root: Path, cache: Path, opened: list[str]) -> None:
    code = (
        "import sys; from pathlib import Path; from toolkit.data import hashes\n"
        "hashes.MEMO_FROM_BYTES = hashes.UNSETTLED_NS = 0\n"
        "for _ in range(20):\n"
        "    digests = hashes.hash_files(Path(sys.argv[1]), sys.argv[2:])\n"
        "    next((Path(sys.argv[1]) / 'a').iterdir()).touch()\n"
        "sys.stdout.write(b''.join(digests).hex())"
    )
    command = [sys.executable, "-c", code, str(root), *NAMES]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = {process.communicate(timeout=600)[0] for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert answers == {b"".join(hash_files(root, NAMES)).hex()}
    opened.clear()
    time.sleep(0.02)
    hash_files(root, NAMES)
    assert len(opened) <= 1, "the memo is whole"
    assert memo(cache).suffix == ".bin", "and no temporary file lies beside it"
