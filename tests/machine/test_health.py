import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from toolkit.machine import health

TOOLKIT = ["/opt/kd-toolkit/bin/python", "/opt/kd-toolkit/bin/toolkit"]


@pytest.fixture
def port() -> Iterator[int]:
    """The port of a server that answers /healthz with 200 and all else with 404."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/healthz" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_a_demo_that_answers_is_well(port: int) -> None:
    assert health.examine([*TOOLKIT, "demo"], port) == ""


@pytest.mark.parametrize("flags", [["--port", "{}"], ["--port={}"]])
def test_its_flag_says_which_port(port: int, flags: list[str]) -> None:
    arguments = [*TOOLKIT, "demo", "models/x", *(flag.format(port) for flag in flags), ""]
    assert health.examine(arguments, 1) == ""


def test_a_demo_that_does_not_answer_is_not() -> None:
    assert health.examine([*TOOLKIT, "demo"], 1).startswith("the demo does not answer on port 1: ")


def test_any_other_answer_is_not(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health.http.client, "OK", 204)
    assert health.examine([*TOOLKIT, "demo"], port) == f"the demo answers /healthz on port {port} with 200"


@pytest.mark.parametrize("command", ["distill", "export", "bench", "doctor"])
def test_a_stage_is_well_while_it_runs(command: str) -> None:
    assert health.examine([*TOOLKIT, command], 1) == ""
    assert health.examine([*TOOLKIT, command, "models/x", "--data", "demo"], 1) == ""


def test_the_container_asks_its_first_process() -> None:
    text = (Path(__file__).parents[2] / "Dockerfile").read_text(encoding="utf-8")
    assert 'CMD ["python", "-m", "toolkit.machine.health"]' in text
