"""Work on many images from several threads; Pillow decodes outside Python's lock."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from toolkit.machine.limits import available_cores

Result = TypeVar("Result")

BLOCK_IMAGES = 32
"""Images that a thread works on in one go."""


def run_in_blocks(work: Callable[[int], Result], count: int, workers: int = 0) -> Iterator[list[Result]]:
    """[work(0), work(1), ...] and so on to count − 1, in order and only a few blocks ahead of the reader.

    `workers` threads; 0: the cores that this process may use.
    """
    workers = workers or available_cores()

    def run_block(first: int) -> list[Result]:
        return [work(i) for i in range(first, min(first + BLOCK_IMAGES, count))]

    waiting: deque[Future[list[Result]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for first in range(0, count, BLOCK_IMAGES):
                waiting.append(pool.submit(run_block, first))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
