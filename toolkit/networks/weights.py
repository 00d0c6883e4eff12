"""Weights files: safetensors that describe themselves, and plain state dicts, of which only tensors are read."""

import json
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from toolkit.architectures import DEPTHWISE
from toolkit.data.preprocess import Preprocess
from toolkit.errors import WeightsError, one_line
from toolkit.files import write_atomically
from toolkit.modeldir import Role
from toolkit.networks.classifier import Classifier
from toolkit.networks.registry import NetworkSpec
from toolkit.recipe import Recipe

Channels = tuple[float, float, float]

METADATA_KEY = "kd_toolkit"
"""The one metadata entry of our files: JSON, so that the bytes of a file do not depend on a hash map's order."""

WRAPPERS = ("state_dict", "model", "model_state_dict")
"""Keys under which training scripts put the state dict among other things."""


NO_WEIGHTS = "damaged, or not a file of safetensors or of torch.save"

OF_DEPTHWISE = {"base": 16, "width_mult": 1.0}
"""Settings that stand beside `architecture` in the metadata, as earlier versions want them there for every network."""


@dataclass(frozen=True)
class ModelInfo:
    """The description of a weights file, in the file itself. `extra` holds JSON values such as valid_accuracy."""

    role: Role
    network: NetworkSpec
    classes: tuple[str, ...]
    preprocess: Preprocess
    recipe: dict[str, Any]
    recipe_sha256: str
    dataset_sha256: str
    teacher_sha256: str | None
    toolkit_version: str
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def architecture(self) -> str:
        return self.network.architecture

    def to_json(self) -> str:
        """The network's fields stand beside the others: `architecture`, `enlarge`, and its settings.

        Those of `depthwise` are `base` and `width_mult`, those of a registered network are `settings`.
        """
        values = {name: value for name, value in vars(self).items() if name != "network"}
        values |= {"architecture": self.architecture, "enlarge": self.network.enlarge}
        settings = dict(self.network.settings)
        if settings and self.architecture != DEPTHWISE:
            values |= {"settings": settings}
        else:
            values |= OF_DEPTHWISE | settings
        return json.dumps(values | {"preprocess": json.loads(self.preprocess.to_json())}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "ModelInfo":
        """Raises KeyError, TypeError or ValueError for anything `to_json` did not write."""
        values = json.loads(text)
        preprocess = Preprocess.from_json(json.dumps(values["preprocess"]))
        beside = {key: values.pop(key) for key in OF_DEPTHWISE if key in values}
        settings = values.pop("settings", beside if values["architecture"] == DEPTHWISE else {})
        network = NetworkSpec(values.pop("architecture"), settings, values.pop("enlarge", 1))
        return cls(**values | {"network": network, "classes": tuple(values["classes"]), "preprocess": preprocess})


def save_model(path: Path, network: nn.Module, info: ModelInfo, *, halved: bool = False) -> None:
    """Write the network's state dict (bare keys, on the CPU) and `info` as safetensors, whole or not at all.

    `halved` stores filters and matrices in half precision, which `load_model` makes float32 again. Vectors stay as they
    are: they take a few kB, and a batch norm's variances need not fit between half precision's 6e-8 and 65,504.
    """
    tensors = {
        # clone: tied weights must not share memory in safetensors; contiguous: they must not lie in channels-last order
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in network.state_dict().items()
    }
    if halved:
        tensors = {name: value.half() if value.ndim > 1 else value for name, value in tensors.items()}
    with write_atomically(path) as temporary:
        temporary.write_bytes(save(tensors, {METADATA_KEY: info.to_json()}))


def load_model(path: Path) -> tuple[Classifier, ModelInfo]:
    """The classifier in evaluation mode, fp32, on the CPU, from a file that `save_model` wrote. Raises WeightsError."""
    info = read_info(path)
    network = info.network.build(len(info.classes), info.preprocess.image_size)
    load_into(network, read_state_dict(path), path, len(info.classes))
    return Classifier(network, info.preprocess.mean, info.preprocess.std).float().eval(), info


def carries_info(path: Path) -> bool:
    """Whether `save_model` wrote this file, so that `load_model` can read it. Raises WeightsError if it is damaged."""
    return _find_info(path) is not None


def read_info(path: Path) -> ModelInfo:
    """The description of a weights file, without reading its tensors. Raises WeightsError."""
    info = _find_info(path)
    if info is None:
        raise WeightsError(
            f"{path} carries no description of its network (class names, preprocessing)",
            "give a .safetensors file that `toolkit teacher` or `toolkit distill` wrote; "
            "a bare state dict can be a teacher with --weights",
        )
    return info


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Name → tensor on the CPU, from safetensors or from a .pt/.pth/.bin of torch.save that holds tensors only.

    A wrapping {"state_dict": ...} or {"model": ...} and a prefix `module.` are taken off. The file's first bytes decide
    what it is, not its name. Raises WeightsError, and never runs what a pickle asks for.
    """
    head = _first_bytes(path)
    if _looks_like_safetensors(head):
        try:
            return dict(load_file(path))
        except SafetensorError as error:
            raise _unreadable(path, f"truncated or damaged ({one_line(error)})") from None
    if not _looks_like_torch_save(head):
        raise _unreadable(path, NO_WEIGHTS)
    return _as_state_dict(_load_tensors_only(path), path)


def load_into(network: nn.Module, state_dict: Mapping[str, Tensor], path: Path, num_classes: int) -> None:
    """Copy the weights into the network, which was built for `num_classes`.

    Raises WeightsError. It names both class counts if only the last layer does not fit. Otherwise it names the first
    key that is missing, unexpected or of another shape, or that holds values which are not finite.
    """
    own = network.state_dict()
    counters = {
        name for name in own if name.endswith(".num_batches_tracked")
    }  # old files lack them; nothing needs them
    missing = [name for name in own if name not in state_dict and name not in counters]
    unexpected = [name for name in state_dict if name not in own]
    remedy = (
        "give weights of that architecture, or name theirs in the recipe (teacher.architecture, student.architecture)"
    )
    if missing or unexpected:
        name, what = (missing[0], "missing") if missing else (unexpected[0], "unexpected")
        count = f"{len(missing)} keys missing, {len(unexpected)} unexpected"
        raise WeightsError(f"{path} does not fit {_name(network)}: {name} is {what} ({count})", remedy)
    misfits = [name for name in own if name in state_dict and own[name].shape != state_dict[name].shape]
    if misfits:
        _refuse_classes(own, state_dict, misfits, path, num_classes)
        name = misfits[0]
        shapes = f"{tuple(state_dict[name].shape)} instead of {tuple(own[name].shape)}"
        raise WeightsError(f"{path} does not fit {_name(network)}: {name} is {shapes}", remedy)
    for name, value in state_dict.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise WeightsError(
                f"{path}: {name} holds values that are not finite", "train or export those weights again"
            )
    network.load_state_dict(dict(state_dict))


def import_teacher(
    path: Path, recipe: Recipe, num_classes: int, classes: tuple[str, ...] | None = None
) -> tuple[nn.Module, Channels, Channels]:
    """The recipe's teacher network with the file's weights, and the mean and std that go with them.

    The network is `teacher_spec`. Mean and std are `recipe.teacher`'s if given, else those that the file carries,
    else `recipe.data`'s. `classes`, if given, must be the file's own if it names any. Raises WeightsError if the
    file does not fit.
    """
    info = _find_info(path)
    if info is not None and info.architecture != recipe.teacher.architecture:
        raise WeightsError(
            f"{path} is a {info.architecture}, the recipe's teacher a {recipe.teacher.architecture}",
            f"use teacher.architecture={info.architecture}",
        )
    network = teacher_spec(recipe, info).build(num_classes, recipe.data.image_size)
    load_into(network, read_state_dict(path), path, num_classes)
    if info is not None and classes is not None and info.classes != classes:
        theirs, ours = next(pair for pair in zip(info.classes, classes, strict=True) if pair[0] != pair[1])
        raise WeightsError(
            f"{path} has a class {theirs!r}, the data has {ours!r} in its place",
            "give the data those weights were trained on",
        )
    mean = recipe.teacher.mean or (info.preprocess.mean if info else recipe.data.mean)
    std = recipe.teacher.std or (info.preprocess.std if info else recipe.data.std)
    return network, mean, std


def teacher_spec(recipe: Recipe, info: ModelInfo | None) -> NetworkSpec:
    """The teacher's network: what the recipe states of it, else what its given file says, else the defaults."""
    section = recipe.teacher
    if info is None or info.architecture != section.architecture:
        return NetworkSpec.of(section, section.enlarge or 1)
    settings = {**info.network.settings, **section.stated_settings}
    return NetworkSpec(section.architecture, settings, section.enlarge or info.network.enlarge)


def _find_info(path: Path) -> ModelInfo | None:
    """None if the file is readable and has no description."""
    head = _first_bytes(path)
    if not _looks_like_safetensors(head):
        if not _looks_like_torch_save(head):
            raise _unreadable(path, NO_WEIGHTS)
        return None
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
    except SafetensorError as error:
        raise _unreadable(path, f"truncated or damaged ({one_line(error)})") from None
    if text is None:
        return None
    try:
        return ModelInfo.from_json(text)
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{path}: its description cannot be understood ({type(error).__name__}: {error})",
            "it may come from another version of the toolkit: make it again with `toolkit distill --force`",
        ) from None


