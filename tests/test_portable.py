"""What differs on other systems, Windows above all, as far as that can be seen from here."""

import ast
import ctypes
import errno
import fcntl
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from toolkit import control_process, files
from toolkit.errors import ArtifactError
from toolkit.files import write_atomically
from toolkit.machine import limits

ROOT = Path(__file__).parents[1]
MODULES = sorted(path for folder in ("toolkit", "scripts", "benchmarks") for path in (ROOT / folder).rglob("*.py"))


def calls_without_encoding(source: str) -> Iterator[int]:
    """Lines of calls that read or write text in whatever encoding the system has."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or any(word.arg == "encoding" for word in node.keywords):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        texts = [part.value for part in (*node.args, *(word.value for word in node.keywords)) if is_text(part)]
        opens = name in ("open", "fdopen") and any(re.fullmatch(r"[rwax]t?\+?", text) for text in texts)
        speaks = any(word.arg == "text" for word in node.keywords) and name in ("run", "Popen", "check_output")
        if opens or speaks or name in ("read_text", "write_text"):
            yield node.lineno


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


@pytest.mark.parametrize("path", MODULES, ids=[str(path.relative_to(ROOT)) for path in MODULES])
def test_text_is_utf_8_everywhere(path: Path) -> None:
    assert list(calls_without_encoding(path.read_text(encoding="utf-8"))) == []


def test_the_search_finds_what_it_looks_for() -> None:
    bad = [
        "p.read_text()",
        "p.write_text('a')",
        "p.open('a')",
        "open(p, 'w')",
        "open(p, mode='r')",
        "run(x, text=True)",
    ]
    good = ["p.read_bytes()", "p.open('rb')", "Image.open(p)", "p.read_text(encoding='utf-8')", "self.open(path)"]
    assert list(calls_without_encoding("\n".join(bad))) == list(range(1, len(bad) + 1))
    assert list(calls_without_encoding("\n".join(good))) == []


def test_a_file_is_flushed_through_a_handle_that_may_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed = []

    def flush_as_windows_does(handle: int) -> None:
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        flushed.append(handle)

    monkeypatch.setattr(os, "fsync", flush_as_windows_does)
    with write_atomically(tmp_path / "a") as temporary:
        temporary.write_bytes(b"whole")
    assert (tmp_path / "a").read_bytes() == b"whole"
    assert len(flushed) == 1


class TestAFileThatIsOpenElsewhere:
    @pytest.fixture(autouse=True)
    def _windows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(files, "IS_WINDOWS", True)
        monkeypatch.setattr(files, "PAUSE_S", 0)

    def hold(self, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
        replace, tries = Path.replace, iter(range(times))

        def refuse_at_first(path: Path, target: Path) -> Path:
            for _ in tries:
                raise PermissionError(errno.EACCES, "Access is denied")
            return replace(path, target)

        monkeypatch.setattr(Path, "replace", refuse_at_first)

    def write(self, path: Path) -> None:
        with write_atomically(path) as temporary:
            temporary.write_bytes(b"new")

    def test_is_replaced_when_it_is_closed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hold(monkeypatch, times=3)
        self.write(tmp_path / "a")
        assert (tmp_path / "a").read_bytes() == b"new"

    def test_and_stays_where_it_never_is(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "a").write_bytes(b"old")
        self.hold(monkeypatch, times=1000)
        with pytest.raises(ArtifactError, match=r"cannot write .*: Access is denied"):
            self.write(tmp_path / "a")
        assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


@pytest.mark.parametrize(("succeeds", "size"), [(1, 12 * 2**30), (0, 0)])
def test_windows_tells_its_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, succeeds: int, size: int) -> None:
    def fill(pointer: object) -> int:
        status = pointer._obj  # type: ignore[attr-defined]
        assert status.length == ctypes.sizeof(status) == 64, "as Windows wants it"
        status.physical = 12 * 2**30
        return succeeds

    monkeypatch.delattr(os, "sysconf")
    assert limits.memory_bytes(tmp_path) == 0, "a system that says nothing"
    kernel = SimpleNamespace(GlobalMemoryStatusEx=fill)
    monkeypatch.setattr(ctypes, "windll", SimpleNamespace(kernel32=kernel), raising=False)
    assert limits.memory_bytes(tmp_path) == size


def test_the_control_interrupts_itself_and_is_not_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows os.kill ends a process, whatever the signal."""
    asked: list[str] = []
    monkeypatch.setattr(os, "read", lambda *_: b"")
    monkeypatch.setattr("toolkit.console.err.quiet", False)
    monkeypatch.setattr(os, "kill", lambda *_: asked.append("kill"))
    monkeypatch.setattr("_thread.interrupt_main", lambda: asked.append("interrupt"))
    monkeypatch.delattr(signal, "SIGKILL")
    control_process._watch()
    assert asked == ["interrupt"]


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_a_log_in_another_encoding_gets_every_line(encoding: str) -> None:
    program = (
        "from toolkit.cli import ending; from toolkit import console; from toolkit.errors import DataError\n"
        "def app():\n"
        "    console.out.print('a → b'); console.say('── 1/4 teacher'); raise DataError('no \\udc80 there', 'look')\n"
        "ending.app = app; ending.main()"
    )
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, env=environment)
    assert done.returncode == 1, done.stderr
    assert done.stdout == b"a \\u2192 b\n"
    assert done.stderr == b"\\u2500\\u2500 1/4 teacher\nerror: no \\udc80 there; look\n"


