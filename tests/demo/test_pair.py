"""A teacher and its student: the same answers as `toolkit predict`, in every precision that is there."""

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import make_png
from demo_server import CLASSES, make_model_dir, save_picture
from PIL import Image, ImageOps
from report_samples import make_report
from tiny_onnx import save_colour_model

from toolkit.demo.contents import read_contents
from toolkit.demo.handlers import DemoModel, Handlers
from toolkit.demo.pair import open_pair
from toolkit.errors import ArtifactError, DataError
from toolkit.modeldir import ModelDir
from toolkit.predict import predict_files
from toolkit.runtimes.onnxruntime import OnnxPredictor


@pytest.fixture
def directory(tmp_path: Path) -> ModelDir:
    return make_model_dir(tmp_path / "pair")


def top_of(model: Path, picture: Path) -> tuple[tuple[str, float], ...]:
    (prediction,) = predict_files(model, [picture], provider="cpu")
    assert prediction.answer is not None
    return prediction.answer.top


def test_answers_are_those_of_predict(directory: ModelDir, tmp_path: Path) -> None:
    pair = open_pair(directory, "cpu")
    agreed = set()
    for seed in range(3):
        picture = save_picture(tmp_path / f"{seed}.png", seed)
        found = pair.compare(picture)
        assert found.teacher.top == top_of(directory.onnx("teacher"), picture)
        assert found.student.top == top_of(directory.onnx("student"), picture)
        assert len(found.student.top) == 5
        assert found.agree == (found.teacher.top[0][0] == found.student.top[0][0])
        agreed.add(found.agree)
    assert agreed == {True, False}  # else this test has seen only half


def test_teacher_and_student_may_see_different_crops(directory: ModelDir, tmp_path: Path) -> None:
    save_colour_model(directory.onnx("teacher"), CLASSES, image_size=16, resize=20)
    picture = save_picture(tmp_path / "a.png")
    found = open_pair(directory, "cpu").compare(picture)
    assert found.teacher.top == top_of(directory.onnx("teacher"), picture)
    assert found.seen.shape == (32, 32, 3)


def test_a_precision_answers_from_its_own_file(directory: ModelDir, tmp_path: Path) -> None:
    weight = np.random.default_rng(3).uniform(0, 9, (3, len(CLASSES))).astype(np.float32)
    save_colour_model(directory.onnx("student", "int8"), CLASSES, weight=weight)
    picture = save_picture(tmp_path / "a.png")
    pair = open_pair(directory, "cpu")
    assert list(pair.students) == ["fp32", "int8"]
    found = pair.compare(picture, precision="int8")
    assert found.student.top == top_of(directory.onnx("student", "int8"), picture)
    assert found.student.top != pair.compare(picture).student.top
    values = found.to_json()
    assert (values["student"]["precision"], values["teacher"]["precision"]) == ("int8", "fp32")  # no teacher.int8.onnx
    assert values["student"]["size_bytes"] == directory.onnx("student", "int8").stat().st_size
    shutil.copy(directory.onnx("teacher"), directory.onnx("teacher", "int8"))
    again = open_pair(directory, "cpu").compare(picture, precision="int8")
    assert again.to_json()["teacher"]["precision"] == "int8"
    with pytest.raises(DataError, match=r"there is no student in 'fp16'; choose one of: fp32, int8"):
        pair.compare(picture, precision="fp16")


def test_values_for_programs_have_all_digits(directory: ModelDir, tmp_path: Path) -> None:
    start = time.perf_counter()
    found = open_pair(directory, "cpu").compare(save_picture(tmp_path / "a.png"))
    took_ms = 1e3 * (time.perf_counter() - start)
    values = found.to_json()
    assert values["classes"] == list(CLASSES)
    assert (values["width"], values["height"], values["image_size"], values["notes"]) == (70, 50, 32, {})
    logits = np.array(values["student"]["logits"], np.float64)
    powers = np.exp(logits - logits.max())
    for entry in values["student"]["top"]:
        place = CLASSES.index(entry["class"])
        assert entry["probability"] == pytest.approx(powers[place] / powers.sum(), rel=1e-12)
    assert 0 < values["student"]["latency_ms"] < took_ms


