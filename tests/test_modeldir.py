"""The model directory: names, whole-or-nothing writes, and messages that name the next command."""

import errno
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from toolkit.cli import app
from toolkit.errors import ArtifactError
from toolkit.files import sha256_file, unwritable, write_atomically
from toolkit.machine import container
from toolkit.machine.container import missing_volume
from toolkit.modeldir import ModelDir


def fail_halfway(path: Path) -> None:
    with write_atomically(path) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError("power cut")


def test_names() -> None:
    directory = ModelDir(Path("models/x"))
    assert directory.onnx("student") == Path("models/x/student.onnx")
    assert directory.onnx("student", "int8") == Path("models/x/student.int8.onnx")
    assert directory.weights("teacher") == Path("models/x/teacher.safetensors")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    with write_atomically(path) as temporary:
        temporary.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="power cut"):
        fail_halfway(path)
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


def test_a_written_file_has_ordinary_permissions(tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        with write_atomically(tmp_path / "f") as temporary:
            temporary.write_bytes(b"x")
        assert (tmp_path / "f").stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(umask)


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with (
        pytest.raises(
            ArtifactError,
            match=r"cannot write .*: a file lies where a folder should be; give a directory you may write to",
        ),
        write_atomically(tmp_path / "file" / "x.json"),
    ):
        pass


CLAIM = """
import sys
from pathlib import Path
from toolkit.modeldir import ModelDir
ModelDir(Path(sys.argv[1])).claim()
print("claimed", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def claimed(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that has claimed tmp_path, and ends with its stdin."""
    command = [sys.executable, "-c", CLAIM, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "claimed\n"
        yield process
        process.kill()


IN_USE = r"another toolkit process is training in .*; wait until it has ended, or choose another directory"


def test_a_directory_belongs_to_one_process_until_that_has_ended(
    claimed: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    for _ in range(2):
        with pytest.raises(ArtifactError, match=IN_USE):
            ModelDir(tmp_path).claim()
    ModelDir(tmp_path.parent).claim()
    claimed.communicate()
    assert list(tmp_path.iterdir()) == [], "nothing stays"
    ModelDir(tmp_path).claim()
    ModelDir(tmp_path).claim()  # its own


def test_a_process_that_was_killed_leaves_no_claim(claimed: "subprocess.Popen[str]", tmp_path: Path) -> None:
    claimed.kill()
    claimed.wait()
    ModelDir(tmp_path).claim()


def test_if_there_is_no_such_lock_nothing_is_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(*_: object) -> None:
        asked.append("for a lock")
        raise OSError(errno.ENOLCK, "No locks available")

    with monkeypatch.context() as patch:
        patch.setattr("fcntl.lockf", refuse)
        ModelDir(tmp_path).claim()
    assert asked == ["for a lock"]


def test_a_second_command_is_refused_before_it_plans(
    claimed: "subprocess.Popen[str]", class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--data", str(class_folders), "--out", str(tmp_path), "--device", "cpu"]
    for command in ("teacher", "distill", "run"):
        with pytest.raises(ArtifactError, match=IN_USE):
            app.app([command, *flags], standalone_mode=False)
    assert "plan: " not in capsys.readouterr().err


def test_make_proves_that_the_directory_can_be_written(tmp_path: Path) -> None:
    ModelDir(tmp_path / "a" / "b").make()
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ArtifactError, match=r"cannot write .*; give a directory"):
        ModelDir(tmp_path / "file").make()


def test_an_unwritable_directory_is_refused(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        tmp_path = Path("/proc/self")  # root may write anywhere but into the kernel's own folders
    else:
        tmp_path.chmod(0o500)
    with pytest.raises(ArtifactError, match="cannot write"):
        ModelDir(tmp_path).make()


@pytest.mark.parametrize(
    ("artifact", "command"),
    [
        ("teacher.safetensors", "toolkit distill --out"),
        ("student.onnx", "toolkit export --onnx"),
        ("student.int8.onnx", "toolkit export --onnx --int8"),
        ("report.json", "toolkit bench"),
    ],
)
def test_a_missing_input_names_the_command_that_makes_it(tmp_path: Path, artifact: str, command: str) -> None:
    with pytest.raises(ArtifactError, match=f"{tmp_path} has no {artifact}; make it with: {command} {tmp_path}"):
        ModelDir(tmp_path).require(tmp_path / artifact)


def test_a_missing_directory_names_the_command_that_makes_it(tmp_path: Path) -> None:
    directory = ModelDir(tmp_path / "none")
    with pytest.raises(ArtifactError, match=r"there is no model directory .*; make one with: toolkit run --out"):
        directory.require(directory.weights("student"))


MOUNTS_INSIDE = """\
612 570 0:52 / / rw,relatime master:281 - overlay overlay rw,lowerdir=/l/A:/l/B
613 612 0:55 / /proc rw,nosuid - proc proc rw
620 612 254:1 /volumes/kd/_data {volume} rw,relatime - ext4 /dev/vda rw
"""


@pytest.mark.parametrize(
    ("mounted", "missing"), [("/app/models", None), ("/app/models/fashion-mnist", None), ("/data", "/app/models")]
)
def test_a_volume_that_was_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mounted: str, missing: str | None
) -> None:
    (tmp_path / "mountinfo").write_text(MOUNTS_INSIDE.format(volume=mounted))
    monkeypatch.setattr(container, "MOUNTS", tmp_path / "mountinfo")
    there = Path("/app/models/fashion-mnist")
    assert missing_volume(there) is None  # not in the image
    monkeypatch.setenv("KD_TOOLKIT_VOLUME", "/app/models")
    assert missing_volume(there) == missing
    with pytest.raises(ArtifactError) as caught:
        ModelDir(there).require(there / "student.onnx")
    assert ("docker run -v kd-models:/app/models" in str(caught.value)) == (missing is not None)


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert sha256_file(tmp_path / "f") == hashlib.sha256(b"abc").hexdigest()


def test_a_relative_path_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m" / "report.md").mkdir(parents=True)
    expected = r"cannot write .*m/report\.md: "
    with pytest.raises(ArtifactError, match=expected), write_atomically(Path("m/report.md")) as path:
        path.write_text("x")
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["report.md"]


def test_a_folder_of_somebody_else_names_both_and_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 10001)
    error = unwritable(tmp_path / "new" / "report.json", PermissionError(13, "Permission denied"))
    owner = tmp_path.stat().st_uid
    assert str(error) == (
        f"cannot write {tmp_path}/new/report.json: Permission denied ({tmp_path} belongs to uid {owner}, and this is"
        " uid 10001); give a directory you may write to, with space left; in a container: a volume without"
        ' --user, or a folder of your own with --user "$(id -u):$(id -g)"'
    )


def test_a_read_only_place_names_the_way_out() -> None:
    error = unwritable(Path("models/x"), OSError(errno.EROFS, "Read-only file system"))
    assert str(error).endswith("in a container: mount one, as in docker run -v kd-models:/app/models")