AS_WINDOWS = """
import ctypes, os, signal, sys, types
import torch, torchvision, onnxruntime, safetensors.torch
from toolkit.cli import ending
import toolkit.pipeline, toolkit.stage_setup, toolkit.control_process, toolkit.export.export
sys.modules["fcntl"] = None
for name in ("getuid", "geteuid", "getgid", "sched_getaffinity", "getloadavg", "sysconf", "fork", "chown", "nice"):
    delattr(os, name)
for name in ("SIGSTOP", "SIGCONT", "SIGTSTP", "SIGHUP", "SIGUSR1"):
    delattr(signal, name)
fsync = os.fsync
def strict(handle):
    os.write(handle, b"")  # fails for a handle that may only read
    fsync(handle)
os.fsync = strict
def tell_memory(pointer):
    pointer._obj.physical = 8 << 30
    return 1
ctypes.windll = types.SimpleNamespace(kernel32=types.SimpleNamespace(GlobalMemoryStatusEx=tell_memory))
import pathlib
read = pathlib.Path.read_text
def without_kernel(path, *a, **k):
    return read(pathlib.Path("/none") if str(path).startswith(("/proc", "/sys/")) else path, *a, **k)
pathlib.Path.read_text = without_kernel
sys.argv = ["toolkit", *sys.argv[1:]]
ending.main()
"""


@pytest.mark.slow
def test_the_stages_run_without_what_windows_has_not(class_folders: Path, tmp_path: Path) -> None:
    settings = (
        *("data.image_size=32", "data.resize=36", "training.precision=fp32", "teacher.architecture=depthwise"),
        *("teacher.base=2", "student.base=2", "teacher.epochs=1", "distill.epochs=1", "teacher.batch_size=12"),
        *("distill.teacher_views=1", "bench.samples=10", "bench.seconds=0.2"),
    )
    flags = ["run", "--data", str(class_folders), "--out", str(tmp_path / "m"), "--device", "cpu"]
    flags += [word for setting in settings for word in ("--set", setting)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "USERNAME": "user"}
    done = subprocess.run([sys.executable, "-c", AS_WINDOWS, *flags], capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr.decode()
    assert b"of memory for this process" not in done.stderr, done.stderr.decode()
    assert (tmp_path / "m" / "report.json").is_file()
