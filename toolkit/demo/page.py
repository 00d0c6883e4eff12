"""The demo's page: teacher and student side by side, in four tabs, for people and for programs.

It needs the model directory alone, without torch, and contacts no other host: system fonts, and no scripts but Gradio's
and page.js. page.js draws everything for which Gradio has no component.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio

from toolkit.demo.handlers import Handlers, open_models, precision_choices, tab_values
from toolkit.demo.language import LOCALES
from toolkit.demo.texts import TEXTS
from toolkit.modeldir import ModelDir
from toolkit.plotting import COLOURS

KEEP_UPLOADS_S = 3600
"""s; uploaded pictures older than this are deleted, all of them when the server stops"""
ONE_AT_A_TIME: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "networks"}
"""A large picture takes much memory, and two requests at once would spoil each other's latency."""

# White on Gradio's orange is too faint to read; the sign-in page has such a button.
PARTS = ("", "_dark", "_hover", "_hover_dark")
SIGN_IN = {f"button_primary_background_fill{part}": "#c2410c" for part in PARTS}

SANS = ("ui-sans-serif", "system-ui", "sans-serif")
MONO = ("ui-monospace", "monospace")

# Gradio gives its upload button another name than its text, which misleads voice control; a blank is no name.
words = gradio.I18n(**{LOCALES[language]: {**texts, "image.drop_to_upload": " "} for language, texts in TEXTS.items()})


def page_style() -> dict[str, Any]:
    """The page's arguments of `launch`: its style, its script, its languages."""
    beside = Path(__file__).parent
    colours = "".join(f"--kd-{role}: {colour};" for role, colour in COLOURS.items())
    texts = json.dumps(TEXTS, ensure_ascii=False).replace("<", "\\u003c")
    script = (beside / "page.js").read_text(encoding="utf-8")
    return {
        "theme": gradio.themes.Default(font=SANS, font_mono=MONO).set(**SIGN_IN),
        "css": f":root {{ {colours} }}\n" + (beside / "page.css").read_text(encoding="utf-8"),
        "head": f"<script>window.kd = {{ texts: {texts} }};\n{script}</script>",
        "i18n": words,
        "footer_links": [],  # Gradio's API page needs files that do not exist, and names settings without effect
    }


def build_app(model_dirs: Sequence[ModelDir], provider: str = "auto", queue_length: int | None = None) -> gradio.Blocks:
    """The page, with a picker if there are several model directories; `queue_length` requests may wait.

    Raises ArtifactError that names the command for a missing teacher.onnx or student.onnx, DeviceError.
    """
    handlers = Handlers(open_models(model_dirs, provider))
    with gradio.Blocks(
        title="kd-toolkit: teacher and student", analytics_enabled=False, delete_cache=(KEEP_UPLOADS_S, KEEP_UPLOADS_S)
    ) as app:
        _connect(_lay_out(handlers), handlers)
    return app.queue(max_size=queue_length)


@dataclass(frozen=True)
class Layout:
    """The components that events read or write."""

    model: gradio.Dropdown
    precision: gradio.Radio
    tabs: gradio.Tabs
    picture: gradio.Image
    seen: gradio.HTML
    answers: gradio.HTML
    examples: gradio.HTML
    knowledge: gradio.HTML
    disagreements: gradio.HTML
    report: gradio.HTML
    plots: gradio.HTML


def _lay_out(handlers: Handlers) -> Layout:
    names, first = list(handlers.models), next(iter(handlers.models.values()))
    examples_value, disagreements_value, report_value, plots_value = tab_values(first.contents)
    several = len(names) > 1
    _drawing("header")
    with gradio.Row(visible=several or len(first.pair.students) > 1):
        model = gradio.Dropdown(
            names, value=names[0], label=words("model"), visible=several, elem_id="model", min_width=260
        )
        choices = precision_choices(first.pair)
        precision = gradio.Radio(**choices, label=words("precision"), elem_id="precision", min_width=260)
    with gradio.Tabs(overflow_behavior="wrap") as tabs:
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
                    seen = _drawing("seen")
                with gradio.Column(scale=3, min_width=300):
                    answers = _drawing("answers")
            examples = _drawing("examples", examples_value)
        with gradio.Tab(words("knowledge"), id="knowledge-tab"):
            knowledge = _drawing("knowledge")
        with gradio.Tab(words("disagreements"), id="disagreements-tab"):
            disagreements = _drawing("disagreements", disagreements_value)
        with gradio.Tab(words("benchmark"), id="benchmark-tab"):
            report = _drawing("report", report_value)
            plots = _drawing("plots", plots_value)
    return Layout(model, precision, tabs, picture, seen, answers, examples, knowledge, disagreements, report, plots)


def _connect(page: Layout, handlers: Handlers) -> None:
    """Events of the page, and the function for programs."""
    quiet: dict[str, Any] = {
        "api_visibility": "private",
        "show_progress": "hidden",
        "trigger_mode": "always_last",  # a choice made while a request runs is asked afterwards
    }
    # preprocess=False: the function gets the uploaded file itself, so that a bad file ends in our message and a
    # good one is decoded by the same code as in `toolkit predict`.
    looking: dict[str, Any] = {
        **quiet,
        "fn": handlers.look,
        "inputs": [page.picture, page.model, page.precision],
        "outputs": [page.answers, page.seen, page.knowledge],
        "preprocess": False,
        "show_progress": "minimal",
        **ONE_AT_A_TIME,
    }
    page.picture.change(**looking)
    page.precision.input(**looking)
    filled = [page.precision, page.examples, page.disagreements, page.report, page.plots]
    page.model.input(handlers.pick, page.model, filled, **quiet).then(**looking)
    page.examples.select(handlers.choose_example, page.model, page.picture, **quiet)
    page.disagreements.select(handlers.choose_disagreement, page.model, [page.picture, page.tabs], **quiet)
    gradio.api(handlers.predict, api_name="predict", **ONE_AT_A_TIME)


ON_LOAD = {
    "examples": "kd.onTile(element, trigger)",
    "disagreements": "kd.onTile(element, trigger)",
    "answers": "kd.onAnswers(props)",
}


def _drawing(name: str, value: Any = None) -> gradio.HTML:
    """A component that page.js draws: `kd.name(value)`."""
    return gradio.HTML(
        value,
        html_template="${kd." + name + "(value)}",
        js_on_load=ON_LOAD.get(name),
        apply_default_css=False,
        elem_id=name,
    )
