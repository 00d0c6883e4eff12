"""An attempt to read a picture while other threads read others: in the memory that they share, and once more alone."""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeVar

from PIL import Image

from toolkit.data.parallel import DECODING
from toolkit.data.preprocess import NO_MEMORY, UNREADABLE, why_unreadable, working_bytes
from toolkit.machine.limits import give_back_freed_memory

Result = TypeVar("Result")

LARGE_BYTES = 64 * 2**20
"""What a picture took has gone back to the system before the next one begins, if it was so much."""


def attempt(read: Callable[[], Image.Image], work: Callable[[Image.Image], Result]) -> Result | str:
    """What `work` makes of the picture that `read` opens, or why it cannot be read.

    A picture that finds too little memory is tried once more when no other is being decoded.
    """
    result = _try(read, work, DECODING.take)
    if not isinstance(result, str) or result != NO_MEMORY:
        return result
    with DECODING.take_all():
        return _try(read, work, lambda _: contextlib.nullcontext())


def _try(
    read: Callable[[], Image.Image],
    work: Callable[[Image.Image], Result],
    take: Callable[[int], AbstractContextManager[None]],
) -> Result | str:
    try:
        opened = [read()]
        needed_bytes = working_bytes(opened[0])
    except UNREADABLE as error:
        return why_unreadable(error)
    with take(needed_bytes):
        result = _work_on(opened.pop(), work)
        if needed_bytes >= LARGE_BYTES:
            give_back_freed_memory()
        return result


def _work_on(image: Image.Image, work: Callable[[Image.Image], Result]) -> Result | str:
    """The picture ends with this call, whose argument is the only reference to it."""
    try:
        return work(image)
    except UNREADABLE as error:
        return why_unreadable(error)
