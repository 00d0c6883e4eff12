"""metrics.jsonl keeps other stages' lines, and TensorBoard is written or missed in one line."""

import builtins
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from toolkit.distill.metrics import EpochMetrics, MetricsLog, from_values, read_metrics, to_values
from toolkit.errors import TrainingError
from toolkit.modeldir import Role


def metrics(epoch: int, role: Role = "student") -> EpochMetrics:
    return EpochMetrics(role, epoch, 1.0, 0.5, 1.1, 0.25, 100.0, 2.0 * (epoch + 1), 0.1, 32)


def test_other_stages_lines_stay_and_the_stage_s_own_history_is_restored(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"stage": "teacher", "epoch": 0}\n{"stage": "distill", "epoch": 9}\n{"stage": "control", "epoch": 1}\n'
    )
    log = MetricsLog(path, "student", epochs=3)
    log.start([metrics(0)])
    log.add(metrics(1))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["stage"], line["epoch"]) for line in lines] == [
        *(("teacher", 0), ("control", 1), ("distill", 0), ("distill", 1)),
    ]


def test_two_stages_at_once_lose_no_line(tmp_path: Path) -> None:
    """One starts over again and again while the other one adds; a lock between threads stands for one of processes."""
    path = tmp_path / "metrics.jsonl"

    def add_all() -> None:
        log = MetricsLog(path, "student", epochs=300)
        for epoch in range(300):
            log.add(metrics(epoch))

    adding = threading.Thread(target=add_all)
    adding.start()
    while adding.is_alive():
        MetricsLog(path, "control", epochs=3).start([metrics(0, "control")])
    adding.join()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["epoch"] for line in lines if line["stage"] == "distill"] == [*range(300)]
    assert [line["epoch"] for line in lines if line["stage"] == "control"] == [0]
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


def test_a_start_from_nothing_leaves_no_old_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"stage": "distill", "epoch": 9}\n')
    MetricsLog(path, "student", epochs=3).start([])
    assert not path.exists()


def test_the_line_on_stderr_has_the_time_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    MetricsLog(tmp_path / "metrics.jsonl", "student", epochs=4).add(metrics(0))
    printed = capsys.readouterr().err
    assert printed.startswith("student    1/4  train loss 1.0000 acc 0.5000  valid loss 1.1000 acc 0.2500  100 img/s")
    assert printed.rstrip().endswith("6.0 s left")


def test_tensorboard_gets_every_figure(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = MetricsLog(tmp_path / "metrics.jsonl", "student", epochs=2, tensorboard=tmp_path / "tensorboard")
    log.add(metrics(0))
    log.add(metrics(1))
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard" / "distill"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("valid_accuracy")] == [(1, 0.25), (2, 0.25)]
    assert {"train_loss", "learning_rate", "train_img_s"} <= set(events.Tags()["scalars"])


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("torch.utils.tensorboard"):
            raise ModuleNotFoundError("No module named 'tensorboard'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        TrainingError, match=r"--tensorboard needs a package .* pip install 'kd-toolkit\[tensorboard\]'"
    ):
        MetricsLog(tmp_path / "metrics.jsonl", "student", epochs=2, tensorboard=tmp_path / "tensorboard")


def test_a_line_keeps_its_words_and_is_read_as_it_was_written(tmp_path: Path) -> None:
    """The words of the file are older than those of the code, and programs read them."""
    assert [to_values(metrics(0, role))["stage"] for role in ("teacher", "student", "control")] == [
        *("teacher", "distill", "control")
    ]
    assert from_values(to_values(metrics(3))) == metrics(3)
    path = tmp_path / "metrics.jsonl"
    MetricsLog(path, "student", epochs=2).add(metrics(0))
    assert read_metrics(path) == [metrics(0)]
