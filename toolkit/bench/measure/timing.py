"""Speed of predictors: latency of one image, throughput of batches. Preprocessing is not included.

What is timed is `Predictor.logits` on images already decoded, resized and cropped: uint8 pixels in, float32 logits
out, the copy to a device and back included. A predictor returns numpy, so an accelerator has finished when the clock
stops.

The method, for each batch size:

1. Warm-up. Each row runs until it is stable: the median of its last WINDOW runs is within TOLERANCE of the median of
   the WINDOW runs before. It stops after WARM_UP_RUNS or a tenth of the time limit. Its first run does not count.
2. Rounds. The rows take turns, ROUNDS times, in every other round in reverse order. So a machine that slows down or
   heats up does so for all rows alike. At its turn a row waits until the process is quiet: the threads of the row
   before go on spinning for a while (onnxruntime's for some 50 ms) and would take a core away. Then it runs untimed for
   SETTLE_MS, which brings its weights back into the caches, and then it takes its share of the samples.
3. A row is done when it has its samples and MIN_SECONDS of timed runs, or when it has used up its time limit.

end_to_end.py times whole answers, from a file's bytes on, by the same method.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.bench.schema import Latency
from toolkit.runtimes.base import Predictor
from toolkit.runtimes.io_binding import IoBindingPredictor

WINDOW = 5
"""runs"""
TOLERANCE = 0.05
"""fraction of the median"""
WARM_UP_RUNS = 50
ROUNDS = 6
SETTLE_MS = 5.0
QUIET_STEP_S = 0.01
QUIET_LIMIT_S = 0.3
MIN_SECONDS = 0.3
"""s of timed runs; a fast row gets more samples than were requested, so that its tail means something"""

Clock = Callable[[], int]
"""ns, monotonic"""
Rounds = list[list[int]]
"""ns that each run of a round took, one list per round; fewer than ROUNDS if the time limit came first"""


def percentiles(durations_ms: NDArray[np.float64], *percents: int) -> tuple[float, ...]:
    """Percentiles (0 to 100) of durations (n,), n ≥ 1; between two durations they are interpolated linearly."""
    return tuple(float(value) for value in np.percentile(durations_ms, percents))


@dataclass(frozen=True)
class Budget:
    """How long a row is timed at one batch size, and by which clock."""

    samples: int
    """timed runs that are wanted"""
    seconds: float
    """s after which a row is done, with fewer samples too"""
    min_seconds: float = MIN_SECONDS
    clock: Clock = time.perf_counter_ns


@dataclass(frozen=True)
class Timing:
    """One row's figures."""

    latency_ms: Latency
    """Latency of batch 1."""
    throughput_img_s: dict[str, float]
    """Batch size, as a string → images per second over all timed runs."""


@dataclass(frozen=True)
class Work:
    """The work that is timed: `prepare(k)` makes the input of run k, untimed, and `run` works on it."""

    prepare: Callable[[int], Any]
    run: Callable[[Any], object]


@dataclass
class _TimedRow:
    """One row at one batch size while it is being timed."""

    work: Work
    clock: Clock
    count: int = 0
    spent_ns: int = 0
    rounds: Rounds = field(default_factory=list)

    def once(self) -> int:
        """Do the work once; ns it took."""
        prepared = self.work.prepare(self.count)
        self.count += 1
        start = self.clock()
        self.work.run(prepared)
        duration = self.clock() - start
        self.spent_ns += duration
        return duration


