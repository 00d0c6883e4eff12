"""`toolkit predict`: right answers from the ONNX file alone, and one clear line for every file that is no picture."""

import io
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import make_png
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tiny_onnx import save_colour_model

from toolkit import predict
from toolkit.data.preprocess import Preprocess
from toolkit.errors import ArtifactError, DataError
from toolkit.modeldir import ModelDir
from toolkit.predict import (
    FilePrediction,
    PictureError,
    Prediction,
    ask,
    find_model,
    predict_files,
    print_predictions,
    read_pixels,
    to_json,
)
from toolkit.runtimes.onnxruntime import OnnxPredictor

PREPROCESS = Preprocess(32, 36, (0.5,) * 3, (0.5,) * 3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_colour_model(tmp_path_factory.mktemp("colour") / "student.onnx")


def plain(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (40, 60)) -> Path:
    Image.new("RGB", size, colour).save(path)
    return path


def test_classes_and_probabilities_are_those_worked_out_by_hand(model: Path, tmp_path: Path) -> None:
    start = time.perf_counter()
    (prediction,) = predict_files(model, [plain(tmp_path / "a.png", (51, 204, 102))], k=2)
    took_ms = 1e3 * (time.perf_counter() - start)
    exponentials = np.exp([10 * 51 / 255, 10 * 204 / 255, 10 * 102 / 255])
    assert prediction.answer is not None
    assert [name for name, _ in prediction.answer.top] == ["green", "blue"]
    np.testing.assert_allclose(
        [p for _, p in prediction.answer.top], exponentials[[1, 2]] / exponentials.sum(), atol=1e-6
    )
    assert 0 < prediction.answer.latency_ms < took_ms


def test_more_guesses_than_classes_gives_them_all(model: Path, tmp_path: Path) -> None:
    (prediction,) = predict_files(model, [plain(tmp_path / "a.png", (255, 0, 0))], k=5)
    assert prediction.answer is not None
    assert len(prediction.answer.top) == 3
    assert sum(p for _, p in prediction.answer.top) == pytest.approx(1)


def test_the_network_sees_the_one_preprocessing(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)).save(path)
    predictor = OnnxPredictor(model, "cpu")
    (prediction,) = predict_files(model, [path], k=3, provider="cpu")
    pixels = predictor.preprocess(Image.open(path))
    expected = np.exp(10 * pixels.astype(np.float64).mean((0, 1)) / 255)
    assert prediction.answer is not None
    got = dict(prediction.answer.top)
    np.testing.assert_allclose([got[c] for c in predictor.classes], expected / expected.sum(), atol=1e-6)


def test_a_model_directory_means_its_student(model: Path, tmp_path: Path) -> None:
    assert find_model(model.parent) == model
    picture = plain(tmp_path / "a.png", (0, 0, 255))
    (prediction,) = predict_files(model.parent, [picture])
    assert prediction.answer is not None
    assert prediction.answer.top[0][0] == "blue"


def test_a_directory_of_images_is_expanded_in_order(model: Path, tmp_path: Path) -> None:
    plain(tmp_path / "b.png", (255, 0, 0))
    (tmp_path / "sub").mkdir()
    plain(tmp_path / "sub" / "c.JPG", (0, 255, 0))
    plain(tmp_path / "a.bmp", (0, 0, 255))
    (tmp_path / "notes.txt").write_text("no image")
    found = predict_files(model, [tmp_path, tmp_path / "b.png"], k=1)
    assert [prediction.path.name for prediction in found] == ["a.bmp", "b.png", "c.JPG", "b.png"]
    assert [p.answer.top[0][0] for p in found if p.answer] == ["blue", "red", "green", "red"]