def test_unusual_pictures_are_answered_and_noted(directory: ModelDir, tmp_path: Path) -> None:
    red, blue = (Image.new("RGB", (40, 40), colour) for colour in ("red", "blue"))
    red.save(tmp_path / "animated.gif", save_all=True, append_images=[blue, red])
    Image.fromarray(np.full((40, 40), 40_000, np.uint16)).save(tmp_path / "deep.png")
    rows = [bytes([0]) + np.full(40 * 3, 40_000, ">u2").tobytes()] * 40
    (tmp_path / "deep_colours.png").write_bytes(make_png(40, 40, b"".join(rows), depth=16))
    Image.new("RGBA", (40, 40), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("RGB", (1, 1), "red").save(tmp_path / "dot.png")
    Image.new("RGBA", (40, 40), "red").save(tmp_path / "opaque.png")
    pair = open_pair(directory, "cpu")
    found = {
        name: pair.compare(tmp_path / name)
        for name in ("animated.gif", "deep.png", "deep_colours.png", "clear.png", "dot.png", "opaque.png")
    }
    assert {name: one.notes for name, one in found.items()} == {
        "animated.gif": {"animated": 3},
        "deep.png": {"deep": 1},
        "deep_colours.png": {"deep": 1},
        "clear.png": {"transparent": 1},
        "dot.png": {"tiny": 1},
        "opaque.png": {},
    }
    assert found["animated.gif"].teacher.top[0][0] == "red"
    assert found["dot.png"].teacher.top[0][0] == "red"
    assert (found["deep.png"].seen == 40_000 >> 8).all()
    assert (found["deep_colours.png"].seen == 40_000 >> 8).all()
    assert (found["clear.png"].seen == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_is_that_of_the_upright_picture(directory: ModelDir, tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (70, 50), "red").save(tmp_path / "a.jpg", exif=exif)
    with Image.open(tmp_path / "a.jpg") as image:
        upright = ImageOps.exif_transpose(image).size
    assert open_pair(directory, "cpu").compare(tmp_path / "a.jpg").size == upright


def test_an_error_has_the_name_that_was_given(directory: ModelDir, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"?")
    with pytest.raises(DataError, match=r"cannot read holiday\.jpg as"):
        open_pair(directory, "cpu").compare(tmp_path / "x", "holiday.jpg")


def test_too_little_memory_is_an_answer(directory: ModelDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = open_pair(directory, "cpu")
    handlers = Handlers({"pair": DemoModel(pair, read_contents(directory))})
    picture = {"path": str(save_picture(tmp_path / "a.png")), "orig_name": "holiday.png"}

    def fail(*_: object) -> None:
        raise MemoryError

    for owner, name, work in (
        (Image.Image, "load", "decode holiday.png"),
        (OnnxPredictor, "logits", "ask the networks about holiday.png"),
    ):
        with monkeypatch.context() as starved:
            starved.setattr(owner, name, fail)
            told, *rest = handlers.look(picture, "", "fp32")
            assert rest == [None, None]
            assert told["problem"] == {
                "reason": "no_memory",
                "message": f"there is not enough memory to {work}; give a smaller picture, or more memory",
            }
    assert handlers.look(picture, "", "fp32")[0]["agree"] in (True, False), "the next one is answered"


def test_a_line_is_answered(directory: ModelDir, tmp_path: Path) -> None:
    Image.new("RGB", (60_000, 1), "red").save(tmp_path / "line.png")
    found = open_pair(directory, "cpu").compare(tmp_path / "line.png")
    assert found.size == (60_000, 1)
    assert found.teacher.top[0][0] == "red"


def test_a_missing_file_names_the_command(directory: ModelDir) -> None:
    directory.onnx("teacher").unlink()
    with pytest.raises(ArtifactError, match=r"has no teacher\.onnx; make it with: toolkit export --onnx .*pair"):
        open_pair(directory, "cpu")


def test_a_student_whose_teacher_was_not_measured_has_no_page(directory: ModelDir) -> None:
    """Whatever teacher.onnx lies there: it did not teach."""
    report = make_report(name="colours")
    reason = "There is no teacher to measure, because its answers came from a file."
    directory.report_json.write_text(json.dumps(report.model_copy(update={"no_teacher": reason}).to_json()))
    with pytest.raises(
        ArtifactError,
        match=r"the demo shows teacher and student, and there is no teacher to measure, because its answers came from a"
        r" file; ask the student with: toolkit predict .*pair IMAGE",
    ):
        open_pair(directory, "cpu")
    directory.report_json.write_text("damaged")
    assert open_pair(directory, "cpu").students
