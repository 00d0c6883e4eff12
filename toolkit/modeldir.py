"""The model directory: which artifact lies where, whole or not at all, and what its SHA-256 is.

Every stage reads and writes one directory. This is the only module that knows the names in it.
"""

import atexit
import contextlib
import errno
import hashlib
import os
import shlex
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from toolkit.errors import ArtifactError

Role = Literal["teacher", "student", "control"]
Precision = Literal["fp32", "fp16", "int8"]

BENCH_PLOTS = ("accuracy_latency", "reliability", "confusion_difference")
"""Names of the pictures that the benchmark draws."""

VOLUME = "KD_TOOLKIT_VOLUME"
"""The environment variable by which the image names the folder where a volume belongs."""

MOUNTS = Path("/proc/self/mountinfo")
"""Linux's list of mounts; the fifth field of a line is where (proc_pid_mountinfo(5))."""

MADE_BY = {
    ".safetensors": "toolkit distill",
    ".onnx": "toolkit export --onnx",
    ".json": "toolkit bench",
    ".zip": "toolkit bench",
}
"""Suffix of an artifact → the command that makes it."""


@dataclass(frozen=True)
class ModelDir:
    """A directory `models/<name>/` and the names of what stages put there."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.resolve().name

    def weights(self, role: Role) -> Path:
        return self.path / f"{role}.safetensors"

    def onnx(self, role: Role, precision: Precision = "fp32") -> Path:
        return self.path / (f"{role}.onnx" if precision == "fp32" else f"{role}.{precision}.onnx")

    def onnx_files(self, role: Role) -> dict[Precision, Path]:
        """The ONNX files of `role` that are there, by precision."""
        files = {precision: self.onnx(role, precision) for precision in get_args(Precision)}
        return {precision: path for precision, path in files.items() if path.is_file()}

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.toml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def checkpoint(self, role: Role) -> Path:
        """Where an interrupted training stage goes on from; the control may be trained while the student is."""
        return self.path / ("checkpoint-control.pt" if role == "control" else "checkpoint.pt")

    @property
    def minutes(self) -> Path:
        """What --minutes chose."""
        return self.path / "minutes.json"

    def of_seed(self, seed: int) -> "ModelDir":
        """The directory of one more student and control, trained from another seed with this directory's teacher."""
        return ModelDir(self.path / "seeds" / str(seed))

    def seeds(self) -> list[int]:
        """Seeds that `of_seed` has directories of, ascending."""
        return sorted(int(path.name) for path in self.path.glob("seeds/*") if path.name.isdigit())

    @property
    def report_json(self) -> Path:
        return self.path / "report.json"

    @property
    def report_markdown(self) -> Path:
        return self.path / "report.md"

    @property
    def card(self) -> Path:
        """The model card that bench writes."""
        return self.path / "README.md"

    @property
    def examples(self) -> Path:
        """Test images for the demo."""
        return self.path / "examples.zip"

    def plot(self, name: str) -> Path:
        return self.path / f"{name}.png"

    def make(self) -> None:
        """Make the directory where it is not there and prove that it can be written to, before hours of work."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise unwritable(self.path, error) from None

    def claim(self) -> None:
        """Keep every other process that trains out of the directory until this one ends.

        Raises ArtifactError where another one is at work here already. Does nothing where the system has no such lock.
        """
        lock = (self.path / ".lock").absolute()
        with contextlib.suppress(ImportError, OSError):  # no fcntl; a file system without locks; somebody else's file
            import fcntl

            handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)  # open to the end, as the lock is
            try:
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ArtifactError(
                    f"another toolkit process is training in {self.path}",
                    "wait until it has ended, or choose another directory with --out",
                ) from None
            atexit.register(lock.unlink, missing_ok=True)

    def require(self, artifact: Path) -> Path:
        """`artifact` if it is there; else an ArtifactError naming the command that makes it."""
        if not self.path.is_dir():
            remedy = f"make one with: toolkit run --out {shlex.quote(str(self.path))}"
            if volume := missing_volume(self.path):
                remedy = f"mount the volume that has it: docker run -v kd-models:{volume}"
            raise ArtifactError(f"there is no model directory {self.path}", remedy)
        if not artifact.is_file():
            smaller = artifact.suffixes[-2] if artifact.suffix == ".onnx" and len(artifact.suffixes) > 1 else ""
            command = MADE_BY.get(artifact.suffix, "toolkit run") + smaller.replace(".", " --")
            flag = "--out " if command == "toolkit distill" else ""
            raise ArtifactError(
                f"{self.path} has no {artifact.name}", f"make it with: {command} {flag}{shlex.quote(str(self.path))}"
            )
        return artifact


@contextlib.contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; on success it is renamed to `path`, otherwise nothing is left.

    Folders on the way are made. Raises ArtifactError where the place cannot be written or the disk is full.
    """
    temporary = None
    path = path.absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        temporary.chmod(0o666 & ~_umask())
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.filename is not None and Path(str(error.filename)).parent not in {path.parent, *path.parents}:
            raise
        raise unwritable(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time; the lock goes with its process. Nothing where the system cannot lock a folder."""
    handle = None
    try:
        with contextlib.suppress(ImportError, OSError):  # Windows has no fcntl, some network file systems no such lock
            import fcntl

            handle = os.open(folder, os.O_RDONLY)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        if handle is not None:
            os.close(handle)


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def missing_volume(path: Path) -> str | None:
    """In the image, the folder where a volume would keep `path`, if nothing is mounted on the way to it; else None."""
    volume = os.environ.get(VOLUME)
    if not volume or not MOUNTS.is_file():
        return None
    mounted = {Path(line.split()[4]) for line in MOUNTS.read_text(errors="replace").splitlines()} - {Path("/")}
    place = path.resolve()
    return None if mounted.intersection((place, *place.parents)) else volume


def unwritable(path: Path, error: OSError) -> ArtifactError:
    """The error to raise where `path` could not be written."""
    if isinstance(error, FileExistsError | NotADirectoryError):
        reason = "a file lies where a folder should be"
    else:
        reason = error.strerror or str(error)
    remedy = "give a directory you may write to, with space left"
    if isinstance(error, PermissionError) and hasattr(os, "getuid"):
        folder = next(place for place in (path, *path.absolute().parents) if place.is_dir())
        reason += f" ({folder} belongs to uid {folder.stat().st_uid}, and this is uid {os.getuid()})"
        remedy += '; in a container: a volume without --user, or a folder of your own with --user "$(id -u):$(id -g)"'
    elif error.errno == errno.EROFS:
        remedy += "; in a container: mount one, as in docker run -v kd-models:/app/models"
    return ArtifactError(f"cannot write {path}: {reason}", remedy)


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
