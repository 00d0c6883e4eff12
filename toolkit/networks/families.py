"""What a family of networks can do: build one by its name, and give the ImageNet weights of that name.

The families are of_timm.py, of_transformers.py, of_package.py and lite0.py; registry.py has torchvision's and the
registered networks.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import util
from typing import Any

from torch import Tensor, nn

from toolkit.architectures import NetworkSettings
from toolkit.errors import RecipeError, ToolkitError, WeightsError, one_line

Channels = tuple[float, float, float]

IMAGENET_MEAN: Channels = (0.485, 0.456, 0.406)
IMAGENET_STD: Channels = (0.229, 0.224, 0.225)
"""What torchvision's weights were trained with."""


@dataclass(frozen=True)
class Pretrained:
    """ImageNet weights without their head, by the names of the network's own; `origin` says whose they are.

    They were trained on RGB in 0..1, minus `mean`, divided by `std`.
    """

    tensors: Mapping[str, Tensor]
    mean: Channels
    std: Channels
    origin: str


class Family:
    """Networks of one origin. Every method raises RecipeError for a name that the family does not have."""

    def require(self, architecture: str) -> None:
        """RecipeError unless this network can be built here."""
        raise NotImplementedError

    def build(
        self, architecture: str, num_classes: int, settings: NetworkSettings, image_size: int | None
    ) -> nn.Module:
        """Random weights: float images (N, 3, S, S) → logits (N, num_classes); S is `image_size`, px, if given."""
        raise NotImplementedError

    def pretrained(self, architecture: str, settings: NetworkSettings, image_size: int) -> Pretrained:
        """ImageNet weights for a network that was built for `image_size`. Raises WeightsError if there are none."""
        raise no_pretrained(architecture)

    def rename(self, network: nn.Module, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The tensors of a file by the names that `network` has for them, if its files have others."""
        return tensors


def no_pretrained(architecture: str) -> WeightsError:
    """The error for a network that has no ImageNet weights."""
    return WeightsError(
        f"there are no ImageNet weights for {architecture}",
        'use teacher.weights = "", a file of your own, or a classifier of torchvision or timm',
    )


def require_package(package: str, architecture: str, extra: str) -> None:
    """RecipeError if `package`, which has the network, is not installed."""
    if util.find_spec(package) is None:
        raise RecipeError(
            f"{architecture} needs the package {package.replace('_', '-')}, which is not installed",
            f"pip install 'kd-toolkit[{extra}]'",
        )


def call_builder(architecture: str, builder: Callable[..., object], *values: int, **settings: Any) -> nn.Module:
    """The network that somebody else's `builder` returns. Raises RecipeError, with its exception as the cause."""
    try:
        network = builder(*values, **settings)
    except ToolkitError:
        raise
    except Exception as error:
        arguments = ", ".join([*map(str, values), *(f"{name}={value!r}" for name, value in settings.items())])
        raise RecipeError(
            f"{architecture} cannot be built with ({arguments}): {in_words(error)}",
            "mend the network: it gets the number of classes, and its settings by name (docs/networks.md)",
        ) from error
    if not isinstance(network, nn.Module):
        raise RecipeError(
            f"the builder of {architecture} returns a {type(network).__name__}", "it has to return an nn.Module"
        )
    return network


def in_words(error: Exception) -> str:
    """`KeyError: 'x'`: many messages mean little without their class."""
    return f"{type(error).__name__}: {one_line(error)}" if str(error) else type(error).__name__
