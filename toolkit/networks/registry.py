"""Networks by name: the notebook's student and every classifier of torchvision."""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.errors import RecipeError, did_you_mean, one_line
from toolkit.networks.depthwise import DepthwiseStudent

DEPTHWISE = "depthwise"

SETTINGS: dict[str, dict[str, Any]] = {
    # Auxiliary heads would make training outputs tuples; without them both are plain classifiers.
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}
"""Builder arguments that some torchvision classifiers need."""


class Enlarge:
    """A hook before a network: float images (N, 3, S, S) → (N, 3, kS, kS), bilinear."""

    def __init__(self, times: int) -> None:
        self.times = times

    def __call__(self, network: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        return F.interpolate(inputs[0], scale_factor=float(self.times), mode="bilinear", align_corners=False)


def build(
    architecture: str,
    num_classes: int,
    *,
    base: int = 16,
    width_mult: float = 1.0,
    image_size: int | None = None,
    enlarge: int = 1,
) -> nn.Module:
    """A network with random weights: float images (N, 3, S, S) → logits (N, num_classes).

    `base` and `width_mult` shape `depthwise` alone. `enlarge` k lets the network see images of kS px: those made for
    large pictures keep too little of small ones. With `image_size` (px, S) the network is proven to take them,
    and the few that are built for one size are built for that one (vit_*, maxvit_t: 224 px without it). Raises
    RecipeError for an unknown name or a size that the network refuses.
    """
    if architecture != DEPTHWISE and architecture not in _classifiers():  # depthwise alone does without torchvision
        raise _unknown(architecture)
    if image_size is None:
        return _enlarging(_make(architecture, num_classes, base, width_mult, {}), enlarge)
    try:
        settings = _size_setting(architecture, image_size * enlarge)
        network = _enlarging(_make(architecture, num_classes, base, width_mult, settings), enlarge)
        _try_once(network, image_size)
    except (AssertionError, RuntimeError, ValueError) as error:  # whatever torchvision's networks say no with
        raise RecipeError(
            f"{architecture} cannot take images of {image_size} px (data.image_size): {one_line(error)}",
            "use a size it can take (224 suits most of torchvision's), or another architecture",
        ) from error
    return network


def import_builder(architecture: str) -> None:
    """Import now what `build` would import for this network."""
    if architecture != DEPTHWISE:
        _classifiers()


@functools.cache
def architectures() -> list[str]:
    """Every name that `build` knows."""
    return [DEPTHWISE, *_classifiers()]


def enlargement(network: nn.Module) -> int:
    """The k that `network` was built with."""
    return next((hook.times for hook in network._forward_pre_hooks.values() if isinstance(hook, Enlarge)), 1)


def count_parameters(network: nn.Module) -> int:
    """Numbers that training may change, frozen or not; buffers (batch-norm statistics, normalisation) are left out."""
    return sum(parameter.numel() for parameter in network.parameters())


@functools.cache
def _classifiers() -> list[str]:
    from torchvision import models

    return list(models.list_models(module=models))


def _make(architecture: str, num_classes: int, base: int, width_mult: float, settings: dict[str, Any]) -> nn.Module:
    if architecture == DEPTHWISE:
        return DepthwiseStudent(num_classes, base=base, width_mult=width_mult)
    from torchvision import models

    settings = {"weights": None, "num_classes": num_classes} | SETTINGS.get(architecture, {}) | settings
    network: nn.Module = models.get_model(architecture, **settings)
    return network


def _enlarging(network: nn.Module, times: int) -> nn.Module:
    if times > 1:
        network.register_forward_pre_hook(Enlarge(times))
    return network


def _try_once(network: nn.Module, image_size: int) -> None:
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, image_size, image_size))
    network.train()


def _size_setting(architecture: str, image_size: int | None) -> dict[str, Any]:
    if image_size is None:
        return {}
    if architecture.startswith("vit_"):
        return {"image_size": image_size}
    return {"input_size": (image_size, image_size)} if architecture.startswith("maxvit_") else {}


def _unknown(architecture: str) -> RecipeError:
    guess = did_you_mean(architecture, architectures(), at_most=3)
    allowed = "allowed: depthwise, or any classifier of torchvision"
    return RecipeError(f"unknown architecture {architecture!r}", guess + allowed)
