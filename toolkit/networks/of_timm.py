"""Networks of timm (pytorch-image-models), as `timm:NAME`; a name may have the tag of its weights, as in timm."""

import functools
from pathlib import Path
from typing import Any

import torch
from torch import nn

from toolkit.architectures import TIMM, CallSettings, NetworkSettings
from toolkit.errors import RecipeError, WeightsError, did_you_mean, one_line, shorten
from toolkit.networks.families import Family, Pretrained, call_builder, no_pretrained, require_package
from toolkit.networks.tensor_files import read_tensors

OF_THE_TOOLKIT = {
    "model_name", "num_classes", "img_size", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay",
    "checkpoint_path", "cache_dir", "in_chans", "features_only", "scriptable", "exportable", "no_jit",
}  # fmt: skip
"""Arguments of timm.create_model that the toolkit gives, or that would read files or make no classifier."""


class OfTimm(Family):
    """The family; timm is imported when one of its networks is first named."""

    def require(self, architecture: str) -> None:
        require_package("timm", architecture, TIMM)
        import timm

        name = _name_in_timm(architecture)
        if timm.is_model(name) and (name in _names() or _config(name) is not None):
            return
        raise RecipeError(
            f"timm has no network {shorten(name)!r}",
            did_you_mean(name, _names(), at_most=3, prefix="timm:")
            + "timm.list_models() has all names; one may end in the tag of its weights",
        )

    def build(
        self, architecture: str, num_classes: int, settings: NetworkSettings, image_size: int | None
    ) -> nn.Module:
        self.require(architecture)
        return _create(architecture, num_classes, settings, image_size)

    def pretrained(self, architecture: str, settings: NetworkSettings, image_size: int) -> Pretrained:
        """timm's own weights, adapted to this size by timm, for a network of two classes."""
        self.require(architecture)
        config = _config(_name_in_timm(architecture))
        if config is None or not (config.hf_hub_id or config.url):
            raise no_pretrained(architecture)
        found = {"state_dict": read_tensors(_find_weights(config)), "custom_load": False}
        network = _create(architecture, 2, settings, image_size, pretrained=True, pretrained_cfg_overlay=found)
        heads = (config.classifier,) if isinstance(config.classifier, str) else tuple(config.classifier or ())
        tensors = {
            name: value
            for name, value in network.state_dict().items()
            if not name.startswith(tuple(f"{head}." for head in heads))
        }
        return Pretrained(tensors, config.mean, config.std, f"timm's {config.tag or 'pretrained'} {architecture}")


def _create(
    architecture: str, num_classes: int, settings: NetworkSettings, image_size: int | None, **more: Any
) -> nn.Module:
    """timm's network; those that are built for one size get `image_size` as theirs."""
    import timm

    assert isinstance(settings, CallSettings)
    if taken := OF_THE_TOOLKIT & settings.arguments.keys():
        raise RecipeError(
            f"{architecture}: the toolkit itself decides timm's {min(taken)}",
            "leave it out of arguments",
        )
    name = _name_in_timm(architecture)
    config = _config(name)
    if image_size is not None and config is not None and config.fixed_input_size:
        more["img_size"] = image_size
    builder = functools.partial(timm.create_model, name, **({"pretrained": False} | more))
    return call_builder(architecture, builder, num_classes=num_classes, **settings.arguments)


def _find_weights(config: Any) -> Path:
    """The file of the weights that timm's pretrained config names: in torch's folder, in a cache, or downloaded."""
    file_name = f"{config.architecture}{'.' if config.tag else ''}{config.tag}.safetensors"
    folder = Path(torch.hub.get_dir(), "checkpoints")
    if (own := folder / file_name).is_file():
        return own
    hub_file = config.hf_hub_filename or "model.safetensors"
    source = f"https://huggingface.co/{config.hf_hub_id}/resolve/main/{hub_file}" if config.hf_hub_id else config.url
    try:
        if not config.hf_hub_id:
            return _download(config.url, folder)
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(config.hf_hub_id, hub_file))
    except Exception as error:  # huggingface_hub has errors of its own for each kind of failure
        raise WeightsError(
            f"cannot download {source}: {one_line(error)}",
            f'put that file into {folder}, as {file_name}, or use teacher.weights = ""',
        ) from None


def _download(url: str, folder: Path) -> Path:
    path = folder / url.rpartition("/")[2]
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), progress=False)
    return path


def _name_in_timm(architecture: str) -> str:
    return architecture.removeprefix(f"{TIMM}:")


def _config(name: str) -> Any:
    """timm's pretrained config of that name, None if it has none."""
    import timm

    try:
        return timm.get_pretrained_cfg(name)
    except RuntimeError:  # an unknown tag
        return None


def _names() -> list[str]:
    import timm

    return list(timm.list_models())
