"""The settings of each architecture, with units, ranges and defaults.

Recipes are checked with these before torch is imported; toolkit/networks/registry.py knows how to build the networks.
"""

import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

DEPTHWISE, LITE0, ONNX, ENSEMBLE = "depthwise", "efficientnet_lite0", "onnx", "ensemble"
ANSWERS = "answers"
"""What a teacher is of which only a file of answers is there."""
TIMM, TRANSFORMERS, PACKAGE = "timm", "transformers", "package"
"""Families whose networks have a colon in their names: timm:NAME, transformers:TYPE, package.module:function."""


class NetworkSettings(BaseModel):
    """The settings of one architecture, to be subclassed: frozen, no coercion between types, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class DepthwiseSettings(NetworkSettings):
    """The widths of the notebook's student."""

    base: int = Field(16, ge=1, le=512, description="channels of the first block; only for depthwise")
    width_mult: float = Field(
        1.0, gt=0, le=8, description="factor of all channels but the first and last block's; only for depthwise"
    )


class CallSettings(NetworkSettings):
    """Those of a network that a function of somebody else's returns."""

    arguments: dict[str, Any] = Field({}, description="keyword arguments of the function that builds the network")


class ConfigSettings(NetworkSettings):
    """Those of a network of transformers."""

    config: dict[str, Any] = Field({}, description="config.json of the network, without its classes")


class OnnxSettings(NetworkSettings):
    """Those of an ONNX file of any origin; what the file says itself need not be given."""

    layout: Literal["auto", "nchw", "nhwc"] = Field("auto", description="order of the axes of its input")
    white: Literal[1, 255] = Field(1, description="value of white in its input, before mean and std")
    output: Literal["auto", "logits", "probabilities"] = Field(
        "auto", description="what its output holds; auto: probabilities if they sum to 1"
    )


class EnsembleSettings(NetworkSettings):
    """Those of several teachers that are one."""

    combine: Literal["probabilities", "logits"] = Field(
        "probabilities", description="several weights: the mean of probabilities, or of logits"
    )
    members: list[dict[str, Any]] = Field([], description="what they are; written by the import")


OF_FAMILY = {TIMM: "timm:NAME", TRANSFORMERS: "transformers:TYPE", PACKAGE: "package.module:function"}
"""Family → the form of its names."""

_settings: dict[str, type[NetworkSettings]] = {
    DEPTHWISE: DepthwiseSettings,
    ONNX: OnnxSettings,
    ENSEMBLE: EnsembleSettings,
    OF_FAMILY[TIMM]: CallSettings,
    OF_FAMILY[TRANSFORMERS]: ConfigSettings,
    OF_FAMILY[PACKAGE]: CallSettings,
}


def add_settings(architecture: str, settings: type[NetworkSettings]) -> None:
    _settings[architecture] = settings


def family_of(architecture: str) -> str:
    """The key of OF_FAMILY that its name has the form of, or "" for a name without a colon."""
    first, colon, _ = architecture.partition(":")
    if not colon:
        return ""
    return first if first in OF_FAMILY else PACKAGE


def settings_of(architecture: str) -> type[NetworkSettings]:
    """The class of its settings; one without any for torchvision's classifiers and for names that nobody registered."""
    return _settings.get(OF_FAMILY.get(family_of(architecture), architecture), NetworkSettings)


def owners_of(setting: str) -> list[str]:
    """The architectures that have a setting of that name."""
    return [architecture for architecture, settings in _settings.items() if setting in settings.model_fields]


def check_settings(architecture: str, values: Mapping[str, Any]) -> NetworkSettings:
    """`values`, from TOML or JSON, with the defaults of missing keys. Raises pydantic's ValidationError."""
    return settings_of(architecture).model_validate_json(json.dumps(values, default=str))
