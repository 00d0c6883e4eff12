"""Room on the cache's disk: a map of decoded pixels that would fill it is refused before it is written.

There are two bounds. The disk keeps a reserve free: 1 GiB, or 5 % of the disk if that is less. Maps of up to 64 MiB may
take all free space, so that a small set still works on a nearly full disk. The map and the files beside it stay within
the user's limit (cache.LIMIT_VARIABLE), if there is one.
"""

import contextlib
import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from toolkit import console
from toolkit.data.cache import LIMIT_VARIABLE, cache_limit_bytes
from toolkit.errors import DataError

RESERVE_BYTES = 2**30
"""Free space that stays for everyone else, ..."""
RESERVE_SHARE = 0.05
"""... but no more than this share of the disk."""

SMALL_BYTES = 64 * 2**20
"""Maps up to this size need no reserve; also the bytes that are written between two checks of the free space."""

ANNOUNCED_BYTES = 1_000_000_000
"""From this size on, a line announces the size and the place of the map."""

LEFTOVER_AGE_S = 24 * 60 * 60.0
"""s; a hidden temporary file that nobody wrote to for this long belonged to a dead process."""


@dataclass
class Room:
    """The room for one map in `folder`. `what` names its images; `needed_bytes` is an estimate of the whole map.

    `resize` is data.resize, for the advice. Raises DataError for a limit that cannot be used.
    """

    folder: Path
    what: str
    needed_bytes: int
    resize: int
    _taken_bytes: int = field(init=False)
    _limit_bytes: int | None = field(init=False)
    _next_look_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        self._limit_bytes = cache_limit_bytes()
        self._taken_bytes = 0 if self._limit_bytes is None else _folder_bytes(self.folder)
        self._next_look_bytes = SMALL_BYTES

    def require(self) -> None:
        """Before writing: DataError unless the whole map fits; a large one is announced on stderr."""
        self._require_limit(self.needed_bytes)
        if (disk := _disk_bytes(self.folder)) is not None:
            total, free = disk
            reserve = reserve_bytes(self.needed_bytes, total)
            if free < self.needed_bytes + reserve:
                raise self._too_large(f"the disk of {self.folder} has {_size(free)} free{_but(reserve)}")
        if self.needed_bytes > ANNOUNCED_BYTES:
            console.say(f"decoding {self.what} takes about {_size(self.needed_bytes)} in {self.folder}")

    def watch(self, written_bytes: int) -> None:
        """While writing, `written_bytes` so far: DataError if it meets the bounds in spite of the estimate."""
        self.needed_bytes = max(self.needed_bytes, written_bytes)
        self._require_limit(written_bytes)
        if written_bytes < self._next_look_bytes:
            return
        self._next_look_bytes = written_bytes + SMALL_BYTES
        if (disk := _disk_bytes(self.folder)) is None:
            return
        total, free = disk
        if free < reserve_bytes(self.needed_bytes, total):
            raise self._too_large(
                f"after {_size(written_bytes)} the disk of {self.folder} has only {_size(free)} left;"
                " decoding stopped and removed its file"
            )

    def _require_limit(self, size_bytes: int) -> None:
        if self._limit_bytes is not None and self._taken_bytes + size_bytes > self._limit_bytes:
            raise self._too_large(
                f"{self.folder} already holds {_size(self._taken_bytes)} of at most {_size(self._limit_bytes)}",
                f"raise {LIMIT_VARIABLE} (now {self._limit_bytes / 2**30:g}), ",
            )

    def _too_large(self, reason: str, first_remedy: str = "") -> DataError:
        size = "set data.resize (0 now: all pixels are kept)" if self.resize == 0 else "lower data.resize"
        now = f" (now {self.resize})" if self.resize else ""
        return DataError(
            f"{self.what} need about {_size(self.needed_bytes)} decoded, but {reason}",
            f"{first_remedy}{size}{now}, set KD_TOOLKIT_CACHE to a folder with more room, or delete old files in"
            f" {self.folder}",
        )


def reserve_bytes(size_bytes: int, disk_total_bytes: int) -> int:
    """Bytes that a map of `size_bytes` leaves free on a disk of `disk_total_bytes`."""
    return 0 if size_bytes <= SMALL_BYTES else min(RESERVE_BYTES, int(disk_total_bytes * RESERVE_SHARE))


def remove_leftovers(folder: Path, suffixes: tuple[str, ...]) -> None:
    """Delete leftovers of killed processes: hidden files with these suffixes that are older than LEFTOVER_AGE_S."""
    oldest_s = time.time() - LEFTOVER_AGE_S
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") and entry.name.endswith(suffixes):
                with contextlib.suppress(OSError):  # another process may be first
                    if entry.stat(follow_symlinks=False).st_mtime < oldest_s:
                        Path(entry).unlink()


def _folder_bytes(folder: Path) -> int:
    """Sizes of all files directly in `folder`; 0 if it does not exist."""
    total = 0
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                total += entry.stat(follow_symlinks=False).st_size if entry.is_file(follow_symlinks=False) else 0
    return total


def _disk_bytes(folder: Path) -> tuple[int, int] | None:
    """(size, free space) of the disk that `folder` is or will be on; None if the system does not say."""
    with contextlib.suppress(OSError):
        place = next(place for place in (folder, *folder.parents) if place.exists())
        usage = shutil.disk_usage(place)
        return (usage.total, usage.free) if usage.total else None  # some network file systems answer 0
    return None


def _but(reserve: int) -> str:
    return f" and keeps {_size(reserve)} in reserve" if reserve else ""


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1_000_000_000 else console.size(size_bytes)