def _first_bytes(path: Path) -> bytes:
    if path.is_dir():
        raise WeightsError(f"{path} is a directory", "give a weights file (.safetensors, .pt, .pth or .bin)")
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except FileNotFoundError:
        raise WeightsError(
            f"there is no weights file {path}", "check the path, or make one with `toolkit distill`"
        ) from None
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror}", "check the file's permissions") from None
    if not head:
        raise _unreadable(path, "empty (0 bytes)")
    return head


def _looks_like_safetensors(head: bytes) -> bool:
    return len(head) == 9 and head[8:] == b"{"


def _looks_like_torch_save(head: bytes) -> bool:
    """A zip archive, or a bare pickle of earlier versions."""
    return head[:2] == b"PK" or head[:1] == b"\x80"


def _load_tensors_only(path: Path) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about formats; problems are raised
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        culprit = re.search(r"GLOBAL (\S+)", str(error))
        if culprit or "Unsupported" in str(error):
            content = (
                f"more than tensors (it asks for {culprit[1]})" if culprit else "a pickle that torch.save did not write"
            )
            raise WeightsError(
                f"{path} holds {content} and was refused unread: a pickle can run code",
                "save tensors only, torch.save(network.state_dict(), path), or use safetensors",
            ) from None
        raise _unreadable(path, "a pickle that torch.save did not write, or truncated") from None
    except Exception as error:  # a parser of damaged bytes raises whatever the bytes lead it to
        raise _unreadable(path, f"truncated, damaged or not weights ({one_line(error)})") from error


