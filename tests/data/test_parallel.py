"""Blocks of work from several threads: in order, few ahead of the reader, and stopped when the reader stops."""

import threading
import time

import pytest

from toolkit.data.parallel import BLOCK_IMAGES, run_in_blocks


@pytest.mark.parametrize("count", [0, 1, BLOCK_IMAGES, 10 * BLOCK_IMAGES + 1])
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_results_come_in_order_and_whole(count: int, workers: int) -> None:
    blocks = list(run_in_blocks(lambda i: i * i, count, workers))
    assert [result for block in blocks for result in block] == [i * i for i in range(count)]
    assert all(len(block) == BLOCK_IMAGES for block in blocks[:-1])


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_few_results_wait_for_a_slow_reader(workers: int) -> None:
    """Memory is bounded by blocks in flight, not by the number of images."""
    lock, made, most = threading.Lock(), 0, 0

    def work(_: int) -> None:
        nonlocal made
        with lock:
            made += 1

    taken = 0
    for block in run_in_blocks(work, 40 * BLOCK_IMAGES, workers):
        time.sleep(0.002)
        most = max(most, made - taken)
        taken += len(block)
    assert made == 40 * BLOCK_IMAGES
    assert most <= (2 * workers + 1) * BLOCK_IMAGES


def test_a_reader_that_stops_stops_the_work() -> None:
    made: list[int] = []
    blocks = run_in_blocks(made.append, 100 * BLOCK_IMAGES, 2)
    next(blocks)
    blocks.close()
    after = len(made)
    assert after < 10 * BLOCK_IMAGES
    time.sleep(0.02)
    assert len(made) == after


def test_an_error_in_the_work_is_the_reader_s() -> None:
    def work(i: int) -> int:
        if i == 40:
            raise ZeroDivisionError
        return i

    blocks = run_in_blocks(work, 1000, 2)
    assert len(next(blocks)) == BLOCK_IMAGES
    with pytest.raises(ZeroDivisionError):
        next(blocks)
