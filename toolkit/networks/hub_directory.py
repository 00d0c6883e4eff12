"""A network in a directory as Hugging Face lays it out: config.json, weights, and what timm or transformers say.

Only JSON is read here: the architecture, its settings, the normalisation, the size and the names of the classes.
Nothing is downloaded, and code that a directory brings along is never run.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.architectures import TIMM, TRANSFORMERS
from toolkit.errors import WeightsError
from toolkit.networks.families import Channels

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")
"""In the order in which they are looked for."""

NOT_OF_THE_NETWORK = {
    "id2label", "label2id", "num_labels", "architectures", "transformers_version", "torch_dtype", "dtype", "model_type",
    "problem_type", "_name_or_path", "_commit_hash", "auto_map",
}  # fmt: skip
"""Keys of transformers' config.json that say nothing of the network's layers, or name its classes."""

GIVEN_ANYWAY = ("num_classes", "img_size", "in_chans")
"""Keys of timm's model_args that the network gets from the data here."""

RESCALED = 1 / 255
"""What transformers multiplies pixels of 0..255 with before mean and std, if nothing else is said."""


@dataclass(frozen=True)
class HubDirectory:
    """What a directory says of its network; None: it does not say. `image_size` in px, `classes` in their order."""

    weights: Path
    architecture: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    mean: Channels | None = None
    std: Channels | None = None
    image_size: int | None = None
    classes: tuple[str, ...] | None = None


def read_directory(path: Path) -> HubDirectory:
    """Raises WeightsError if the directory has no config.json, no weights, or names no network."""
    config = _read_json(path / CONFIG)
    if config is None:
        raise WeightsError(
            f"teacher.weights: the folder {path} has no {CONFIG}",
            f"{_instead(path)}give a file of weights, or a folder with config.json and model.safetensors, as Hugging"
            " Face has them",
        )
    weights = next((path / name for name in WEIGHTS_FILES if (path / name).is_file()), None)
    if weights is None:
        raise WeightsError(
            f"teacher.weights: the folder {path} has no {' or '.join(WEIGHTS_FILES)}",
            f"{_instead(path)}save the weights as one such file",
        )
    if isinstance(config.get("architecture"), str):
        return _of_timm(weights, config)
    if isinstance(config.get("model_type"), str):
        return _of_transformers(weights, config, _read_json(path / PREPROCESSOR) or {})
    raise WeightsError(
        f"{path / CONFIG} names no network",
        'it needs "architecture" (timm) or "model_type" (transformers)',
    )


def _instead(path: Path) -> str:
    """`give the file ..., or ` if the folder holds a teacher of another kind; optimum has it in onnx/."""
    found = [*path.glob("teacher.safetensors"), *sorted(path.glob("*.onnx")), *sorted(path.glob("onnx/*.onnx"))]
    return f"give the file {found[0]}, or " if found else ""


def describe_config(path: Path) -> HubDirectory:
    """What the config files in a directory say, of weights in any format. Raises WeightsError for damaged JSON."""
    config = _read_json(path / CONFIG) or {}
    if isinstance(config.get("architecture"), str):
        return _of_timm(path, config)
    return _of_transformers(path, {"model_type": ""} | config, _read_json(path / PREPROCESSOR) or {})


def _of_timm(weights: Path, config: Mapping[str, Any]) -> HubDirectory:
    """timm's save_for_hf; earlier versions have the keys of pretrained_cfg beside `architecture`."""
    pretrained = {**config, **_table(config, "pretrained_cfg")}
    size = pretrained.get("input_size")
    return HubDirectory(
        weights,
        f"{TIMM}:{config['architecture']}",
        {"arguments": {k: v for k, v in _table(config, "model_args").items() if k not in GIVEN_ANYWAY}},
        _channels(pretrained.get("mean")),
        _channels(pretrained.get("std")),
        int(size[-1]) if isinstance(size, list) and size else None,
        _names(pretrained.get("label_names", pretrained.get("labels"))),
    )


def _of_transformers(weights: Path, config: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> HubDirectory:
    settings = {"config": {key: value for key, value in config.items() if key not in NOT_OF_THE_NETWORK}}
    crop = preprocessor.get("crop_size") if preprocessor.get("do_center_crop") else None
    size = _side(crop or preprocessor.get("size")) or _side(config.get("image_size"))
    architecture = f"{TRANSFORMERS}:{config['model_type']}"
    return HubDirectory(
        weights, architecture, settings, *_normalisation(preprocessor), size, _names(config.get("id2label"))
    )


def _normalisation(preprocessor: Mapping[str, Any]) -> tuple[Channels | None, Channels | None]:
    """Mean and std for RGB in 0..1, of a preprocessor that takes 0..255."""
    if not preprocessor:
        return None, None
    scale = preprocessor.get("rescale_factor", RESCALED) if preprocessor.get("do_rescale", True) else 1.0
    offset = 1.0 if preprocessor.get("rescale_offset") else 0.0
    mean, std = (0.0,) * 3, (1.0,) * 3
    if preprocessor.get("do_normalize", True):
        mean = _channels(preprocessor.get("image_mean")) or mean
        std = _channels(preprocessor.get("image_std")) or std
    return _scaled([value + offset for value in mean], scale), _scaled(std, scale)


def _scaled(values: Sequence[float], scale: float) -> Channels:
    """Of pixels of 0..255 times `scale` → of RGB in 0..1; exact for the usual scale."""
    factor = 1.0 if scale == RESCALED else 1 / (255 * scale)
    red, green, blue = (value * factor for value in values)
    return red, green, blue


def _channels(values: object) -> Channels | None:
    """Three numbers, or one for all."""
    if isinstance(values, list) and len(values) in (1, 3) and all(isinstance(value, int | float) for value in values):
        red, green, blue = (float(value) for value in (values if len(values) == 3 else values * 3))
        return red, green, blue
    return None


def _side(size: object) -> int | None:
    """px; of 224, [224, 224], {"height": 224, "width": 224} or {"shortest_edge": 224}"""
    if isinstance(size, Mapping):
        size = size.get("height", size.get("shortest_edge"))
    if isinstance(size, list) and size:
        size = size[0]
    return size if isinstance(size, int) else None


def _names(labels: object) -> tuple[str, ...] | None:
    """Names of classes from a list, or from a table {"0": name}; None without any, or for mere numbers."""
    if isinstance(labels, Mapping):
        numbered = {str(key): value for key, value in labels.items()}
        if set(numbered) != set(map(str, range(len(numbered)))):
            return None
        labels = [numbered[str(number)] for number in range(len(numbered))]
    if not isinstance(labels, list) or not labels or not all(isinstance(name, str) for name in labels):
        return None
    return None if labels == [f"LABEL_{number}" for number in range(len(labels))] else tuple(labels)


def _table(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = config.get(key)
    return value if isinstance(value, Mapping) else {}


def _read_json(path: Path) -> dict[str, Any] | None:
    """None if there is no such file. Raises WeightsError if it is no JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict):
        raise WeightsError(f"cannot read {path}: it is not a JSON object", "give the directory's own file")
    return content
