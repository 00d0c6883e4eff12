"""Image classifiers of transformers, as `transformers:TYPE`, built from a config in the recipe or the file."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.architectures import TRANSFORMERS, ConfigSettings, NetworkSettings
from toolkit.errors import RecipeError, did_you_mean
from toolkit.networks.families import Family, in_words, require_package

WRAPPERS = ("timm_wrapper",)
"""Types that build networks of other libraries, which have families of their own."""

REACHING_OUT = {
    "attn_implementation", "experts_implementation", "auto_map", "backbone", "use_pretrained_backbone",
    "quantization_config",
}  # fmt: skip
"""Keys of a config that would let transformers fetch code or weights; so would those with a leading underscore."""


class OfTransformers(Family):
    """The family. Nothing is downloaded, and no code but that of the installed package runs."""

    def require(self, architecture: str) -> None:
        require_package("transformers", architecture, TRANSFORMERS)
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as NAMES

        if (name := _type_of(architecture)) not in NAMES or name in WRAPPERS:
            raise RecipeError(
                f"transformers has no image classifier of type {name!r}",
                f"{did_you_mean(name, NAMES)}it must be one that AutoModelForImageClassification knows without remote"
                " code",
            )

    def build(
        self, architecture: str, num_classes: int, settings: NetworkSettings, image_size: int | None
    ) -> nn.Module:
        self.require(architecture)
        assert isinstance(settings, ConfigSettings)
        config = _without_reaching_out(settings.config)
        if image_size is not None and "image_size" in config:
            config["image_size"] = image_size
        try:
            network = _build(_type_of(architecture), config, num_classes)
        except Exception as error:
            raise RecipeError(
                f"{architecture} cannot be built from its config: {in_words(error)}",
                "check config.json of the directory, or its setting config",
            ) from error
        network.register_forward_hook(take_logits)
        return network

    def rename(self, network: nn.Module, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """transformers' own names in memory are others than in its files, and change from version to version."""
        from_tensors: Callable[..., Any] = type(network).from_pretrained  # type: ignore[attr-defined]
        with _silent():
            loaded, report = from_tensors(
                None,
                config=network.config,
                state_dict=dict(tensors),
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        odd = {name for name, *_ in report["mismatched_keys"]}
        new = {*report["missing_keys"], *odd}
        named = {name: value for name, value in loaded.state_dict().items() if name not in new}
        return named | {name: tensors[name] for name in {*odd, *report["unexpected_keys"]} & tensors.keys()}


def take_logits(network: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> Tensor:
    """A hook after a network of transformers: its output → logits (N, C)."""
    logits: Tensor = output.logits
    return logits


def _without_reaching_out(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config, and the configs in it, without those keys."""
    return {
        key: _without_reaching_out(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if key not in REACHING_OUT and not key.startswith("_")
    }


def _build(kind: str, config: Mapping[str, Any], num_classes: int) -> nn.Module:
    from transformers import AutoConfig, AutoModelForImageClassification

    made = AutoConfig.for_model(kind, **config)
    made.num_labels = num_classes
    from_config: Callable[..., nn.Module] = AutoModelForImageClassification.from_config
    return from_config(made, trust_remote_code=False).to(torch.float32)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without transformers' bars and reports, and afterwards as before."""
    from transformers.utils import logging

    verbosity, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()


def _type_of(architecture: str) -> str:
    return architecture.removeprefix(f"{TRANSFORMERS}:")