def time_rows(
    predictors: Sequence[Predictor],
    images: Sequence[NDArray[np.uint8]],
    batch_sizes: Iterable[int],
    budget: Budget,
    advance: Callable[[int], None] = lambda steps: None,
) -> list[Timing]:
    """Time every predictor on its images, (N, S, S, 3) each; one Timing each, in their order.

    Latency is of batch 1, with at least `budget.samples` runs. Throughput is of every one of `batch_sizes`, with at
    least as many images, unless the budget's time limit ends it before. Every row gets one timed run at least.
    `advance` is called with 1 after each turn; there are ROUNDS for each row and batch size.
    """
    results: dict[int, list[Rounds]] = {}
    for batch_size in sorted({1, *batch_sizes}):
        works = [_answer_batches(*pair, batch_size) for pair in zip(predictors, images, strict=True)]
        runs = replace(budget, samples=-(-budget.samples // batch_size))
        results[batch_size] = time_in_turns(works, runs, advance)
    return [
        Timing(
            latency_ms=describe_latency(results[1][row]),
            throughput_img_s={
                str(size): _throughput_img_s(size, results[size][row]) for size in sorted(set(batch_sizes))
            },
        )
        for row in range(len(predictors))
    ]


def count_turns(rows: int, batch_sizes: Iterable[int]) -> int:
    """How often `time_rows` calls advance."""
    return ROUNDS * rows * len({1, *batch_sizes})


def describe_latency(rounds: Rounds) -> Latency:
    durations_ms = np.concatenate(rounds) / 1e6
    p50, p95, p99 = percentiles(durations_ms, 50, 95, 99)
    medians = [float(np.median(durations)) / 1e6 for durations in rounds]
    return Latency(
        p50=p50,
        p95=p95,
        p99=p99,
        mean=float(durations_ms.mean()),
        std=float(durations_ms.std()),
        n=len(durations_ms),
        round_p50_min=min(medians),
        round_p50_max=max(medians),
    )


def time_in_turns(
    works: Sequence[Work], budget: Budget, advance: Callable[[int], None] = lambda steps: None
) -> list[Rounds]:
    """The method above for any work, with at least one timed run each; `advance` is called with 1 after each turn."""
    runs = [_TimedRow(work, budget.clock) for work in works]
    limit_ns = round(budget.seconds * 1e9)
    least_ns = round(min(budget.min_seconds, budget.seconds) * 1e9)
    for run in runs:
        _warm_up(run, limit_ns // 10)
        run.spent_ns = 0
    for turn in range(1, ROUNDS + 1):
        for run in runs if turn % 2 else reversed(runs):
            share = turn / ROUNDS
            _take_turn(run, round(max(ROUNDS, budget.samples) * share), limit_ns * share, least_ns * share)
            advance(1)
    return [run.rounds for run in runs]


def _answer_batches(predictor: Predictor, images: NDArray[np.uint8], batch_size: int) -> Work:
    """Batch after batch of the images; after the last image the first one follows."""

    def take_batch(number: int) -> NDArray[np.uint8]:
        return images[np.arange(number * batch_size, (number + 1) * batch_size) % len(images)]

    if isinstance(predictor, IoBindingPredictor):
        return Work(lambda number: predictor.send(take_batch(number)), predictor.run)
    return Work(take_batch, predictor.logits)


def _throughput_img_s(batch_size: int, rounds: Rounds) -> float:
    durations_ns = [duration for durations in rounds for duration in durations]
    return batch_size * len(durations_ns) * 1e9 / sum(durations_ns)


def _warm_up(run: _TimedRow, limit_ns: int) -> None:
    run.once()
    run.spent_ns = 0  # the first run may compile: it must not use up what warming takes
    durations: list[int] = []
    while not durations or (len(durations) < WARM_UP_RUNS and run.spent_ns < limit_ns):
        durations.append(run.once())
        if len(durations) >= 2 * WINDOW:
            before = float(np.median(durations[-2 * WINDOW : -WINDOW]))
            if abs(float(np.median(durations[-WINDOW:])) - before) <= TOLERANCE * before:
                return


def _wait_until_quiet() -> None:
    """Sleep until no thread of this process computes any more, QUIET_LIMIT_S at most."""
    for _ in range(round(QUIET_LIMIT_S / QUIET_STEP_S)):
        before = time.process_time()
        time.sleep(QUIET_STEP_S)
        if time.process_time() - before < QUIET_STEP_S / 10:
            return


def _take_turn(run: _TimedRow, samples: int, limit_ns: float, least_ns: float) -> None:
    """A round: run until `samples` and `least_ns` are timed in all rounds so far, or `limit_ns` is spent."""
    if run.rounds and run.spent_ns >= limit_ns:
        return
    _wait_until_quiet()
    settled_ns = run.once()
    while settled_ns < SETTLE_MS * 1e6:
        settled_ns += run.once()
    count, timed_ns = sum(map(len, run.rounds)), sum(map(sum, run.rounds))
    durations: list[int] = []
    while count == 0 or (run.spent_ns < limit_ns and (count < samples or timed_ns < least_ns)):
        durations.append(run.once())
        count += 1
        timed_ns += durations[-1]
    if durations:
        run.rounds.append(durations)
