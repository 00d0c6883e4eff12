"""The page as a program uses it: one function, the same answers as `toolkit predict`, clear messages."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gradio
import pytest
from conftest import make_png
from demo_server import Server, as_pairs, ask, connect
from demo_server import save_picture as save
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image

from toolkit.demo.handlers import Handlers, open_models
from toolkit.demo.page import build_app
from toolkit.errors import ArtifactError
from toolkit.modeldir import ModelDir
from toolkit.predict import predict_files


def test_answers_are_those_of_predict(client: Client, model_dirs: list[ModelDir], tmp_path: Path) -> None:
    for seed in range(4):
        picture = save(tmp_path / f"{seed}.png", seed)
        got = ask(client, picture)
        for role in ("teacher", "student"):
            (expected,) = predict_files(model_dirs[0].onnx(role), [picture], provider="cpu")  # type: ignore[arg-type]
            assert expected.answer is not None
            assert as_pairs(got[role]) == list(expected.answer.top)
        assert got["agree"] == (got["teacher"]["top"][0]["class"] == got["student"]["top"][0]["class"])
        assert got["student"]["size_bytes"] == model_dirs[0].onnx("student").stat().st_size


def test_the_picker_changes_the_model(client: Client, model_dirs: list[ModelDir], tmp_path: Path) -> None:
    picture = save(tmp_path / "a.png")
    for directory in model_dirs:
        (expected,) = predict_files(directory.path, [picture], provider="cpu")
        assert expected.answer is not None
        got = ask(client, picture, directory.name)
        assert got["model"] == directory.name
        assert as_pairs(got["student"]) == list(expected.answer.top)
    with pytest.raises(AppError, match="there is no model 'third'; there are: first, second"):
        ask(client, picture, "third")
    with pytest.raises(AppError, match=r"there is no model \['first'\]"):
        ask(client, picture, ["first"])  # type: ignore[arg-type]
    with pytest.raises(AppError, match=r"there is no model '<img>'; there are"):  # as it is: only a page shows HTML
        ask(client, picture, "<img>")
    with pytest.raises(AppError, match=r"there is no student in 'int4'; choose one of: fp32"):
        ask(client, picture, "first", "int4")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("text.jpg", b"this is no picture", r"cannot read text\.jpg as an image: not a JPEG"),
        ("empty.png", b"", r"cannot read empty\.png as an image: the file is empty"),
        ("bomb.png", make_png(60_000, 60_000), r"bomb\.png is too large"),
        ("drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", r"cannot read drawing\.svg as an image"),
    ],
    ids=["text", "empty", "bomb", "svg"],
)
def test_a_bad_file_ends_in_a_clear_message_and_no_traceback(
    client: Client, server: Server, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    bad = tmp_path / name
    bad.write_bytes(content)
    with pytest.raises(AppError, match=message) as error:
        ask(client, bad)
    assert str(tmp_path) not in str(error.value)
    assert "gradio" not in str(error.value)  # and not the server's own path of the upload
    assert "Traceback" not in server.log.read_text()


@pytest.mark.parametrize("image", [None, {}, "a.png"], ids=repr)
def test_a_call_without_a_picture_gets_a_message_that_says_what_to_pass(
    client: Client, server: Server, image: Any
) -> None:
    with pytest.raises(AppError, match=r"upload"):
        client.predict(image, api_name="/predict")
    assert "Traceback" not in server.log.read_text()


@pytest.mark.slow
def test_a_very_large_picture_is_answered(client: Client, tmp_path: Path) -> None:
    picture = tmp_path / "large.png"
    Image.new("RGB", (12_000, 9_000), "red").save(picture)
    got = ask(client, picture)
    assert (got["width"], got["height"], got["teacher"]["top"][0]["class"]) == (12_000, 9_000, "red")


def test_the_function_for_programs_is_described(client: Client) -> None:
    (name,) = client.view_api(return_format="dict", print_info=False)["named_endpoints"]  # type: ignore[index]
    assert name == "/predict"


def test_a_directory_that_lacks_a_file_names_the_command(tmp_path: Path, model_dirs: list[ModelDir]) -> None:
    with pytest.raises(ArtifactError, match="there is no model directory to show; name one: toolkit demo MODEL_DIR"):
        build_app([])
    with pytest.raises(ArtifactError, match=r"there is no model directory .*none; make one with: toolkit run"):
        build_app([*model_dirs, ModelDir(tmp_path / "none")])


def test_many_programs_at_once_all_get_their_own_answer(url: str, model_dirs: list[ModelDir], tmp_path: Path) -> None:
    pictures = [save(tmp_path / f"{seed}.png", seed) for seed in range(6)]

    def visit(picture: Path) -> list[tuple[str, float]]:
        return as_pairs(ask(connect(url), picture)["student"])  # Gradio's client is not made for several threads

    with ThreadPoolExecutor(6) as visitors:
        answers = list(visitors.map(visit, pictures))
    for answer, expected in zip(answers, predict_files(model_dirs[0].path, pictures, provider="cpu"), strict=True):
        assert expected.answer is not None
        assert answer == list(expected.answer.top)


def test_a_model_that_is_not_there_is_reported_on_the_page(model_dirs: list[ModelDir]) -> None:
    with pytest.raises(gradio.Error, match="there is no model '&lt;b&gt;'; there are: first, second"):
        Handlers(open_models(model_dirs, "cpu")).pick("<b>")
