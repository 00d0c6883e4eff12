"""The fresh process: it is one, it knows nothing but the file, and each failure of it is one line."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_onnx import save_colour_model

from toolkit.errors import GateError
from toolkit.export.replay import Replay

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)


def test_answers_from_another_process_without_torch(tmp_path: Path) -> None:
    with Replay(save_colour_model(tmp_path / "m.onnx"), "m.onnx") as replay:
        logits, probabilities = replay.answer(IMAGES)
        again, _ = replay.answer(IMAGES)
        assert replay._process.pid != os.getpid()
        assert "libtorch" not in Path(f"/proc/{replay._process.pid}/maps").read_text()
    np.testing.assert_array_equal(again, logits)
    expected = 10 * IMAGES.mean((1, 2)) / 255
    np.testing.assert_allclose(logits, expected, rtol=1e-5)
    np.testing.assert_allclose(probabilities, np.exp(expected) / np.exp(expected).sum(1, keepdims=True), rtol=1e-4)


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"no model")
    expected = r"m\.onnx cannot be used by onnxruntime \S+: .+; the file was not kept"
    with Replay(tmp_path / "m.onnx", "m.onnx") as replay, pytest.raises(GateError, match=expected):
        replay.answer(IMAGES)


def test_images_that_the_file_does_not_take(tmp_path: Path) -> None:
    with (
        Replay(save_colour_model(tmp_path / "m.onnx"), "m.onnx") as replay,
        pytest.raises(GateError, match=r"m\.onnx cannot be used by onnxruntime"),
    ):
        replay.answer(IMAGES[:, :8])


def test_a_process_that_dies(tmp_path: Path) -> None:
    with Replay(save_colour_model(tmp_path / "m.onnx"), "m.onnx") as replay:
        os.kill(replay._process.pid, signal.SIGKILL)
        replay._process.wait()
        with pytest.raises(GateError, match="the process that opened it has ended"):
            replay.answer(IMAGES)


def test_the_program_that_asks_may_be_a_script_without_a_main_guard(tmp_path: Path) -> None:
    model = save_colour_model(tmp_path / "m.onnx")
    (tmp_path / "script.py").write_text(
        f"""
import numpy as np
from pathlib import Path
from toolkit.export.replay import Replay
print("once")
with Replay(Path({str(model)!r}), "m.onnx") as replay:
    print(replay.answer(np.zeros((1, 32, 32, 3), np.uint8))[0].shape)
"""
    )
    done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("once\n(1, 3)\n", 0), done.stderr
