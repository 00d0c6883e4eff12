"""The demo's page: teacher and student side by side, in four tabs, for people and for programs.

Works from the model directory alone, without torch, and calls no other host: system fonts, no script but Gradio's and
page.js, which draws what Gradio has no component for.
"""

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio

from toolkit.demo.contents import Contents, read_contents, show_pixels
from toolkit.demo.pair import Pair, open_pair
from toolkit.demo.texts import TEXTS
from toolkit.errors import ArtifactError, DataError
from toolkit.modeldir import ModelDir
from toolkit.palette import COLOURS
from toolkit.predict import PictureError

KEEP_UPLOADS_S = 3600
"""s; uploaded pictures older than this are deleted, all of them when the server stops"""
ONE_AT_A_TIME: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "networks"}
"""A large picture takes much memory, and two requests at once would spoil each other's latency."""

SANS = ("ui-sans-serif", "system-ui", "sans-serif")
MONO = ("ui-monospace", "monospace")

words = gradio.I18n(**TEXTS)


def page_style() -> dict[str, Any]:
    """What `launch` needs to know of the page: its looks, its script, its languages."""
    beside = Path(__file__).parent
    colours = "".join(f"--kd-{role}: {colour};" for role, colour in COLOURS.items())
    texts = json.dumps(TEXTS, ensure_ascii=False).replace("<", "\\u003c")
    script = (beside / "page.js").read_text(encoding="utf-8")
    return {
        "theme": gradio.themes.Default(font=SANS, font_mono=MONO),
        "css": f":root {{ {colours} }}\n" + (beside / "page.css").read_text(encoding="utf-8"),
        "head": f"<script>window.kd = {{ texts: {texts} }};\n{script}</script>",
        "i18n": words,
        "footer_links": ["api"],
    }


@dataclass(frozen=True)
class Shown:
    """A model directory on the page."""

    pair: Pair
    contents: Contents


def build_app(model_dirs: Sequence[ModelDir], provider: str = "auto", queue_length: int | None = None) -> gradio.Blocks:
    """The page, with a picker where there are several model directories; `queue_length` requests may wait.

    Raises ArtifactError that names the command for a missing teacher.onnx or student.onnx, DeviceError.
    """
    models = _open(model_dirs, provider)
    first = next(iter(models.values()))

    def predict(image: gradio.FileData, model: str = "", precision: str = "fp32") -> dict[str, Any]:
        """Ask teacher and student about a picture; the first model where none is named."""
        try:
            return _answer(models, image, model, precision)
        except DataError as error:
            raise _message(str(error)) from None

    def look(picture: dict[str, Any] | None, model: str, precision: str) -> tuple[Any, ...]:
        if picture is None:
            return None, None, None
        try:
            answer = _answer(models, picture, model, precision, with_picture=True)
        except DataError as error:
            reason = error.reason if isinstance(error, PictureError) else ""
            return {"problem": {"reason": reason, "message": str(error)}}, None, None
        return answer, _seen(answer), answer

    def pick(model: str) -> tuple[Any, ...]:
        chosen = _find(models, model)
        return (_precision_radio(chosen.pair, update=True), *_fill(chosen.contents))

    def choose(kind: str, model: str, event: gradio.EventData) -> Any:
        place = event._data.get("index") if isinstance(event._data, dict) else None
        try:
            picture = _find(models, model).contents.picture(kind, place if isinstance(place, int) else -1)
        except ArtifactError as error:
            raise _message(str(error)) from None
        return gradio.skip() if picture is None else picture

    def choose_example(model: str, event: gradio.EventData) -> Any:
        return choose("examples", model, event)

    def choose_disagreement(model: str, event: gradio.EventData) -> tuple[Any, Any]:
        return choose("disagreements", model, event), gradio.Tabs(selected="compare")

    examples_value, disagreements_value, report_value, plots_value = _fill(first.contents)
    with gradio.Blocks(
        title="kd-toolkit: teacher and student", analytics_enabled=False, delete_cache=(KEEP_UPLOADS_S, KEEP_UPLOADS_S)
    ) as app:
        _drawing("header", None)
        with gradio.Row(visible=len(models) > 1 or len(first.pair.students) > 1):
            model = gradio.Dropdown(
                list(models), value=next(iter(models)), label=words("model"), visible=len(models) > 1, elem_id="model"
            )
            precision = _precision_radio(first.pair)
        with gradio.Tabs() as tabs:
            with gradio.Tab(words("compare"), id="compare"):
                with gradio.Row():
                    with gradio.Column(scale=2, min_width=260):
                        picture = gradio.Image(
                            label=words("picture"),
                            type="filepath",
                            image_mode=None,
                            format="png",
                            height=300,
                            buttons=[],
                            elem_id="picture",
                        )
                        seen = _drawing("seen", None)
                    with gradio.Column(scale=3, min_width=300):
                        answers = _drawing("answers", None)
                examples = _drawing("examples", examples_value)
            with gradio.Tab(words("knowledge"), id="knowledge-tab"):
                knowledge = _drawing("knowledge", None)
            with gradio.Tab(words("disagreements"), id="disagreements-tab"):
                disagreements = _drawing("disagreements", disagreements_value)
            with gradio.Tab(words("benchmark"), id="benchmark-tab"):
                report = _drawing("report", report_value)
                plots = _drawing("plots", plots_value)
        # preprocess=False: the function gets the uploaded file itself, so that a bad one ends in our message and a
        # good one is decoded by the same code as in `toolkit predict`.
        looking: dict[str, Any] = {
            "fn": look,
            "inputs": [picture, model, precision],
            "outputs": [answers, seen, knowledge],
            "preprocess": False,
            "api_visibility": "private",
            "show_progress": "minimal",
            "trigger_mode": "always_last",  # what was chosen while a request ran is asked afterwards
            **ONE_AT_A_TIME,
        }
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "trigger_mode": "always_last"}
        picture.change(**looking)
        precision.input(**looking)
        outputs = [precision, examples, disagreements, report, plots]
        model.input(pick, model, outputs, **quiet).then(**looking)
        examples.select(choose_example, model, picture, **quiet)
        disagreements.select(choose_disagreement, model, [picture, tabs], **quiet)
        gradio.api(predict, api_name="predict", **ONE_AT_A_TIME)
    return app.queue(max_size=queue_length)