def _as_state_dict(loaded: object, path: Path) -> dict[str, Tensor]:
    if isinstance(loaded, Mapping):
        loaded = next((loaded[key] for key in WRAPPERS if isinstance(loaded.get(key), Mapping)), loaded)
    if not isinstance(loaded, Mapping) or not loaded:
        raise _unreadable(
            path, "an empty state dict" if loaded == {} else f"a {type(loaded).__name__}, not a state dict"
        )
    odd = next((key for key, value in loaded.items() if not (isinstance(key, str) and isinstance(value, Tensor))), None)
    if odd is not None:
        raise _unreadable(path, f"not a state dict: {odd!r} is a {type(loaded[odd]).__name__}, not a tensor")
    prefix = "module." if all(key.startswith("module.") for key in loaded) else ""
    return {key.removeprefix(prefix): value.detach() for key, value in loaded.items()}


def _unreadable(path: Path, reason: str) -> WeightsError:
    return WeightsError(
        f"cannot read weights from {path}: it is {reason}",
        "give a complete .safetensors file, or a state dict saved with torch.save",
    )


def _refuse_classes(
    own: Mapping[str, Tensor], theirs: Mapping[str, Tensor], misfits: list[str], path: Path, num_classes: int
) -> None:
    """Raise if the misfits are a last layer for another number of classes: same shape except for its first side."""
    counts = {int(theirs[name].shape[0]) for name in misfits if theirs[name].ndim}
    a_head = all(
        own[name].shape[:1] == (num_classes,) and own[name].shape[1:] == theirs[name].shape[1:] for name in misfits
    )
    if a_head and len(counts) == 1:
        raise WeightsError(
            f"{path} has {counts.pop()} classes, {num_classes} are needed ({misfits[0]})",
            "give weights trained on this data, or the data they were trained on",
        )


def _name(network: nn.Module) -> str:
    return type(network).__name__
