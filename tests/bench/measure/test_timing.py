"""Timing against predictors whose speed is known, on a clock that only they move."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from toolkit.bench.measure import timing
from toolkit.bench.measure.timing import Budget, Timing, count_turns, describe_latency, percentiles, time_rows
from toolkit.bench.schema import Latency
from toolkit.data.preprocess import Preprocess
from toolkit.runtimes.io_binding import IoBindingPredictor

IMAGES = np.arange(7 * 2 * 2 * 3, dtype=np.uint8).reshape(7, 2, 2, 3)


def time_alike(predictors: Sequence[Any], *arguments: Any, **options: Any) -> list[Timing]:
    """time_rows of the same images for all."""
    return time_rows(predictors, [IMAGES] * len(predictors), *arguments, **options)


class FakeClock:
    """ns, moved by predictors alone."""

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns


class FakePredictor:
    """Takes `cost_ms(run, batch size)` ms on a clock, and remembers who was asked what, when."""

    classes = ("a", "b")
    preprocess = Preprocess(image_size=2, resize=0, mean=(0, 0, 0), std=(1, 1, 1))
    runtime = "fake"
    provider = "none"
    threads = 1

    def __init__(self, name: str, clock: FakeClock, cost_ms: Callable[[int, int], float], log: list[str]) -> None:
        self.name, self.clock, self.cost_ms, self.log = name, clock, cost_ms, log
        self.seen: list[NDArray[np.uint8]] = []

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.clock.now_ns += round(self.cost_ms(len(self.seen), len(images)) * 1e6)
        self.seen.append(images)
        self.log.append(self.name)
        return np.zeros((len(images), 2), np.float32)


def always(ms: float, n: int) -> Latency:
    """Of `n` runs that all took the same."""
    return Latency(p50=ms, p95=ms, p99=ms, mean=ms, std=0.0, n=n, round_p50_min=ms, round_p50_max=ms)


class OnGpu(IoBindingPredictor):
    """Takes 5 ms to copy a batch to the GPU, and 2 ms to compute it."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.sent: list[NDArray[np.uint8]] = []

    def send(self, images: NDArray[np.uint8]) -> Any:
        self.clock.now_ns += 5_000_000
        self.sent.append(images)
        return len(images)

    def run(self, batch: Any) -> None:
        assert batch == len(self.sent[-1])
        self.clock.now_ns += 2_000_000


def test_of_i_o_binding_the_computation_alone_is_timed() -> None:
    clock = FakeClock()
    (timed,) = time_alike([OnGpu(clock)], (1, 4), Budget(100, 60, min_seconds=0, clock=clock))
    assert timed.latency_ms.p50 == 2.0
    assert timed.throughput_img_s == {"1": 500.0, "4": 2000.0}


def test_latency_and_throughput_are_what_the_predictor_takes() -> None:
    clock, log = FakeClock(), []
    fast = FakePredictor("fast", clock, lambda run, size: 1.0 + size, log)
    slow = FakePredictor("slow", clock, lambda run, size: 10.0 * size, log)
    quick, tardy = time_alike([fast, slow], (1, 32), Budget(100, 60, min_seconds=0, clock=clock))
    assert quick.latency_ms == always(2.0, n=100)
    assert tardy.latency_ms == always(10.0, n=100)
    assert quick.throughput_img_s == pytest.approx({"1": 1000 / 2, "32": 32_000 / 33})
    assert tardy.throughput_img_s == pytest.approx({"1": 100.0, "32": 100.0})


def test_slow_first_runs_are_warm_up_and_do_not_count() -> None:
    clock = FakeClock()
    slow_start = FakePredictor("a", clock, lambda run, size: max(1.0, 500 / 2**run), [])
    (timed,) = time_alike([slow_start], (1,), Budget(100, 60, min_seconds=0, clock=clock))
    assert timed.latency_ms.p99 == 1.0


def test_a_first_run_that_compiles_does_not_use_up_the_warm_up() -> None:
    clock = FakeClock()
    compiled = FakePredictor("a", clock, lambda run, size: 60_000.0 if run == 0 else max(1.0, 40.0 - run), [])
    (timed,) = time_alike([compiled], (1,), Budget(100, 60, min_seconds=0, clock=clock))
    assert timed.latency_ms.p99 == 1.0


