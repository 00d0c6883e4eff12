"""Work on many images from several threads; Pillow decodes outside Python's lock."""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from toolkit.machine.limits import available_cores, memory_bytes

Result = TypeVar("Result")

BLOCK_IMAGES = 32
"""Images that a thread works on in one go, ..."""
BLOCK_BYTES = 16 * 2**20
"""... unless their results are larger than this."""
WAITING_BYTES = 256 * 2**20
"""Results that wait for the reader, or a sixteenth of the memory if that is more; a single one may be larger."""
DECODING_BYTES = 900_000_000
"""What decoding takes in all threads together. Threads that find no room wait."""


def run_in_blocks(
    work: Callable[[int], Result], count: int, workers: int = 0, result_bytes: int = 0
) -> Iterator[list[Result]]:
    """[work(0), work(1), ...] and so on to count − 1, in order and only a few blocks ahead of the reader.

    `workers` threads; 0: the cores that this process may use. `result_bytes`: how large a result is; large ones make
    small blocks, of which fewer wait.
    """
    workers = workers or available_cores()
    block_images = max(1, min(BLOCK_IMAGES, BLOCK_BYTES // max(1, result_bytes)))
    waiting_bytes = max(WAITING_BYTES, memory_bytes() // 16)
    ahead = min(2 * workers, waiting_bytes // max(1, block_images * result_bytes))

    def run_block(first: int) -> list[Result]:
        return [work(i) for i in range(first, min(first + block_images, count))]

    waiting: deque[Future[list[Result]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for first in range(0, count, block_images):
                waiting.append(pool.submit(run_block, first))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class DecodingMemory:
    """Memory that threads share: a large picture waits until others are done.

    `busy_bytes` is the most that was taken at once since nothing was.
    """

    def __init__(self) -> None:
        self.busy_bytes = 0
        self._taken_bytes = 0
        self._change = threading.Condition()

    @contextlib.contextmanager
    def take(self, size_bytes: int) -> Iterator[None]:
        """Wait until so many bytes are free, and keep them; a single picture may take more than there are."""
        with self._change:
            self._change.wait_for(lambda: self._taken_bytes == 0 or self._taken_bytes + size_bytes <= DECODING_BYTES)
            self._taken_bytes += size_bytes
            self.busy_bytes = max(self.busy_bytes, self._taken_bytes)
        try:
            yield
        finally:
            with self._change:
                self._taken_bytes -= size_bytes
                if self._taken_bytes == 0:
                    self.busy_bytes = 0
                self._change.notify_all()

    @contextlib.contextmanager
    def take_all(self) -> Iterator[None]:
        """Wait until nobody decodes, and let nobody else begin."""
        with self.take(DECODING_BYTES):
            self.busy_bytes = 0
            yield


DECODING = DecodingMemory()
"""For all pictures of this process."""
