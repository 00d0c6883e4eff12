"""The one way to a session: onnxruntime gets every argument."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from tiny_onnx import save_colour_model

import toolkit
from toolkit.sessions.session import CPU, ERRORS, NO_SPINNING, WARNINGS, open_session, why_refused

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)


def test_a_file_and_its_content_answer_alike(tmp_path: Path) -> None:
    path = save_colour_model(tmp_path / "m.onnx")
    answers = [open_session(model, 1).run(["logits"], {"image": IMAGES})[0] for model in (path, path.read_bytes())]
    np.testing.assert_array_equal(*answers)
    np.testing.assert_allclose(answers[0], 10 * IMAGES.mean((1, 2)) / 255, rtol=1e-5)


def test_every_argument_reaches_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[tuple[Any, ...]] = []

    def remember(
        content: bytes, options: onnxruntime.SessionOptions, providers: list[Any], enable_fallback: int
    ) -> None:
        opened.append((content, options, providers, enable_fallback))

    monkeypatch.setattr(onnxruntime, "InferenceSession", remember)
    open_session(b"model", 3)
    open_session(b"model", 1, [("CUDAExecutionProvider", {"device_id": "1"})], NO_SPINNING, WARNINGS)
    (_, plain, on_cpu, fallback), (_, special, on_gpu, _) = opened
    assert (plain.intra_op_num_threads, plain.log_severity_level, on_cpu, fallback) == (3, ERRORS, [CPU], 0)
    assert (special.intra_op_num_threads, special.log_severity_level) == (1, WARNINGS)
    assert special.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert on_gpu == [("CUDAExecutionProvider", {"device_id": "1"})]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("[ONNXRuntimeError] : 7 : INVALID_PROTOBUF : Load model failed:Protobuf parsing failed.", "Load model failed"),
        (
            "[ONNXRuntimeError] : 1 : FAIL : Non-zero status of Conv. Name:'a' Status Message: add.cc:5 odd\nmore",
            "add.",
        ),
        (
            "[ONNXRuntimeError] : 1 : FAIL : Load model from a.onnx failed:/onnxruntime_src/core/graph/model.cc:256"
            " onnxruntime::Model::Model(onnx::ModelProto&&, const Options&) Unsupported model IR version: 99",
            "Unsupported model IR version: 99",
        ),
        ("[ONNXRuntimeError] : 1 : FAIL : ", "RuntimeError"),
        ("", "RuntimeError"),
        ("no code", "no code"),
    ],
)
def test_a_refusal_is_one_line_without_its_code(message: str, expected: str) -> None:
    found = why_refused(RuntimeError(message))
    assert found.startswith(expected)
    assert "\n" not in found


def test_a_file_that_is_no_model_is_refused() -> None:
    with pytest.raises(Exception, match="ONNXRuntimeError") as caught:
        open_session(b"no model", 1)
    assert not why_refused(caught.value).startswith("[")


def test_no_other_place_opens_one() -> None:
    package = Path(toolkit.__file__).parent
    opening = [path for path in package.rglob("*.py") if "onnxruntime.InferenceSession(" in path.read_text("utf-8")]
    names = {path.relative_to(package).as_posix() for path in opening}
    assert names == {"sessions/session.py", "bench/report/card.py"}  # the card shows others how