def test_warm_up_ends_for_a_predictor_that_never_settles() -> None:
    clock, rng = FakeClock(), np.random.default_rng(0)
    restless = FakePredictor("a", clock, lambda run, size: float(rng.uniform(1, 30)), [])
    (timed,) = time_alike([restless], (1,), Budget(100, 60, min_seconds=0, clock=clock))
    assert timed.latency_ms.n == 100
    assert len(restless.seen) < 100 + timing.WARM_UP_RUNS + 10 * timing.ROUNDS


def test_rows_take_turns_so_that_drift_hits_all_alike() -> None:
    clock, log = FakeClock(), []

    def drifting(run: int, size: int) -> float:
        return 1.0 + clock.now_ns / 1e9  # the machine gets slower by the second

    rows = [FakePredictor(name, clock, drifting, log) for name in "abc"]
    timed = time_alike(rows, (1,), Budget(200, 60, min_seconds=0, clock=clock))
    medians = [row.latency_ms.p50 for row in timed]
    assert max(medians) / min(medians) < 1.05
    warm_up, turns = "abc", "cba".join(["abc"] * (timing.ROUNDS // 2)) + "cba"
    squeezed = "".join(name for name, before in zip(log, [None, *log], strict=False) if name != before)
    assert squeezed == warm_up + turns.replace("aa", "a").replace("cc", "c")


def test_the_spread_of_the_rounds_is_reported() -> None:
    clock = FakeClock()
    drifting = FakePredictor("a", clock, lambda run, size: 1.0 + clock.now_ns / 1e9, [])
    (timed,) = time_alike([drifting], (1,), Budget(600, 60, min_seconds=0, clock=clock))
    latency = timed.latency_ms
    assert latency.round_p50_min < latency.p50 < latency.round_p50_max
    # the clock's ms grow by a factor e in a second: 1 → 1 + s; six rounds of 100 runs each
    assert latency.round_p50_max / latency.round_p50_min == pytest.approx(np.exp(0.001 * 100 * 5), rel=0.05)
    steady = FakePredictor("a", clock, lambda run, size: 3.0, [])
    (timed,) = time_alike([steady], (1,), Budget(100, 60, min_seconds=0, clock=clock))
    assert timed.latency_ms.round_p50_min == timed.latency_ms.round_p50_max == 3.0


def test_every_turn_starts_with_untimed_runs() -> None:
    clock, log = FakeClock(), []

    def cold_after_another(run: int, size: int) -> float:
        return 1.0 if log and log[-1] == "a" else 8.0

    a = FakePredictor("a", clock, cold_after_another, log)
    b = FakePredictor("b", clock, lambda run, size: 1.0, log)
    timed, _ = time_alike([a, b], (1,), Budget(100, 60, min_seconds=0, clock=clock))
    assert timed.latency_ms.p99 == 1.0


class FakeProcess:
    """Stands for the time module: every sleep passes, and threads of this process compute in the first `busy` ones."""

    def __init__(self, busy: float) -> None:
        self.busy, self.sleeps, self.slept_s, self.worked_s = busy, 0, 0.0, 0.0

    def process_time(self) -> float:
        return self.worked_s

    def sleep(self, seconds: float) -> None:
        self.slept_s += seconds
        if self.sleeps < self.busy:
            self.worked_s += seconds
        self.sleeps += 1


@pytest.mark.parametrize("busy", [0, 1, 10])
def test_a_turn_waits_for_the_threads_of_the_row_before(monkeypatch: pytest.MonkeyPatch, busy: int) -> None:
    process = FakeProcess(busy)
    monkeypatch.setattr(timing, "time", process)
    timing._wait_until_quiet()
    assert process.sleeps == busy + 1


def test_a_process_that_is_never_quiet_is_timed_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    process = FakeProcess(busy=float("inf"))
    monkeypatch.setattr(timing, "time", process)
    timing._wait_until_quiet()
    assert process.slept_s == pytest.approx(timing.QUIET_LIMIT_S)


def test_threads_that_compute_count_as_this_process() -> None:
    """The same without the fake process, on the real clock."""
    before = time.process_time()

    def compute() -> None:
        end = time.thread_time() + 0.02
        while time.thread_time() < end:
            pass

    worker = threading.Thread(target=compute)
    worker.start()
    worker.join()
    assert time.process_time() - before >= 0.02


def test_the_time_limit_ends_a_slow_row_and_only_that_one() -> None:
    clock = FakeClock()
    slow = FakePredictor("slow", clock, lambda run, size: 400.0, [])
    fast = FakePredictor("fast", clock, lambda run, size: 1.0, [])
    tardy, quick = time_alike([slow, fast], (1,), Budget(1000, 4, min_seconds=0, clock=clock))
    assert 1 <= tardy.latency_ms.n <= 10
    assert len(slow.seen) * 0.4 < 4 * 1.3
    assert quick.latency_ms.n == 1000


def test_a_row_slower_than_the_limit_is_still_timed_once() -> None:
    clock = FakeClock()
    glacial = FakePredictor("a", clock, lambda run, size: 90_000.0, [])
    (timed,) = time_alike([glacial], (1,), Budget(100, 1, clock=clock))
    assert timed.latency_ms.n == 1
    assert timed.latency_ms.p50 == 90_000.0
    assert timed.throughput_img_s == pytest.approx({"1": 1 / 90})


def test_a_fast_row_runs_for_the_least_time() -> None:
    clock = FakeClock()
    fast = FakePredictor("a", clock, lambda run, size: 0.1, [])
    (timed,) = time_alike([fast], (1,), Budget(100, 60, min_seconds=0.5, clock=clock))
    assert timed.latency_ms.n == pytest.approx(5000, rel=0.01)


def test_batches_walk_through_the_images_and_wrap_around() -> None:
    clock = FakeClock()
    predictor = FakePredictor("a", clock, lambda run, size: 1.0, [])
    time_alike([predictor], (3, 16), Budget(10, 60, min_seconds=0, clock=clock))
    by_size: dict[int, list[NDArray[np.uint8]]] = {}
    for batch in predictor.seen:
        assert batch.flags.c_contiguous
        by_size.setdefault(len(batch), []).append(batch)
    assert sorted(by_size) == [1, 3, 16]
    np.testing.assert_array_equal(np.concatenate(by_size[3][:3]), IMAGES[[0, 1, 2, 3, 4, 5, 6, 0, 1]])
    np.testing.assert_array_equal(by_size[16][0], IMAGES[np.arange(16) % 7])


def test_progress_is_reported_every_turn() -> None:
    clock = FakeClock()
    rows = [FakePredictor(name, clock, lambda run, size: 50.0, []) for name in "ab"]
    steps: list[int] = []
    time_alike(rows, (1, 8), Budget(100, 1, clock=clock), advance=steps.append)
    assert sum(steps) == count_turns(2, (1, 8)) == count_turns(2, (8,))


def test_percentiles_against_numpy_and_by_hand() -> None:
    latency = describe_latency([[5_000_000, 1_000_000], [2_000_000], [3_000_000, 4_000_000]])
    assert (latency.p50, latency.mean, latency.n) == (3.0, 3.0, 5)
    assert latency.p95 == pytest.approx(4.8)  # 1 + 0.95 · 4 steps of 1 ms
    assert latency.p99 == pytest.approx(4.96)
    assert latency.std == pytest.approx(2**0.5)
    assert (latency.round_p50_min, latency.round_p50_max) == (2.0, 3.5)


def test_the_real_clock_is_in_nanoseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SETTLE_MS", 0.0)

    took_s: list[float] = []

    class Sleeper(FakePredictor):
        def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
            start = time.perf_counter()
            time.sleep(0.002)
            took_s.append(time.perf_counter() - start)
            return np.zeros((len(images), 2), np.float32)

    (timed,) = time_alike([Sleeper("a", FakeClock(), lambda run, size: 0, [])], (1,), Budget(20, 5, min_seconds=0))
    assert 2.0 <= 1e3 * min(took_s) <= timed.latency_ms.p50 < 100 * 1e3 * max(took_s)


def test_percentiles_interpolate_linearly() -> None:
    assert percentiles(np.array([1.0, 2.0, 3.0, 4.0]), 0, 50, 95, 100) == pytest.approx((1.0, 2.5, 3.85, 4.0))
    assert percentiles(np.array([7.0]), 50, 99) == (7.0, 7.0)
