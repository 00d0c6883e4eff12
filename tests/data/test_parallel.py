"""Blocks of work from several threads: in order, few ahead of the reader, and stopped when the reader stops."""

import threading
import time

import pytest

from toolkit.data import parallel
from toolkit.data.parallel import (
    BLOCK_BYTES,
    BLOCK_IMAGES,
    DECODING_BYTES,
    WAITING_BYTES,
    DecodingMemory,
    run_in_blocks,
)


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


@pytest.mark.parametrize(
    ("result_bytes", "block", "most"),
    [
        (BLOCK_BYTES // 4, 4, 4 * 9),
        (WAITING_BYTES // 4, 1, 4 + 1),
        (WAITING_BYTES, 1, 1 + 1),
        (WAITING_BYTES + 1, 1, 1),
    ],
)
def test_fewer_large_results_wait(result_bytes: int, block: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "memory_bytes", lambda: 2**30)
    lock, made, found_most, taken = threading.Lock(), 0, 0, 0

    def work(_: int) -> None:
        nonlocal made, found_most
        with lock:
            made += 1
            found_most = max(found_most, made - taken)

    for results in run_in_blocks(work, 60, 4, result_bytes):
        assert len(results) == block
        time.sleep(0.002)
        taken += len(results)
    assert made == 60
    assert found_most <= most + block, "those that wait, and those that are just taken"


def test_more_large_results_wait_in_a_large_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "memory_bytes", lambda: 64 * WAITING_BYTES)
    fourth = threading.Event()

    def work(i: int) -> bool:
        if i == 4:
            fourth.set()
        return i > 0 or fourth.wait(60)

    assert all(done for block in run_in_blocks(work, 60, 2, WAITING_BYTES) for done in block)


@pytest.mark.parametrize("of_machine", [0, 2**40])
def test_pictures_share_the_memory_for_decoding(of_machine: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is larger than all of it waits until it is alone; nobody waits for ever. A large machine has no more."""
    monkeypatch.setattr(parallel, "memory_bytes", lambda: of_machine)
    memory = DecodingMemory()
    assert DECODING_BYTES <= 1_000_000_000
    lock, taken, most = threading.Lock(), 0, 0
    shares = [100_000_000, 600_000_000, 400_000_000, 2_000_000_000, 900_000_000] * 8

    def decode(share: int) -> None:
        nonlocal taken, most
        with memory.take(share):
            with lock:
                taken += share
                most = max(most, taken if taken != 2_000_000_000 else 0)
            time.sleep(0.001)
            with lock:
                taken -= share

    threads = [threading.Thread(target=decode, args=(share,)) for share in shares]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert taken == 0
    assert 100_000_000 < most <= max(DECODING_BYTES, max(share for share in shares if share < 2_000_000_000))
    assert memory.busy_bytes == 0


def test_the_most_that_was_taken_at_once_is_known_until_nobody_decodes() -> None:
    memory = DecodingMemory()
    with memory.take(100):
        with memory.take(200):
            pass
        assert memory.busy_bytes == 300
    with memory.take(50):
        assert memory.busy_bytes == 50


def test_whoever_takes_all_is_alone() -> None:
    memory, began, events = DecodingMemory(), threading.Event(), list[str]()

    def decode() -> None:
        began.set()
        with memory.take(1):
            events.append("another")

    thread = threading.Thread(target=decode)
    with memory.take_all():
        thread.start()
        began.wait(60)
        time.sleep(0.02)
        events.append("alone")
        assert memory.busy_bytes == 0
    thread.join()
    assert events == ["alone", "another"]


def test_the_memory_of_a_picture_that_fails_is_free_again() -> None:
    memory = DecodingMemory()
    for _ in range(3):
        with pytest.raises(ValueError, match="broken"), memory.take(10**15):
            raise ValueError("broken")


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
