"""Files that are written whole or not at all; their SHA-256."""

import contextlib
import errno
import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from toolkit.errors import ArtifactError, one_line

IS_WINDOWS = sys.platform == "win32"
PATIENCE, PAUSE_S = 20, 0.05
"""Times that a rename is tried again, and s between them."""


@contextlib.contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; on success it is renamed to `path`, otherwise nothing is left.

    Folders on the way are made. Raises ArtifactError if the place cannot be written or the disk is full.
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
        with temporary.open("r+b") as file:  # Windows flushes only what may be written
            os.fsync(file.fileno())
        _replace(temporary, path)
    except OSError as error:
        if error.filename is not None and Path(str(error.filename)).parent not in {path.parent, *path.parents}:
            raise
        raise unwritable(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time; the lock goes with its process. Nothing if the system cannot lock a folder."""
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


def unwritable(path: Path, error: OSError) -> ArtifactError:
    """The error to raise if `path` cannot be written."""
    if isinstance(error, FileExistsError | NotADirectoryError):
        reason = "a file lies where a folder should be"
    else:
        reason = error.strerror or one_line(error)
    remedy = "give a directory you may write to, with space left"
    if isinstance(error, PermissionError) and hasattr(os, "getuid"):
        folder = next(place for place in (path, *path.absolute().parents) if place.is_dir())
        reason += f" ({folder} belongs to uid {folder.stat().st_uid}, and this is uid {os.getuid()})"
        remedy += '; in a container: a volume without --user, or a folder of your own with --user "$(id -u):$(id -g)"'
    elif error.errno == errno.EROFS:
        remedy += "; in a container: mount one, as in docker run -v kd-models:/app/models"
    return ArtifactError(f"cannot write {path}: {reason}", remedy)


def _replace(temporary: Path, path: Path) -> None:
    """Rename; on Windows with patience, because a program that has the file open (a scanner) must close it first."""
    for _ in range(PATIENCE if IS_WINDOWS else 0):
        try:
            temporary.replace(path)
        except PermissionError:
            time.sleep(PAUSE_S)
        else:
            return
    temporary.replace(path)


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
