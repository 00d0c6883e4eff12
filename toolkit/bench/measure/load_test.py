"""The load test of an ONNX file: many clients at once share one onnxruntime session. N images, S px their side.

Each client is a thread that asks for one image and waits for the answer before it asks again (a closed loop). So there
are never more requests under way than clients.

The session has as many threads as this process may use cores, and all clients share them. More clients do not get more
computing: the cores only never wait for the next request. Serving beyond one machine is another program's job.
"""

import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit import console
from toolkit.bench.measure.timing import percentiles
from toolkit.machine.limits import available_cores
from toolkit.modeldir import FilePrecision, ModelDir, Role
from toolkit.runtimes.onnxruntime import OnnxPredictor

IMAGES = 64
"""Different images that the clients ask for; their content is noise, which takes as long as any."""

WARM_UP_SHARE = 0.1
"""Share of the seconds, at most one second, whose requests are not counted."""


@dataclass(frozen=True)
class Tail:
    """Milliseconds from a client's request to its answer; percentiles interpolate linearly."""

    p50: float
    p95: float
    p99: float
    max: float


@dataclass(frozen=True)
class LoadResult:
    """The measurements of the load test: `clients` with one session."""

    file: str
    provider: str
    threads: int
    """threads of the session, which all clients share"""
    clients: int
    seconds: float
    """s from the start to the last answer"""
    requests: int
    """requests that were answered; one image each"""
    errors: int
    first_error: str | None
    throughput_img_s: float
    latency_ms: Tail

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def summary(self) -> str:
        """Three lines for people."""
        latency, errors = self.latency_ms, f"; {self.errors:,} failed: {self.first_error}" if self.errors else ""
        return (
            f"{self.file} on {self.provider}: {self.throughput_img_s:,.0f} images per second for "
            f"{console.count(self.clients, 'client')}, "
            f"{self.requests:,} requests in {self.seconds:.1f} s{errors}\n"
            f"latency p50 {latency.p50:.2f} ms, p95 {latency.p95:.2f} ms, p99 {latency.p99:.2f} ms, "
            f"max {latency.max:.2f} ms\n"
            f"The session computes with {console.count(self.threads, 'thread')} (the cores this process may use), "
            "which all clients share: more clients wait longer, and do not compute more."
        )


def run_load(
    model_dir: ModelDir, role: Role, precision: FilePrecision, provider: str, clients: int, seconds: float
) -> LoadResult:
    """Drive one of the directory's ONNX files; no data set is needed. Raises ArtifactError, DeviceError."""
    path = model_dir.require(model_dir.onnx(role, precision))
    predictor = OnnxPredictor(path, provider, available_cores())
    side = predictor.preprocess.image_size
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, side, side, 3), dtype=np.uint8)
    return drive(predictor, images, clients, seconds)


def drive(predictor: OnnxPredictor, images: NDArray[np.uint8], clients: int, seconds: float) -> LoadResult:
    """Let `clients` threads ask for one of the images (N, S, S, 3) after the other, for `seconds` after a warm-up.

    Requests that raise are counted. If all of them raise, so does this function, with the first exception.
    """
    _run_clients(predictor, images, clients, min(1.0, WARM_UP_SHARE * seconds))
    tallies, elapsed_s = _run_clients(predictor, images, clients, seconds)
    durations_ms = np.array([duration for tally in tallies for duration in tally.durations_ns]) / 1e6
    errors = [error for tally in tallies for error in tally.errors]
    if len(durations_ms) == 0:
        raise errors[0]
    p50, p95, p99 = percentiles(durations_ms, 50, 95, 99)
    return LoadResult(
        file=predictor.path.name,
        provider=predictor.provider,
        threads=predictor.threads,
        clients=clients,
        seconds=elapsed_s,
        requests=len(durations_ms),
        errors=len(errors),
        first_error=f"{type(errors[0]).__name__}: {errors[0]}" if errors else None,
        throughput_img_s=len(durations_ms) / elapsed_s,
        latency_ms=Tail(p50, p95, p99, float(durations_ms.max())),
    )


@dataclass
class _Tally:
    """The measurements of one client."""

    durations_ns: list[int] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)


def _run_clients(
    predictor: OnnxPredictor, images: NDArray[np.uint8], clients: int, seconds: float
) -> tuple[list[_Tally], float]:
    """Every client's tally, and the s it took until the last of them had its answer."""
    go, stop = threading.Event(), threading.Event()
    with ThreadPoolExecutor(clients) as pool:
        places = [itertools.count(number, clients) for number in range(clients)]
        jobs = [pool.submit(_ask, predictor, images, numbers, go, stop) for numbers in places]
        try:
            start = time.perf_counter()
            go.set()
            time.sleep(seconds)
        finally:
            stop.set()
        tallies = [job.result() for job in jobs]
        return tallies, time.perf_counter() - start


def _ask(
    predictor: OnnxPredictor,
    images: NDArray[np.uint8],
    numbers: Iterator[int],
    go: threading.Event,
    stop: threading.Event,
) -> _Tally:
    """Ask for the images at `numbers`, from `go` until `stop`; after the last image the first one follows."""
    tally = _Tally()
    go.wait()
    while not (tally.durations_ns or tally.errors) or not stop.is_set():  # one request at least
        image = images[next(numbers) % len(images)][np.newaxis]
        start = time.perf_counter_ns()
        try:
            predictor.logits(image)
        except Exception as error:  # under load, any exception of a runtime is counted
            tally.errors.append(error)
        else:
            tally.durations_ns.append(time.perf_counter_ns() - start)
    return tally
