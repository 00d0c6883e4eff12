"""Output for people: results on stdout, progress and remarks on stderr; bars on a terminal, plain lines in a log."""

import contextlib
import re
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

out = Console(highlight=False, soft_wrap=True, emoji=False)
err = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
"""A name may hold `:cat:`, which rich would turn into a picture of a cat."""

_INVISIBLE = re.compile("[\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]")
"""Marks that turn the direction of text round, and characters without width. The joiners that Persian, Indian scripts
and pictograms need (U+200C, U+200D) are not among them."""

LOG_INTERVAL_S = 10.0
"""s between two plain progress lines if stderr is not a terminal."""


def say(text: str) -> None:
    """Print a remark on stderr as it is (no markup)."""
    err.print(text, markup=False)


@contextlib.contextmanager
def progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show the progress of `total` steps and the time left; yields advance(steps).

    >>> with progress("decode", 3) as advance:
    ...     advance(1)
    """
    if err.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=err, transient=True) as bar:
            task = bar.add_task(description, total=total)
            yield lambda steps: bar.advance(task, steps)
        return
    start = last = time.monotonic()
    done = 0

    def advance(steps: int) -> None:
        nonlocal done, last
        done += steps
        now = time.monotonic()
        if now - last >= LOG_INTERVAL_S and 0 < done < total:
            last = now
            say(f"{description}: {done} of {total}, {duration((now - start) * (total - done) / done)} left")

    yield advance


def duration(seconds: float) -> str:
    """`7.4 s`, `3 min 20 s` or `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def count(number: int, what: str) -> str:
    """`1 core` or `16 cores`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def name_some(names: Sequence[str], most: int = 4) -> str:
    """`a, b, c` or `a, b, c, d and 5 more`."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def printable(text: str) -> str:
    """`text` as every terminal and file takes it: bytes that are not UTF-8, line breaks and the like as escapes.

    So are characters that nobody sees: two names that look alike, or a line that reads backwards, would mislead.
    """
    valid = text.encode(errors="surrogateescape").decode(errors="backslashreplace")
    return "".join(
        char.encode("unicode_escape").decode()
        if unicodedata.category(char) in ("Cc", "Zl", "Zp") or _INVISIBLE.match(char)
        else char
        for char in valid
    )


def size(size_bytes: int) -> str:
    """`812 B`, `1.1 MB` or `44.8 MB` (decimal units)."""
    if size_bytes < 1000:
        return f"{size_bytes} B"
    return f"{size_bytes / 1e3:.1f} kB" if size_bytes < 1_000_000 else f"{size_bytes / 1e6:.1f} MB"