def test_what_systems_leave_in_a_directory_is_passed_over_with_a_note(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain(tmp_path / "a.jpg", (255, 0, 0))
    names = ("._a.jpg", ".DS_Store", "__MACOSX/._a.jpg", "@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg", "b.heic", "c.png.part")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    found = predict_files(model, [tmp_path], k=1)
    assert [(prediction.path.name, prediction.error) for prediction in found] == [("a.jpg", None)]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        f"{tmp_path}: passed over 2 hidden files, such as .DS_Store",
        f"{tmp_path}: passed over 2 system folders, such as @eaDir",
        f"{tmp_path}: passed over 1 unfinished download: c.png.part; finish the downloads",
        f"{tmp_path}: passed over 1 file with endings that are not read: b.heic (1 .heic); if they are pictures,"
        " convert them to JPEG or PNG",
    ]


def test_a_file_that_is_named_is_tried_whatever_it_is_called(model: Path, tmp_path: Path) -> None:
    picture = plain(tmp_path / "a.png", (0, 255, 0))
    names = (".hidden.png", "Thumbs.db", "no ending", "a.heic", "a.png.part")
    for name in names:
        (tmp_path / name).write_bytes(picture.read_bytes())
    found = predict_files(model, [tmp_path / name for name in names], k=1)
    assert [p.answer.top[0][0] for p in found if p.answer] == ["green"] * len(names)


