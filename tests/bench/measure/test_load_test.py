"""Load: clients whose answers take a known time, requests that fail, and a real session."""

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_onnx import save_colour_model

from toolkit.bench.measure import load_test
from toolkit.bench.measure.load_test import LoadResult, Tail, drive, run_load
from toolkit.errors import ArtifactError
from toolkit.machine.limits import available_cores
from toolkit.modeldir import ModelDir

IMAGES = np.arange(5 * 2 * 2 * 3, dtype=np.uint8).reshape(5, 2, 2, 3)


class Waiter:
    """Takes `wait_s` for an answer, any number at once, and counts how many are under way."""

    path, provider, threads = Path("student.onnx"), "CPUExecutionProvider", 2

    def __init__(self, wait_s: float, fails_every: int = 0) -> None:
        self.wait_s, self.fails_every = wait_s, fails_every
        self.lock = threading.Lock()
        self.count = self.under_way = self.most = 0
        self.seen: set[bytes] = set()

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with self.lock:
            self.count += 1
            number = self.count
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            self.seen.add(images.tobytes())
        time.sleep(self.wait_s)
        with self.lock:
            self.under_way -= 1
        if self.fails_every and number % self.fails_every == 0:
            raise RuntimeError("too many requests")
        return np.zeros((len(images), 2), np.float32)


class Meeting(Waiter):
    """Answers nobody before `clients` requests are under way."""

    def __init__(self, clients: int) -> None:
        super().__init__(wait_s=0.02)
        self.all_here = threading.Barrier(clients, timeout=600)
        self.first_ones = threading.Semaphore(clients)

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        if self.first_ones.acquire(blocking=False):
            self.all_here.wait()
        return super().logits(images)


@pytest.mark.parametrize("clients", [1, 4, 8])
def test_clients_ask_at_the_same_time_and_wait_for_their_answers(clients: int) -> None:
    predictor: Any = Meeting(clients)  # it comes to no end unless they are under way together
    result = drive(predictor, IMAGES, clients, seconds=0.6)
    assert predictor.most <= clients
    assert 20 <= result.latency_ms.p50 <= result.latency_ms.p95 <= result.latency_ms.p99 <= result.latency_ms.max
    assert result.throughput_img_s == pytest.approx(result.requests / result.seconds)
    assert result.throughput_img_s <= clients / 0.02, "each waits 20 ms at least for each answer"
    assert clients <= result.requests < predictor.count, "the warm-up's do not count"
    assert result.seconds >= 0.6
    assert (result.clients, result.errors, result.first_error) == (clients, 0, None)
    assert predictor.seen <= {image.tobytes() for image in IMAGES}


def test_every_image_is_asked_for() -> None:
    predictor: Any = Waiter(0.0)
    drive(predictor, IMAGES, clients=5, seconds=0.01)
    assert predictor.seen == {image.tobytes() for image in IMAGES}


def test_requests_that_fail_are_counted_apart() -> None:
    """Every other request fails, from any client."""
    result = drive(Waiter(0.005, fails_every=2), IMAGES, clients=2, seconds=0.3)  # type: ignore[arg-type]
    assert abs(result.errors - result.requests) <= 1
    assert result.first_error == "RuntimeError: too many requests"
    assert f"; {result.errors} failed: RuntimeError: too many requests" in result.summary()


def test_if_every_request_fails_the_reason_is_raised() -> None:
    with pytest.raises(RuntimeError, match="too many requests"):
        drive(Waiter(0.005, fails_every=1), IMAGES, clients=2, seconds=0.05)  # type: ignore[arg-type]


def test_a_request_longer_than_the_time_is_still_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers come after the clients were asked to stop, which is the second event of a run."""
    events: list[threading.Event] = []

    def make_event() -> threading.Event:
        events.append(threading.Event())
        return events[-1]

    class Late(Waiter):
        def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
            assert events[-1].wait(600)
            return super().logits(images)

    monkeypatch.setattr(load_test, "threading", SimpleNamespace(Event=make_event))
    predictor: Any = Late(0.0)
    result = drive(predictor, IMAGES, clients=2, seconds=0.01)
    assert result.requests == 2
    assert predictor.count == 2 + 2, "and the warm-up's"


def test_a_real_file_of_a_directory(tmp_path: Path) -> None:
    model_dir = ModelDir(tmp_path)
    save_colour_model(model_dir.onnx("student", "int8"))
    result = run_load(model_dir, "student", "int8", "cpu", clients=3, seconds=0.3)
    assert (result.file, result.provider) == ("student.int8.onnx", "CPUExecutionProvider")
    assert result.threads == available_cores()
    assert result.requests >= 3, "one for each client at least"
    assert result.errors == 0
    with pytest.raises(ArtifactError, match=r"has no student\.onnx; make it with: toolkit export"):
        run_load(model_dir, "student", "fp32", "cpu", clients=1, seconds=0.1)


def test_the_summary_in_words() -> None:
    result = LoadResult(
        "student.onnx", "CPUExecutionProvider", 2, 8, 5.04, 12345, 0, None, 2449.4, Tail(1.234, 2, 3.5, 10)
    )
    assert result.summary().splitlines() == [
        "student.onnx on CPUExecutionProvider: 2,449 images per second for 8 clients, 12,345 requests in 5.0 s",
        "latency p50 1.23 ms, p95 2.00 ms, p99 3.50 ms, max 10.00 ms",
        "The session computes with 2 threads (the cores this process may use), which all clients share: more clients"
        " wait longer, and do not compute more.",
    ]
    assert result.to_json() == {
        "file": "student.onnx",
        "provider": "CPUExecutionProvider",
        "threads": 2,
        "clients": 8,
        "seconds": 5.04,
        "requests": 12345,
        "errors": 0,
        "first_error": None,
        "throughput_img_s": 2449.4,
        "latency_ms": {"p50": 1.234, "p95": 2, "p99": 3.5, "max": 10},
    }