def _open(model_dirs: Sequence[ModelDir], provider: str) -> dict[str, Shown]:
    if not model_dirs:
        raise ArtifactError("there is no model directory to show", "name one: toolkit demo MODEL_DIR")
    names = [directory.name for directory in model_dirs]
    return {
        str(directory.path) if names.count(directory.name) > 1 else directory.name: Shown(
            open_pair(directory, provider), read_contents(directory)
        )
        for directory in model_dirs
    }


def _find(models: dict[str, Shown], name: str) -> Shown:
    if not isinstance(name, str) or (name and name not in models):
        raise _message(f"there is no model {name!r}; there are: {', '.join(models)}")
    return models[name or next(iter(models))]


def _answer(
    models: dict[str, Shown], picture: Any, model: str, precision: str, *, with_picture: bool = False
) -> dict[str, Any]:
    pair = _find(models, model).pair
    if not isinstance(picture, dict) or not isinstance(picture.get("path"), str):
        raise DataError("the image is no uploaded file", "upload a picture and pass what the upload gave")
    comparison = pair.compare(Path(picture["path"]), picture.get("orig_name") or "the picture", precision or "fp32")
    answer = {"model": model or next(iter(models)), **comparison.to_json()}
    return answer | {"src": show_pixels(comparison.seen)} if with_picture else answer


def _seen(answer: dict[str, Any]) -> dict[str, Any]:
    return {"src": answer["src"], "side": answer["image_size"], "width": answer["width"], "height": answer["height"]}


def _fill(contents: Contents) -> tuple[Any, ...]:
    """Values for examples, disagreements, report and plots."""
    return contents.examples, contents.examples, contents.report, contents.plots


def _precision_radio(pair: Pair, *, update: bool = False) -> Any:
    choices = list(pair.students)
    settings: dict[str, Any] = {"choices": choices, "value": choices[0], "visible": len(choices) > 1}
    return (
        gradio.update(**settings) if update else gradio.Radio(**settings, label=words("precision"), elem_id="precision")
    )


ON_LOAD = {
    "examples": "kd.onTile(element, trigger)",
    "disagreements": "kd.onTile(element, trigger)",
    "answers": "kd.onAnswers(props)",
}


def _drawing(name: str, value: Any) -> gradio.HTML:
    """What page.js draws: `kd.name(value)`."""
    return gradio.HTML(
        value,
        html_template="${kd." + name + "(value)}",
        js_on_load=ON_LOAD.get(name),
        apply_default_css=False,
        elem_id=name,
    )


def _message(text: str) -> gradio.Error:
    """A message to a program or on the page; names in it are the visitor's, and gradio shows messages as HTML."""
    return gradio.Error(html.escape(text, quote=False), duration=None, print_exception=False)
