"""An attempt to read a picture while other threads read others: in the memory that they share, and once more alone."""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeVar

from PIL import Image

from toolkit.data.dataset import Images
from toolkit.data.parallel import DECODING
from toolkit.data.preprocess import NO_MEMORY, UNREADABLE, why_unreadable, working_bytes
from toolkit.machine.limits import give_back_freed_memory

Result = TypeVar("Result")
Take = Callable[[int], AbstractContextManager[None]]

LARGE_BYTES = 64 * 2**20
"""What a picture took has gone back to the system before the next one begins, if it was so much."""


def attempt(images: Images, i: int, work: Callable[[Image.Image], Result]) -> Result | str:
    """What `work` makes of image i, or why it cannot be read.

    An image that finds too little memory is tried once more when no other is being decoded.
    """
    result = _try(images, i, work, DECODING.take)
    if not isinstance(result, str) or result != NO_MEMORY:
        return result
    with DECODING.take_all():
        return _try(images, i, work, lambda _: contextlib.nullcontext())


def _try(images: Images, i: int, work: Callable[[Image.Image], Result], take: Take) -> Result | str:
    before_bytes = images.opening_bytes(i)
    if before_bytes >= LARGE_BYTES:
        with take(before_bytes):
            return _read(images, i, work, lambda _: contextlib.nullcontext())
    return _read(images, i, work, take)


def _read(images: Images, i: int, work: Callable[[Image.Image], Result], take: Take) -> Result | str:
    try:
        opened = [images.read(i)]
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
