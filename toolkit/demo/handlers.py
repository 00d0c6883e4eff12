"""The functions behind the page's events and behind requests of programs: no layout here."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio

from toolkit.demo.contents import Contents, read_contents, show_pixels
from toolkit.demo.pair import Pair, open_pair
from toolkit.errors import ArtifactError, DataError
from toolkit.modeldir import ModelDir
from toolkit.predict import PictureError


@dataclass(frozen=True)
class DemoModel:
    """A model directory on the page."""

    pair: Pair
    contents: Contents


def open_models(model_dirs: Sequence[ModelDir], provider: str) -> dict[str, DemoModel]:
    """By name, or by path if two have the same name. Raises ArtifactError, DeviceError."""
    if not model_dirs:
        raise ArtifactError("there is no model directory to show", "name one: toolkit demo MODEL_DIR")
    names = [directory.name for directory in model_dirs]
    return {
        str(directory.path) if names.count(directory.name) > 1 else directory.name: DemoModel(
            open_pair(directory, provider), read_contents(directory)
        )
        for directory in model_dirs
    }


@dataclass(frozen=True)
class Handlers:
    """One method per event. They return values of components, in the order in which page.py lists these."""

    models: Mapping[str, DemoModel]

    def predict(self, image: gradio.FileData, model: str = "", precision: str = "fp32") -> dict[str, Any]:
        """Ask teacher and student about a picture; the first model, unless one is named."""
        try:
            return self._answer(image, model, precision)
        except DataError as error:  # a program gets the words as they are; `_message` is for the page
            raise gradio.Error(str(error), print_exception=False) from None

    def look(self, picture: dict[str, Any] | None, model: str, precision: str) -> tuple[Any, ...]:
        """The answers, the networks' input, and the value of the tab Dark knowledge."""
        if picture is None:
            return None, None, None
        try:
            answer = self._answer(picture, model, precision, with_picture=True)
        except DataError as error:
            reason = error.reason if isinstance(error, PictureError) else ""
            return {"problem": {"reason": reason, "message": str(error)}}, None, None
        seen = {name: answer[name] for name in ("src", "image_size", "width", "height")}
        return answer, seen, answer

    def pick(self, model: str) -> tuple[Any, ...]:
        """The precisions of another model, and the values of its tabs."""
        try:
            chosen = self._find(model)
        except DataError as error:
            raise _message(str(error)) from None
        return (gradio.update(**precision_choices(chosen.pair)), *tab_values(chosen.contents))

    def choose_example(self, model: str, event: gradio.EventData) -> Any:
        """The full picture of a tile."""
        return self._picture("examples", model, event)

    def choose_disagreement(self, model: str, event: gradio.EventData) -> tuple[Any, Any]:
        """The full picture of a tile, and the tab that shows it."""
        return self._picture("disagreements", model, event), gradio.Tabs(selected="compare")

    def _picture(self, kind: str, model: str, event: gradio.EventData) -> Any:
        place = event._data.get("index") if isinstance(event._data, dict) else None
        try:
            picture = self._find(model).contents.picture(kind, place if isinstance(place, int) else -1)
        except (ArtifactError, DataError) as error:
            raise _message(str(error)) from None
        return gradio.skip() if picture is None else picture

    def _find(self, name: str) -> DemoModel:
        if not isinstance(name, str) or (name and name not in self.models):
            raise DataError(f"there is no model {name!r}", f"there are: {', '.join(self.models)}")
        return self.models[name or next(iter(self.models))]

    def _answer(self, picture: Any, model: str, precision: str, *, with_picture: bool = False) -> dict[str, Any]:
        pair = self._find(model).pair
        if not isinstance(picture, dict) or not isinstance(picture.get("path"), str):
            raise DataError("the image is not an uploaded file", "upload a picture and pass the answer of the upload")
        comparison = pair.compare(Path(picture["path"]), picture.get("orig_name") or "the picture", precision or "fp32")
        answer = {"model": model or next(iter(self.models)), **comparison.to_json()}
        return answer | {"src": show_pixels(comparison.seen)} if with_picture else answer


def precision_choices(pair: Pair) -> dict[str, Any]:
    """Settings of the switch; it is hidden if there is nothing to choose."""
    choices = list(pair.students)
    return {"choices": choices, "value": choices[0], "visible": len(choices) > 1}


def tab_values(contents: Contents) -> tuple[Any, ...]:
    """Values for examples, disagreements, report and plots."""
    return contents.examples, contents.examples, contents.report, contents.plots


def _message(text: str) -> gradio.Error:
    """A message on the page, escaped: its names come from the visitor, and gradio shows messages as HTML."""
    return gradio.Error(html.escape(text, quote=False), duration=None, print_exception=False)
