"""The demo: a page in the browser where teacher and student answer side by side.

Works from the ONNX files alone and calls no other host: no analytics, no version check, no share link, system fonts.
"""

import html
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio

from toolkit import console
from toolkit.demo.pair import TOP_K, Comparison, Pair, open_pair
from toolkit.errors import ArtifactError, DataError
from toolkit.modeldir import ModelDir
from toolkit.predict import Answer

KEEP_UPLOADS_S = 3600
"""s; uploaded pictures older than this are deleted, all of them when the server stops"""
QUEUE_LENGTH = 64
"""requests that may wait; the rest are told to come back"""

HINT = "Drop a picture on the left, paste one, or click to choose a file."
STYLE = """
.kd-seen img {
  box-sizing: border-box; width: 100%; height: 100%; padding: 32px 8px 8px;
  object-fit: contain; image-rendering: pixelated;
}
.kd-verdict p { font-size: 1.15em; }
#teacher h2, #student h2 { font-size: 1.4em; padding-bottom: 0.4em; }
"""


def build_app(model_dirs: Sequence[ModelDir], provider: str = "auto") -> gradio.Blocks:
    """The page, with a picker where there are several model directories.

    Raises ArtifactError that names the command for a missing teacher.onnx or student.onnx, DeviceError.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    pairs = _open_pairs(model_dirs, provider)

    def compare(picture: dict[str, Any] | None, model: str | None = None) -> tuple[Any, ...]:
        """Ask teacher and student about a picture."""
        if picture is None:
            return HINT, None, "", None, "", None
        return _show(_compare(pairs, picture, model), pairs[model or next(iter(pairs))])

    with gradio.Blocks(
        title="kd-toolkit: teacher and student",
        analytics_enabled=False,
        delete_cache=(KEEP_UPLOADS_S, KEEP_UPLOADS_S),
    ) as app:
        gradio.Markdown("# Teacher and student\nOne picture, two networks: the large teacher and the small student.")
        model = gradio.Dropdown(list(pairs), value=next(iter(pairs)), label="Model", visible=len(pairs) > 1)
        with gradio.Row():
            with gradio.Column(scale=2, min_width=260):
                picture = gradio.Image(
                    label="Picture", type="filepath", image_mode=None, height=300, buttons=[], elem_id="picture"
                )
                seen = gradio.Image(
                    label="What the networks see",
                    format="png",
                    height=200,
                    buttons=[],
                    interactive=False,
                    elem_id="seen",
                    elem_classes="kd-seen",
                    alt_text="The picture after resizing and cropping",
                )
            with gradio.Column(scale=3, min_width=320):
                verdict = gradio.Markdown(HINT, label="Verdict", elem_id="verdict", elem_classes="kd-verdict")
                with gradio.Row():
                    teacher, teacher_facts = _answer_column("Teacher")
                    student, student_facts = _answer_column("Student")
        outputs = [verdict, teacher, teacher_facts, student, student_facts, seen]
        # preprocess=False: the function gets the uploaded file itself, so that a bad one ends in our message and a
        # good one is decoded by the same code as in `toolkit predict`.
        settings: dict[str, Any] = {"inputs": [picture, model], "outputs": outputs, "preprocess": False}
        picture.change(compare, **settings, api_name="compare", show_progress="minimal")
        model.change(compare, **settings, api_visibility="private", show_progress="minimal")
    return app.queue(max_size=QUEUE_LENGTH)


def _open_pairs(model_dirs: Sequence[ModelDir], provider: str) -> dict[str, Pair]:
    if not model_dirs:
        raise ArtifactError("there is no model directory to show", "name one: toolkit demo MODEL_DIR")
    names = [directory.name for directory in model_dirs]
    return {
        str(directory.path) if names.count(directory.name) > 1 else directory.name: open_pair(directory, provider)
        for directory in model_dirs
    }


def _answer_column(title: str) -> tuple[gradio.Label, gradio.Markdown]:
    with gradio.Column(min_width=160):
        label = gradio.Label(label=title, num_top_classes=TOP_K, elem_id=title.lower())
        return label, gradio.Markdown("", label=f"{title}: latency and size", elem_id=f"{title.lower()}-facts")


def _compare(pairs: dict[str, Pair], picture: dict[str, Any], model: str | None) -> Comparison:
    pair = pairs.get(model or next(iter(pairs)))
    if pair is None:
        raise _page_error(f"there is no model {model!r}; there are: {', '.join(pairs)}")
    try:
        return pair.compare(Path(picture["path"]), picture.get("orig_name") or "the picture")
    except DataError as error:
        raise _page_error(str(error)) from None


def _show(comparison: Comparison, pair: Pair) -> tuple[Any, ...]:
    """Values for verdict, teacher, teacher_facts, student, student_facts, seen."""
    return (
        _verdict(comparison),
        dict(comparison.teacher.top),
        _facts(comparison.teacher, pair.teacher_bytes),
        dict(comparison.student.top),
        _facts(comparison.student, pair.student_bytes),
        comparison.seen,
    )


def _verdict(comparison: Comparison) -> str:
    teacher, student = (html.escape(answer.top[0][0]) for answer in (comparison.teacher, comparison.student))
    if comparison.agree:
        return f"✓ They agree: **{teacher}**"
    return f"✗ They disagree: the teacher says **{teacher}**, the student **{student}**"


def _facts(answer: Answer, size_bytes: int) -> str:
    return f"{answer.latency_ms:.2f} ms on this picture · {console.size(size_bytes)}"


def _page_error(message: str) -> gradio.Error:
    """A message on the page; the file's name in it is the visitor's, and gradio shows messages as HTML."""
    return gradio.Error(html.escape(message), duration=None, print_exception=False)
