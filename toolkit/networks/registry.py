"""Networks by name: the notebook's student, every classifier of torchvision, and those that users register.

A network of your own is one file: a builder and the model of its settings (docs/networks.md).
"""

import contextlib
import difflib
import functools
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.architectures import (
    ANSWERS,
    DEPTHWISE,
    ENSEMBLE,
    LITE0,
    ONNX,
    PACKAGE,
    TIMM,
    TRANSFORMERS,
    NetworkSettings,
    add_settings,
    check_settings,
    family_of,
    settings_of,
)
from toolkit.errors import RecipeError, ToolkitError, WeightsError, did_you_mean, one_line, shorten
from toolkit.networks.class_map import UNKNOWN
from toolkit.networks.depthwise import DepthwiseStudent
from toolkit.networks.ensemble import OfEnsemble
from toolkit.networks.families import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Family,
    Pretrained,
    call_builder,
    in_words,
    no_pretrained,
)
from toolkit.networks.lite0 import Lite0
from toolkit.networks.of_answers import Answers, OfAnswers
from toolkit.networks.of_onnx import OfOnnx, OnnxNetwork
from toolkit.networks.of_package import OfPackage
from toolkit.networks.of_timm import OfTimm
from toolkit.networks.of_transformers import OfTransformers
from toolkit.settings import NetworkRecipe, StudentRecipe, TeacherRecipe

__all__ = ["DEPTHWISE", "NetworkSettings", "NetworkSpec", "register"]

BUILDER_ARGUMENTS: dict[str, dict[str, Any]] = {
    # Auxiliary heads would make training outputs tuples; without them both are plain classifiers.
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}
"""Arguments that some of torchvision's classifiers need."""

REFUSALS = (AssertionError, RuntimeError, ValueError)
"""Networks refuse sizes with any of these."""

NEVER = -1000.0
"""the logit of a class that a network does not know: a probability of 0 at any temperature that is used"""

MANY_CLASSES = 7919
"""A number that no layer has but a head of so many classes."""

Builder = TypeVar("Builder", bound=Callable[..., nn.Module])

_builders: dict[str, Callable[..., nn.Module]] = {DEPTHWISE: DepthwiseStudent}
_modules: dict[str, str | None] = {}
"""Registered architecture → the module whose import registers it; None for a script or a notebook."""


def register(name: str, settings: type[NetworkSettings] = NetworkSettings) -> Callable[[Builder], Builder]:
    """A decorator that makes a network known as architecture `name`, in this process.

    It goes before a class or function that takes the number of classes and, as keyword arguments, the settings, and
    makes a network: float images (N, 3, S, S), already normalised, → logits (N, number of classes). `settings` declares
    those settings; they become keys of the recipe's [student] and [teacher]. Raises RecipeError if the name or one of
    the settings' names is taken or not allowed. To register a name again replaces it.
    """
    _require_free(name, settings)
    module = sys._getframe(1).f_globals
    module_name = str(module.get("__name__"))
    can_be_imported = module_name != "__main__" and vars(sys.modules.get(module_name, sys)) is module

    def add(builder: Builder) -> Builder:
        if not callable(builder):
            raise RecipeError(
                f"{name!r} is registered with a {type(builder).__name__}",
                "put the decorator before a class or a function",
            )
        add_settings(name, settings)
        _builders[name] = builder
        _modules[name] = module_name if can_be_imported else None
        return builder

    return add


