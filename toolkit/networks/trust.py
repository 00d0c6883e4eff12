"""The permission to run the code of other packages as networks: given by --trust or trust=True, never by a file."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

from toolkit import console
from toolkit.errors import RecipeError

_announced: ContextVar[set[str] | None] = ContextVar("_announced", default=None)
"""Networks whose code a line has named; None: no permission."""


def allow(announced: list[str] | None) -> None:
    """Give the permission from here on, if `announced`, the networks that a line has named already, is not None."""
    _announced.set(None if announced is None else set(announced))


@contextlib.contextmanager
def allowing(named: set[str] | None) -> Iterator[None]:
    """With the permission if `named`, which is filled with what a line has named, is not None; afterwards as before."""
    token = _announced.set(named)
    try:
        yield
    finally:
        _announced.reset(token)


def announced() -> list[str] | None:
    """What a process that this one starts has to `allow`: it gets no permission that this one does not have."""
    named = _announced.get()
    return None if named is None else sorted(named)


def require(architecture: str) -> None:
    """RecipeError without the permission. With it, one line on stderr says once which code is about to run."""
    module, _, function = architecture.partition(":")
    named = _announced.get()
    if named is None:
        raise RecipeError(
            f"the network {architecture} would run code of this machine's packages: {function} of {module}",
            "if you trust that code, allow it with --trust (in Python: trust=True)",
        )
    if architecture not in named:
        named.add(architecture)
        console.say(f"trust: the network {architecture} runs the code of {function} in {module}")
