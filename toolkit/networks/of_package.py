"""Networks that a function of an installed package returns, as `package.module:function`. They run its code."""

import importlib
import inspect
import re
from collections.abc import Callable

from torch import nn

from toolkit.architectures import CallSettings, NetworkSettings
from toolkit.errors import RecipeError, did_you_mean, shorten
from toolkit.networks import trust
from toolkit.networks.families import Family, call_builder, in_words

FORM = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


class OfPackage(Family):
    """The family; nothing is imported without the permission of trust.py."""

    def require(self, architecture: str) -> None:
        _import(architecture)

    def build(
        self, architecture: str, num_classes: int, settings: NetworkSettings, image_size: int | None
    ) -> nn.Module:
        function = _import(architecture)
        assert isinstance(settings, CallSettings)
        _require_parameters(architecture, function, settings)
        return call_builder(architecture, function, num_classes=num_classes, **settings.arguments)


def _import(architecture: str) -> Callable[..., object]:
    if not FORM.fullmatch(architecture):
        raise RecipeError(
            f"unknown architecture {shorten(architecture)!r}",
            "write timm:NAME, transformers:TYPE, or package.module:function for a function that returns an nn.Module",
        )
    trust.require(architecture)
    place, _, name = architecture.partition(":")
    try:
        module = importlib.import_module(place)
    except Exception as error:  # the module's own code may raise anything
        raise RecipeError(
            f"{architecture}: the module {place} cannot be imported: {in_words(error)}",
            "install its package into this environment, or mend the name package.module:function",
        ) from error
    function: object = getattr(module, name, None)
    if not callable(function):
        others = [other for other, value in vars(module).items() if callable(value)]
        raise RecipeError(
            f"{architecture}: {place} has no function {name}",
            f"{did_you_mean(name, others)}give a function or class that returns an nn.Module",
        )
    return function


def _require_parameters(architecture: str, function: Callable[..., object], settings: CallSettings) -> None:
    """RecipeError unless the function takes num_classes and each of the arguments by name, as far as it says that."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some functions that are not written in Python
        return
    if any(one.kind is one.VAR_KEYWORD for one in parameters):
        return
    takes = [one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    if refused := [name for name in ("num_classes", *settings.arguments) if name not in takes]:
        raise RecipeError(
            f"{architecture} takes no argument {refused[0]}",
            f"{did_you_mean(refused[0], takes)}it takes: {', '.join(takes) or 'none'}; "
            "the toolkit gives num_classes and the setting arguments",
        )