@dataclass(frozen=True)
class NetworkSpec:
    """All that a network is built from, except the data: weights files carry it, and recipes name it.

    `settings` are the architecture's own, as JSON has them; defaults may be left out. `enlarge` k lets the network see
    images k times as large: networks for large pictures keep too little of small ones. A network of other classes than
    the data's has so many `outputs`, and `columns` are the places of the data's classes among them (class_map.py).
    """

    architecture: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    enlarge: int = 1
    outputs: int = 0
    columns: tuple[int, ...] = ()

    @classmethod
    def of(cls, section: NetworkRecipe, enlarge: int = 1) -> "NetworkSpec":
        """The network that a recipe's [student] or [teacher] names."""
        return cls(section.architecture, section.settings, enlarge)

    def __hash__(self) -> int:
        return hash((self.architecture, json.dumps(dict(self.settings), sort_keys=True), self.enlarge, self.columns))

    @property
    def unknown(self) -> list[int]:
        """Places of the data's classes that the network does not know."""
        return [place for place, column in enumerate(self.columns) if column == UNKNOWN]

    def to_json(self) -> dict[str, Any]:
        """For metadata in JSON; NetworkSpec.from_json reads it."""
        return {**vars(self), "settings": dict(self.settings), "columns": list(self.columns)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "NetworkSpec":
        return cls(**{**values, "columns": tuple(values.get("columns", ()))})

    def build(self, num_classes: int, image_size: int | None = None) -> nn.Module:
        """A network with random weights: float images (N, 3, S, S) → logits (N, num_classes).

        With `image_size` (px, S) the network is proven to take them, and the few that are built for one size are built
        for that one (vit_*, maxvit_t: 224 px without it). Raises RecipeError for an unknown name, settings that the
        architecture does not have, or a size that the network refuses.
        """
        family = find_family(self.architecture)
        settings = self._check_settings()
        with self._refusing(image_size):
            shown_px = None if image_size is None else image_size * self.enlarge
            network = family.build(self.architecture, self.outputs or num_classes, settings, shown_px)
        if self.enlarge > 1:
            network.register_forward_pre_hook(Enlarge(self.enlarge))
        if self.columns:
            network.register_forward_hook(PickColumns(self.columns))
        if image_size is not None and not has_file(network) and not isinstance(network, Answers):
            with self._refusing(image_size):
                self._try_once(network, num_classes, image_size)
        vars(network)["spec"] = replace(self, settings=settings.model_dump(mode="json"))
        return network

    def _check_settings(self) -> NetworkSettings:
        try:
            return check_settings(self.architecture, self.settings)
        except ValidationError as error:
            problem = error.errors()[0]
            name = ".".join(map(str, problem["loc"]))
            takes = ", ".join(settings_of(self.architecture).model_fields) or "none"
            raise RecipeError(
                f"{self.architecture}: the setting {name} = {problem['input']!r} is not allowed ({problem['msg']})",
                f"its settings are: {takes}",
            ) from None

    def _try_once(self, network: nn.Module, num_classes: int, image_size: int) -> None:
        with torch.no_grad():
            logits = network.eval()(torch.zeros(1, 3, image_size, image_size))
        network.train()
        if not isinstance(logits, Tensor) or logits.shape != (1, num_classes):
            answer = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
            raise RecipeError(
                f"{self.architecture} answers one image of {num_classes} classes with {answer}",
                f"a network has to return logits, a tensor of shape (1, {num_classes})",
            )
        if next(network.parameters(), None) is None:
            raise RecipeError(
                f"{self.architecture} has no parameters to train",
                "keep its layers as attributes, or in an nn.ModuleList",
            )

    @contextlib.contextmanager
    def _refusing(self, image_size: int | None) -> Iterator[None]:
        """RecipeError, naming the size, if a network refuses it."""
        try:
            yield
        except ToolkitError:
            raise
        except Exception as error:
            if self.architecture in _modules or family_of(self.architecture) == PACKAGE:
                raise RecipeError(
                    f"{self.architecture} fails on one image of {image_size} px (data.image_size): {in_words(error)}",
                    "mend its forward; or, if it is made for another size, set data.image_size",
                ) from error
            if image_size is None or not isinstance(error, REFUSALS):
                raise
            raise RecipeError(
                f"{self.architecture} cannot take images of {image_size} px (data.image_size): {one_line(error)}",
                "use a size it can take (224 suits most of torchvision's), or another architecture",
            ) from error


class Enlarge:
    """A hook before a network: float images (N, 3, S, S) → (N, 3, kS, kS), bilinear."""

    def __init__(self, times: int) -> None:
        self.times = times

    def __call__(self, network: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        return F.interpolate(inputs[0], scale_factor=float(self.times), mode="bilinear", align_corners=False)


class PickColumns:
    """A hook after a network: logits (N, outputs) → (N, C), those of the data's classes.

    A class that the network does not know gets NEVER.
    """

    def __init__(self, columns: Sequence[int]) -> None:
        self.columns = tuple(columns)

    def __call__(self, network: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        places = torch.tensor([max(column, 0) for column in self.columns], device=output.device)
        known = output.index_select(1, places)
        unknown = torch.tensor([column == UNKNOWN for column in self.columns], device=output.device)
        return known if UNKNOWN not in self.columns else known.masked_fill(unknown, NEVER)


def has_file(network: nn.Module) -> bool:
    """Whether an ONNX file is, or is to be, a part of it: such a network is frozen, and answers with its file alone."""
    return any(isinstance(module, OnnxNetwork) for module in network.modules())


def build(
    architecture: str, num_classes: int, *, image_size: int | None = None, enlarge: int = 1, **settings: Any
) -> nn.Module:
    """NetworkSpec.build in one call."""
    return NetworkSpec(architecture, settings, enlarge).build(num_classes, image_size)


def spec_of(network: nn.Module) -> NetworkSpec:
    """The spec that `network` was built from, with all settings; KeyError if it was not built here."""
    spec: NetworkSpec = vars(network)["spec"]
    return spec


class Registered(Family):
    """The family of the notebook's student and of what users register."""

    def require(self, architecture: str) -> None:
        if architecture not in _builders:
            raise _unknown(architecture)

    def build(
        self, architecture: str, num_classes: int, settings: NetworkSettings, image_size: int | None
    ) -> nn.Module:
        return call_builder(architecture, _builders[architecture], num_classes, **dict(settings))


class OfTorchvision(Family):
    """The family of torchvision's classifiers, by their names."""

    def require(self, architecture: str) -> None:
        if architecture not in _classifiers():
            raise _unknown(architecture)

    def build(
        self, architecture: str, num_classes: int, settings: NetworkSettings, image_size: int | None
    ) -> nn.Module:
        from torchvision import models

        arguments = {"weights": None, "num_classes": num_classes} | BUILDER_ARGUMENTS.get(architecture, {})
        if image_size is not None:
            arguments |= _size_argument(architecture, image_size)
        network: nn.Module = models.get_model(architecture, **arguments)
        if isinstance(network, models.MNASNet):
            from toolkit.networks.mnasnet import MNASNet

            network.__class__ = MNASNet
        return network

    def pretrained(self, architecture: str, settings: NetworkSettings, image_size: int) -> Pretrained:
        from torchvision.models import get_model_weights

        try:
            weights = get_model_weights(architecture)["DEFAULT"]
        except ValueError:
            raise no_pretrained(architecture) from None
        try:
            tensors = weights.get_state_dict(progress=False, check_hash=True)
        except OSError as error:
            raise WeightsError(
                f"cannot download {weights.url}: {one_line(error)}",
                f'put that file into {Path(torch.hub.get_dir()) / "checkpoints"}, or use teacher.weights = ""',
            ) from None
        return Pretrained(tensors, IMAGENET_MEAN, IMAGENET_STD, f"torchvision's ImageNet {architecture}")


REGISTERED, TORCHVISION = Registered(), OfTorchvision()
FOREIGN: dict[str, Family] = {
    LITE0: Lite0(),
    TIMM: OfTimm(),
    TRANSFORMERS: OfTransformers(),
    PACKAGE: OfPackage(),
    ONNX: OfOnnx(),
    ANSWERS: OfAnswers(),
    ENSEMBLE: OfEnsemble(lambda spec, *arguments: NetworkSpec.from_json(spec).build(*arguments)),
}
"""Architecture, or family of architectures.family_of → how its networks are built."""


def find_family(architecture: str) -> Family:
    """The family of that name; RecipeError unless it can build it here."""
    if architecture in _builders:  # torchvision takes a second to import: those that do without it come first
        return REGISTERED
    family = FOREIGN.get(family_of(architecture) or architecture, TORCHVISION)
    family.require(architecture)
    return family


def require_known(*names: str) -> None:
    """RecipeError unless each architecture can be built."""
    for architecture in names:
        find_family(architecture)


def import_builder(architecture: str) -> None:
    """Import now what `build` would import for this network. Raises RecipeError if that cannot be."""
    find_family(architecture)


def rename_tensors(network: nn.Module, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The tensors of a file by the names of a network that was built here; as they are, if it was not."""
    spec = vars(network).get("spec")
    return find_family(spec.architecture).rename(network, tensors) if isinstance(spec, NetworkSpec) else tensors


def find_pretrained(spec: NetworkSpec, image_size: int) -> Pretrained:
    """ImageNet weights for `spec`, built for images of `image_size` px. Raises WeightsError if there are none."""
    settings = check_settings(spec.architecture, spec.settings)
    return find_family(spec.architecture).pretrained(spec.architecture, settings, image_size * spec.enlarge)


def modules_to_import(*names: str) -> list[str] | None:
    """Modules that another process has to import to know these architectures; None if one has no module.

    A network of the script that was started, or of a notebook, has none.
    """
    modules = [_modules[name] for name in names if name in _modules]
    return None if None in modules else [module for module in modules if module]


def architectures() -> list[str]:
    """Every name without a colon that `build` knows."""
    return [*_builders, LITE0, *_classifiers()]


def find_classifier(like: str, fits: Callable[[Mapping[str, Tensor]], bool]) -> str | None:
    """The classifier of torchvision whose state dict `fits`, those named like `like` first; None if none does.

    State dicts are on the meta device, with a head of MANY_CLASSES. RegNets cannot be built there and are left out.
    """
    for name in sorted(_classifiers(), key=lambda other: -difflib.SequenceMatcher(None, like, other).ratio()):
        if (own := _state_dict_of(name)) and fits(own):
            return name
    return None


@functools.cache
def _state_dict_of(architecture: str) -> Mapping[str, Tensor]:
    """Empty if it cannot be built on the meta device."""
    with contextlib.suppress(NotImplementedError), torch.device("meta"):
        return NetworkSpec(architecture).build(MANY_CLASSES).state_dict()
    return {}


def enlargement(network: nn.Module) -> int:
    """The k that `network` was built with."""
    return next((hook.times for hook in network._forward_pre_hooks.values() if isinstance(hook, Enlarge)), 1)


def count_parameters(network: nn.Module) -> int:
    """Numbers that training may change, frozen or not; buffers (batch-norm statistics, normalisation) are left out.

    Of an ONNX file, all numbers in its weights: it does not say which of them were trained.
    """
    files = [module for module in network.modules() if isinstance(module, OnnxNetwork)]
    return sum(parameter.numel() for parameter in network.parameters()) + sum(map(OnnxNetwork.count_parameters, files))


@functools.cache
def _classifiers() -> list[str]:
    from torchvision import models

    return list(models.list_models(module=models))


def _size_argument(architecture: str, image_size: int) -> dict[str, Any]:
    if architecture.startswith("vit_"):
        return {"image_size": image_size}
    return {"input_size": (image_size, image_size)} if architecture.startswith("maxvit_") else {}


def _require_free(name: str, settings: type[NetworkSettings]) -> None:
    if not isinstance(name, str):
        raise RecipeError(
            f"the name of an architecture is missing; {name!r} is none",
            'write @toolkit.register_network("tiny"), with parentheses and a name',
        )
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise RecipeError(f"the name {name!r} is not allowed", "use letters, digits, _ and -")
    if name not in _modules and name in architectures():
        raise RecipeError(f"the toolkit has an architecture {name!r} already", "register yours under another name")
    if not (isinstance(settings, type) and issubclass(settings, NetworkSettings)):
        raise RecipeError(
            f"the settings of {name!r} are not NetworkSettings",
            "derive their class from NetworkSettings, and give the class itself",
        )
    taken = (StudentRecipe.model_fields | TeacherRecipe.model_fields).keys() & settings.model_fields.keys()
    if taken:
        raise RecipeError(
            f"{name!r} has a setting {min(taken)!r}, which is a key of [student] or [teacher]", "give it another name"
        )


def _unknown(architecture: str) -> RecipeError:
    guess = did_you_mean(architecture, architectures(), at_most=3)
    allowed = (
        "allowed: depthwise, any classifier of torchvision, timm:NAME, efficientnet_lite0, or a network that you"
        " registered (docs/networks.md)"
    )
    return RecipeError(f"unknown architecture {shorten(architecture)!r}", guess + allowed)