def test_a_directory_of_other_files_says_what_they_are(model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.HEIC").touch()
    (tmp_path / ".DS_Store").touch()
    message = r"there is no image in .* \(passed over 1 hidden file: \.DS_Store; passed over 1 file .*\.heic.*\); image"
    with pytest.raises(DataError, match=message):
        predict_files(model, [tmp_path])


def test_names_that_are_not_utf8_are_printed(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = plain(tmp_path / "a.png", (0, 255, 0))
    picture.rename(tmp_path / "caf\udce9\n.png")
    predictions = predict_files(model, [tmp_path], k=1)
    print_predictions(predictions)
    print_predictions(predictions, as_json=True)
    out = capsys.readouterr().out
    out.encode()  # as a terminal does
    table, _, text = out.partition("[\n")
    assert f"{tmp_path}/caf\\xe9\\n.png  (" in table
    assert json.loads(f"[{text}")[0]["image"] == str(tmp_path / "caf\udce9\n.png")


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        *(("L", "png"), ("P", "gif"), ("RGBA", "webp"), ("CMYK", "jpg"), ("I;16", "png")),
        *(("RGB", "jfif"), ("CMYK", "tif"), ("1", "pbm"), ("L", "pgm"), ("RGB", "ppm"), ("P", "tiff"), ("RGB", "dib")),
    ],
)
def test_every_kind_of_picture_is_answered(model: Path, tmp_path: Path, mode: str, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    image = Image.new("RGB", (40, 40), (200, 10, 10))
    (Image.new("I;16", (40, 40), 40_000) if mode == "I;16" else image.convert(mode)).save(path)
    (prediction,) = predict_files(model, [path])
    assert prediction.error is None


def test_a_one_pixel_picture_is_answered(model: Path, tmp_path: Path) -> None:
    (prediction,) = predict_files(model, [plain(tmp_path / "a.png", (0, 255, 0), (1, 1))], k=1)
    assert prediction.answer is not None
    assert prediction.answer.top[0][0] == "green"


def png_with_large_text() -> bytes:
    buffer, text = io.BytesIO(), PngInfo()
    text.add_text("comment", "a" * 2_000_000, zip=True)
    Image.new("RGB", (8, 8)).save(buffer, "PNG", pnginfo=text)
    return buffer.getvalue()


def jpeg_of_many_scans(scans: int) -> bytes:
    """A progressive one whose last scan comes again and again."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, "JPEG", progressive=True)
    content = buffer.getvalue()
    last, own = content[content.rindex(b"\xff\xda") : -2], content.count(b"\xff\xda")
    return content[:-2] + last * (scans - own) + content[-2:]


def half_a_jpeg(*, whole: bool = False) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()[: None if whole else buffer.tell() // 2]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.png", b"", "the file is empty"),
        ("text.jpg", b"hello, this is text", "not a JPEG, PNG, WebP, BMP, GIF, TIFF or PPM image"),
        ("half.jpg", half_a_jpeg(), "image file is truncated"),
        ("broken.png", make_png(8, 8), "cannot read"),
        ("document.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a JPEG"),
        ("bomb.png", make_png(12_001, 10_000), "is too large (12001×10000 px)"),
        ("bigger_bomb.png", make_png(60_000, 60_000), "is too large (60000×60000 px)"),
        ("rows.png", make_png(1, 120_000_000), "is too large (1×120000000 px of this kind take 1.4 GB to decode)"),
        ("text.png", png_with_large_text(), "the text or colour profile packed into it is too large"),
        ("scans.jpg", jpeg_of_many_scans(101), "the JPEG has more than 100 passes"),
    ],
    ids=["empty", "text", "half", "broken", "postscript", "bomb", "bigger bomb", "rows", "large text", "scans"],
)
def test_a_bad_file_is_named_with_the_reason(
    model: Path, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    (prediction,) = predict_files(model, [path])
    assert prediction.answer is None
    assert message in str(prediction.error)
    assert str(path) in str(prediction.error)
    assert "\n" not in str(prediction.error)


def test_a_jpeg_of_as_many_passes_as_may_be_is_answered(model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg_of_many_scans(100))
    (prediction,) = predict_files(model, [tmp_path / "a.jpg"], k=1)
    assert prediction.answer is not None
    assert prediction.answer.top[0][0] == "red"


def test_a_missing_file_and_an_empty_folder(model: Path, tmp_path: Path) -> None:
    (prediction,) = predict_files(model, [tmp_path / "nowhere.png"])
    assert str(prediction.error) == f"{tmp_path / 'nowhere.png'} is not there; check the path"
    with pytest.raises(DataError, match=r"there is no image in .*; image files end in \.apng, \.bmp"):
        predict_files(model, [tmp_path])
    with pytest.raises(DataError, match="is a directory"):
        read_pixels(tmp_path, PREPROCESS)


def test_an_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(predict, "open_image", refuse)
    with pytest.raises(DataError, match="may not be read"):
        read_pixels(tmp_path / "a.png", PREPROCESS)


def test_a_bad_file_does_not_stop_the_others(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = plain(tmp_path / "good.png", (255, 0, 0))
    (tmp_path / "bad.png").write_bytes(b"")
    predictions = predict_files(model, [tmp_path / "bad.png", tmp_path / "gone.png", good])
    with pytest.raises(DataError, match=r"bad\.png as an image: the file is empty"):
        print_predictions(predictions)
    captured = capsys.readouterr()
    assert "red" in captured.out
    assert "100.0 %" in captured.out
    assert "gone.png" in captured.err


@pytest.mark.parametrize("where", ["open", "load", "resize"])
def test_a_picture_without_memory_does_not_stop_the_others(
    model: Path, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [plain(tmp_path / f"{i}.png", (255, 0, 0), (40, 50 + i)) for i in range(3)]

    def fail_for_the_second(real: Callable[..., object]) -> Callable[..., object]:
        def fail(image: Any, *args: Any) -> object:
            if (image == files[1]) if isinstance(image, Path) else (image.height == 51):
                raise MemoryError
            return real(image, *args)

        return fail

    if where == "open":
        monkeypatch.setattr(predict, "open_image", fail_for_the_second(predict.open_image))
    else:
        monkeypatch.setattr(Image.Image, where, fail_for_the_second(getattr(Image.Image, where)))
    first, second, third = predict_files(model, files)
    assert first.answer is not None
    assert third.answer is not None
    assert second.answer is None
    assert isinstance(second.error, PictureError)
    assert second.error.reason == "no_memory"
    assert str(second.error) == (
        f"there is not enough memory to decode {files[1]}; give a smaller picture, or more memory"
    )


def test_a_network_without_memory_does_not_stop_the_others(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [plain(tmp_path / f"{i}.png", (i, 0, 0)) for i in range(3)]
    real = OnnxPredictor.logits

    def fail(predictor: OnnxPredictor, images: np.ndarray) -> np.ndarray:
        if images[0, 0, 0, 0] == 1:
            raise MemoryError
        return real(predictor, images)

    monkeypatch.setattr(OnnxPredictor, "logits", fail)
    predictions = predict_files(model, files)
    assert [prediction.answer is None for prediction in predictions] == [False, True, False]
    assert str(predictions[1].error) == (
        f"there is not enough memory to ask the network about {files[1]}; give a smaller picture, or more memory"
    )


def test_lines_are_answered_as_pictures_are(model: Path, tmp_path: Path) -> None:
    files = [plain(tmp_path / f"{i}.png", (0, 255, 0), size) for i, size in enumerate([(1, 60_000), (60_000, 1)])]
    for prediction in predict_files(model, files, k=1):
        assert prediction.answer is not None
        assert prediction.answer.top[0][0] == "green"


def test_a_motion_photo_is_answered_as_the_photo_is(model: Path, tmp_path: Path) -> None:
    (tmp_path / "plain.jpg").write_bytes(half_a_jpeg(whole=True))
    (tmp_path / "motion.jpg").write_bytes(half_a_jpeg(whole=True) + b"MotionPhoto_Data" + b"\xff\xda\0\1" * 50_000)
    photo, motion = predict_files(model, [tmp_path / "plain.jpg", tmp_path / "motion.jpg"])
    assert photo.answer is not None
    assert motion.answer is not None
    assert motion.answer.top == photo.answer.top


def test_json_is_json_alone(capsys: pytest.CaptureFixture[str]) -> None:
    answer = Prediction((("[bold]thé", 0.75), ("b", 0.25)), 1.5, np.zeros(2, np.float32))
    bad = DataError("x is empty", "give another")
    predictions = [FilePrediction(Path("a.png"), answer), FilePrediction(Path("x"), None, bad)]
    with pytest.raises(DataError):
        print_predictions(predictions, as_json=True)
    assert (
        json.loads(capsys.readouterr().out)
        == [
            {
                "image": "a.png",
                "top": [{"class": "[bold]thé", "probability": 0.75}, {"class": "b", "probability": 0.25}],
                "latency_ms": 1.5,
            },
            {"image": "x", "error": "x is empty; give another"},
        ]
        == to_json(predictions)
    )


def test_class_names_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    print_predictions(
        [FilePrediction(Path("[red]a[/].png"), Prediction((("[b]x", 1.0),), 0.5, np.zeros(1, np.float32)))]
    )
    out = capsys.readouterr().out
    assert "[b]x" in out
    assert "[red]a[/].png" in out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("student.safetensors", "not an .onnx file, and not a model directory"),
        ("gone.onnx", "there is no file"),
        ("nowhere", "not an .onnx file, and not a model directory"),
    ],
)
def test_a_model_that_is_not_one(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        predict_files(tmp_path / name, [])


def test_a_directory_without_onnx_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"has no student\.onnx; make it with: toolkit export --onnx"):
        predict_files(tmp_path, [])
    assert ModelDir(tmp_path).onnx("student").name == "student.onnx"


def test_latency_is_of_the_network_alone(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_ns = 0
    monkeypatch.setattr("toolkit.predict.time", SimpleNamespace(perf_counter_ns=lambda: now_ns))

    class Slow:
        classes = ("a", "b")
        preprocess = OnnxPredictor(model, "cpu").preprocess
        runtime, provider = "fake", "none"

        def logits(self, images: np.ndarray) -> np.ndarray:
            nonlocal now_ns
            now_ns += 10_000_000
            return np.array([[0.0, np.log(3)]], np.float32)

    answer = ask(Slow(), np.zeros((32, 32, 3), np.uint8), 1)
    assert answer.top == (("b", pytest.approx(0.75)),)
    assert answer.latency_ms == 10


def test_torch_is_not_imported(model: Path, tmp_path: Path) -> None:
    picture = plain(tmp_path / "a.png", (255, 0, 0))
    code = (
        "import sys; from pathlib import Path; from toolkit.predict import predict_files\n"
        "answer = predict_files(Path(sys.argv[1]), [Path(sys.argv[2])])[0].answer\n"
        "print(answer.top[0][0], sorted({'torch', 'torchvision', 'gradio'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(model), str(picture)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["red", "[]"]
