"""Every file's SHA-256, remembered in the cache, so that a set of many GB is read in full only once.

A remembered hash holds while the file's size, inode, mtime and ctime (both in ns) stay the same. No program can set
ctime, so a change that keeps the size and restores mtime is noticed too. (On Windows ctime is the time of creation, and
such a change is not noticed.) The memo of a root is one file in the cache: a SHA-256 of all that follows, then for each
image file 32 bytes of its state (name, size, inode and times, hashed) and the 32 bytes of its SHA-256.
"""

import contextlib
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.console import progress
from toolkit.data.cache import cache_folder
from toolkit.data.parallel import run_in_blocks
from toolkit.errors import ToolkitError
from toolkit.files import sha256_file, write_atomically
from toolkit.machine.limits import available_cores

MEMO_VERSION = 1
"""Part of every state; it rises whenever the meaning of a memo changes."""

MEMO_FROM_BYTES = 64_000_000
"""Roots with fewer bytes in total are not remembered: 5,000 photographs of 56 MB are hashed in 0.2 s."""

UNSETTLED_NS = 2_000_000_000
"""ns; a file changed within this time (or in the future) may change again at the same times: not remembered."""

UNREADABLE_FILE = b"unreadable"
"""Stands for the hash of a file that cannot be read; decoding names it and leaves it out."""

WAITING_THREADS = 4
"""Threads beyond the cores this process may use: some wait for the disk."""

DIGEST_BYTES = 32


@dataclass(frozen=True)
class _FileHash:
    """One file's hash. `state` is the key in the memo, None if it must not be kept; `is_new`: it was read now."""

    digest: bytes
    size_bytes: int = 0
    state: bytes | None = None
    is_new: bool = True


def hash_files(root: Path, names: Sequence[str]) -> list[bytes]:
    """SHA-256 (32 bytes) of each file root/name, or UNREADABLE_FILE; only files that changed are read."""
    memo = _memo_path(root)
    known = {} if memo is None else _read_memo(memo)
    hashed: list[_FileHash] = []
    with progress("hash", len(names)) as advance:
        blocks = run_in_blocks(
            lambda i: _hash_file(root, names[i], known), len(names), available_cores() + WAITING_THREADS
        )
        for block in blocks:
            hashed += block
            advance(len(block))
    learnt = any(file.is_new and file.state is not None for file in hashed)
    if memo is not None and learnt and sum(file.size_bytes for file in hashed) >= MEMO_FROM_BYTES:
        _write_memo(memo, {file.state: file.digest for file in hashed if file.state is not None})
    return [file.digest for file in hashed]


def _hash_file(root: Path, name: str, known: dict[bytes, bytes]) -> _FileHash:
    try:
        now_ns = time.time_ns()
        stat = (root / name).stat()  # before reading, so that a change during reading alters the state
        times = f"{stat.st_size} {stat.st_ino} {stat.st_mtime_ns} {stat.st_ctime_ns}"
        state = hashlib.sha256(f"{MEMO_VERSION}\0{name}\0{times}".encode(errors="surrogateescape")).digest()
        if (digest := known.get(state)) is not None:
            return _FileHash(digest, stat.st_size, state, is_new=False)
        settled = now_ns - max(stat.st_mtime_ns, stat.st_ctime_ns) >= UNSETTLED_NS
        return _FileHash(bytes.fromhex(sha256_file(root / name)), stat.st_size, state if settled else None)
    except OSError:
        return _FileHash(UNREADABLE_FILE)


def _memo_path(root: Path) -> Path | None:
    """The memo of the hashes of `root`; None if there can be no cache."""
    try:
        name = hashlib.sha256(str(root.resolve()).encode(errors="surrogateescape")).hexdigest()[:32]
        return cache_folder("hashes", f"{name}.bin")
    except (ToolkitError, OSError):
        return None


def _read_memo(path: Path) -> dict[bytes, bytes]:
    """State → SHA-256; empty if there is no memo, or a damaged one, which the next write replaces."""
    try:
        content = path.read_bytes()
    except OSError:
        return {}
    checksum, entries = content[:DIGEST_BYTES], memoryview(content)[DIGEST_BYTES:]
    if hashlib.sha256(entries).digest() != checksum or len(entries) % (2 * DIGEST_BYTES):
        return {}
    return {
        bytes(entries[at : at + DIGEST_BYTES]): bytes(entries[at + DIGEST_BYTES : at + 2 * DIGEST_BYTES])
        for at in range(0, len(entries), 2 * DIGEST_BYTES)
    }


def _write_memo(path: Path, digest_of: dict[bytes, bytes]) -> None:
    """Two processes may do it at once: each writes a whole memo, the later one stays. No error if it cannot."""
    entries = b"".join(state + digest for state, digest in digest_of.items())
    with contextlib.suppress(ToolkitError, OSError), write_atomically(path) as temporary:
        temporary.write_bytes(hashlib.sha256(entries).digest() + entries)
