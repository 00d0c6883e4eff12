"""Weights files: safetensors that describe themselves, and what is taken out of other files into a network."""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from toolkit import console
from toolkit.architectures import DEPTHWISE, ONNX, OnnxSettings
from toolkit.data.preprocess import Preprocess
from toolkit.errors import ToolkitError, WeightsError, one_line, shorten
from toolkit.files import write_atomically
from toolkit.modeldir import Role
from toolkit.networks.class_map import map_classes
from toolkit.networks.classifier import Classifier
from toolkit.networks.depthwise import infer_student
from toolkit.networks.families import Channels
from toolkit.networks.hub_directory import HubDirectory, read_directory
from toolkit.networks.matching import Match, find_other_head, find_prefixes, match, misfits
from toolkit.networks.of_answers import Answers
from toolkit.networks.of_onnx import OnnxNetwork, import_onnx, is_onnx
from toolkit.networks.onnx_file import ONE, ZERO, read_onnx, with_answer_of
from toolkit.networks.registry import MANY_CLASSES, NetworkSpec, PickColumns, find_classifier, rename_tensors
from toolkit.networks.tensor_files import (
    describe_entry,
    first_bytes,
    looks_like_safetensors,
    read_tensors,
    require_torch_save,
    unreadable,
)
from toolkit.recipe import Recipe

FEWEST_TENSORS = 16
"""AlexNet's; no classifier of torchvision has fewer"""

METADATA_KEY = "kd_toolkit"
"""The one metadata entry of our files: JSON, so that the bytes of a file do not depend on a hash map's order."""

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
        if self.network.outputs:
            values |= {"outputs": self.network.outputs, "columns": list(self.network.columns)}
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
        columns = tuple(values.pop("columns", ()))
        network = NetworkSpec(
            values.pop("architecture"), settings, values.pop("enlarge", 1), values.pop("outputs", 0), columns
        )
        return cls(**values | {"network": network, "classes": tuple(values["classes"]), "preprocess": preprocess})


@dataclass(frozen=True)
class Imported:
    """A network with given weights: float images (N, 3, S, S), minus mean, divided by std → logits (N, C).

    `image_size` is the S (px) that its source says it wants, None if it says none; `classes` the C names that the
    source carries, None if it carries none. `states_normalisation`: whether the source says how images are normalised.
    """

    network: nn.Module
    mean: Channels
    std: Channels
    image_size: int | None = None
    classes: tuple[str, ...] | None = None
    states_normalisation: bool = True


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
    load_into(network, read_tensors(path), path, len(info.classes))
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


def load_into(network: nn.Module, tensors: Mapping[str, Tensor], path: Path, num_classes: int) -> None:
    """Copy the network's weights out of a file's `tensors` into the network, which was built for `num_classes`.

    A line on stderr says what was taken off their names (matching.py). Raises WeightsError. It names both class counts
    if only the last layer does not fit. Otherwise it names the first key that is missing, unexpected or of another
    shape, or that holds values which are not finite, and the architecture that the weights are of, if it finds one.
    """
    _make_room_for_files(network, tensors)
    own = network.state_dict()
    found = find_weights(network, tensors, path)
    weights = found.tensors
    odd = [name for name, value in weights.items() if own[name].shape != value.shape]
    if odd:
        _refuse_classes(own, weights, odd, path, num_classes)
        shapes = f"{tuple(weights[odd[0]].shape)} instead of {tuple(own[odd[0]].shape)}"
        raise _unfit(network, tensors, path, f"{shorten(found.prefix + odd[0])} is {shapes}")
    for name, value in weights.items():
        is_bad = value.is_floating_point() and not bool(torch.isfinite(value).all())
        if is_bad or (name.endswith("running_var") and bool((value < 0).any())):
            what = "values that are not finite" if is_bad else "negative variances"
            raise WeightsError(
                f"{path}: {shorten(found.prefix + name)} holds {what}", "train or export those weights again"
            )
    if taken_off := found.describe():
        console.say(f"{path}: took {taken_off}")
    network.load_state_dict(weights)


def _make_room_for_files(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """ONNX files and answers in a network are as long as those in `tensors`: nothing else says how long they are."""
    for name, module in network.named_modules():
        if isinstance(module, OnnxNetwork) and (file := tensors.get(f"{name}.file".lstrip("."))) is not None:
            module.file = torch.empty_like(file)
    if isinstance(network, Answers) and tensors.keys() == {"names", "logits"}:
        network.names, network.logits = (torch.empty_like(tensors[name]) for name in ("names", "logits"))


def find_weights(network: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> Match:
    """The tensors by the network's names. Raises WeightsError if one is missing, or one too many is there."""
    own = network.state_dict()
    if (found := match(tensors, own) or match(rename_tensors(network, tensors), own)) is not None:
        return found
    missing, unexpected = misfits(tensors, own)
    name, what = (missing[0], "missing") if missing else (unexpected[0], "unexpected")
    if missing and (instead := describe_entry(path, missing[0])):
        raise WeightsError(f"{path}: {shorten(name)} is a {instead}", "save tensors only: torch.save(state_dict, path)")
    count = f"{len(missing)} keys missing, {len(unexpected)} unexpected"
    raise _unfit(network, tensors, path, f"{shorten(name)} is {what} ({count})")


def import_teacher(path: Path, recipe: Recipe, num_classes: int, classes: tuple[str, ...] | None = None) -> Imported:
    """The recipe's teacher network with the file's weights, and what goes with them.

    The network is `teacher_spec`, or the ONNX file itself. Mean and std are `recipe.teacher`'s if given, else those
    that the file carries, else `recipe.data`'s. If the names of its outputs are known (teacher.classes, or the file's
    own), they are matched with `classes`, the data's. Raises WeightsError if the file does not fit.
    """
    return _import_onnx(path, recipe, classes) if is_onnx(path) else _import_tensors(path, recipe, num_classes, classes)


def _import_onnx(path: Path, recipe: Recipe, classes: tuple[str, ...] | None) -> Imported:
    described, section = read_onnx(path), recipe.teacher
    if section.enlarge not in (None, 1):
        raise WeightsError(
            f"teacher.enlarge = {section.enlarge} enlarges images for networks of weights, and {path} is an ONNX file",
            "use teacher.image_size, if it takes larger images",
        )
    named = given_classes(recipe) or described.classes
    if known := named or classes:
        described = with_answer_of(described, len(known))
    settings = OnnxSettings.model_validate(section.settings if section.architecture == ONNX else {})
    scale = 1.0 if settings.white == 1 else 1 / 255
    plain = (ZERO, ONE) if settings.white != 1 else (recipe.data.mean, recipe.data.std)
    mean = _times(section.mean, scale) or described.mean or plain[0]
    std = _times(section.std, scale) or described.std or _times(plain[1], scale)
    assert std is not None
    network, outputs = import_onnx(path, described, settings, recipe.data_of("teacher").image_size, (mean, std))
    columns = find_columns(path, named, outputs, classes)
    vars(network)["spec"] = NetworkSpec(ONNX, network.settings.model_dump(mode="json"), 1, outputs, columns)
    if columns:
        network.register_forward_hook(PickColumns(columns))
    return Imported(network, mean, std, described.size, named, states_normalisation=described.mean is not None)


def _import_tensors(path: Path, recipe: Recipe, num_classes: int, classes: tuple[str, ...] | None) -> Imported:
    info = _find_info(path)
    given = recipe.teacher.source
    directory = read_directory(path.parent) if info is None and given and Path(given).is_dir() else None
    if info is not None and info.architecture != recipe.teacher.architecture:
        raise WeightsError(
            f"{path} is a {info.architecture}, the recipe's teacher a {recipe.teacher.architecture}",
            f"use teacher.architecture={info.architecture}",
        )
    source = info or directory
    named = given_classes(recipe) or (source.classes if source else None)
    spec, size = teacher_spec(recipe, info), recipe.data_of("teacher").image_size
    if named and classes and named != classes:
        spec = replace(spec, outputs=len(named), columns=find_columns(path, named, len(named), classes))
    network = spec.build(num_classes, size)
    try:
        load_into(network, read_tensors(path), path, spec.outputs or num_classes)
    except WeightsError:
        if directory is not None and _fits_at_its_size(directory, recipe, spec.outputs or num_classes):
            raise WeightsError(
                f"{path} was made for images of {directory.image_size} px, and is to see {size} px",
                f"use --set teacher.image_size={directory.image_size}",
            ) from None
        raise
    mean = recipe.teacher.mean or (info.preprocess.mean if info else recipe.data.mean)
    std = recipe.teacher.std or (info.preprocess.std if info else recipe.data.std)
    wanted = info.preprocess.image_size if info else directory.image_size if directory else None
    return Imported(network, mean, std, wanted, named, states_normalisation=source is not None)


def find_columns(
    path: Path, named: tuple[str, ...] | None, outputs: int, classes: tuple[str, ...] | None
) -> tuple[int, ...]:
    """Where the data's classes stand among a file's outputs; () if they are those classes, as they stand.

    Without names, as many outputs as classes are taken for these.
    """
    if named and len(named) != outputs:
        raise WeightsError(
            f"{path} has {outputs} outputs, and {len(named)} names are given for them",
            "correct teacher.classes: one name per output, in their order",
        )
    if classes is None or named == classes:
        return ()
    if named:
        return map_classes(named, classes, str(path))
    if outputs != len(classes):
        raise WeightsError(
            f"{path} has {outputs} classes without names, the data has {len(classes)}",
            "give the names of its outputs, one per line, in a file: --set teacher.classes=FILE",
        )
    return ()


def given_classes(recipe: Recipe) -> tuple[str, ...] | None:
    """The names in the file `teacher.classes`, one per line or in JSON; None without one. Raises WeightsError."""
    if not recipe.teacher.classes:
        return None
    path = Path(recipe.teacher.classes)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise WeightsError(
            f"teacher.classes: cannot read {path}: {reason}", "give a text file with one name per line"
        ) from None
    named = tuple(line.strip() for line in text.splitlines() if line.strip())
    if text.lstrip()[:1] in ("[", "{"):
        with contextlib.suppress(ValueError):
            named = _names_in(json.loads(text))
    if not named:
        raise WeightsError(f"teacher.classes: {path} names no class", "give a text file with one name per line")
    return named


def _names_in(listed: Any) -> tuple[str, ...]:
    """From a JSON list, {"0": name} as Hugging Face has it, or {name: 0} as Keras has it; () from anything else."""
    if isinstance(listed, dict) and all(isinstance(place, int) for place in listed.values()):
        listed = {str(place): name for name, place in listed.items()}
    if isinstance(listed, dict):
        listed = [listed.get(str(place)) for place in range(len(listed))]
    return tuple(listed) if isinstance(listed, list) and all(isinstance(name, str) for name in listed) else ()


def _times(channels: Channels | None, factor: float) -> Channels | None:
    if channels is None:
        return None
    red, green, blue = (value * factor for value in channels)
    return red, green, blue


def _fits_at_its_size(directory: HubDirectory, recipe: Recipe, num_classes: int) -> bool:
    """Whether the weights would fit if `teacher.image_size` were the size that `directory` was made for."""
    if directory.image_size in (None, recipe.data_of("teacher").image_size):
        return False
    with contextlib.suppress(ToolkitError):
        network = teacher_spec(recipe, None).build(num_classes, directory.image_size)
        load_into(network, read_tensors(directory.weights), directory.weights, num_classes)
        return True
    return False


def teacher_spec(recipe: Recipe, info: ModelInfo | None) -> NetworkSpec:
    """The teacher's network: what the recipe states of it, else what its given file says, else the defaults."""
    section = recipe.teacher
    if info is None or info.architecture != section.architecture:
        return NetworkSpec.of(section, section.enlarge or 1)
    settings = {**info.network.settings, **section.stated_settings}
    return NetworkSpec(section.architecture, settings, section.enlarge or info.network.enlarge)


def _find_info(path: Path) -> ModelInfo | None:
    """None if the file is readable and has no description."""
    head = first_bytes(path)
    if not looks_like_safetensors(head):
        require_torch_save(head, path)
        return None
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
    except SafetensorError as error:
        raise unreadable(path, f"truncated or damaged ({one_line(error)})") from None
    if text is None:
        return None
    try:
        return ModelInfo.from_json(text)
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{path}: its description cannot be understood ({type(error).__name__}: {error})",
            "it may come from another version of the toolkit: make it again with `toolkit distill --force`",
        ) from None


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


def _unfit(network: nn.Module, tensors: Mapping[str, Tensor], path: Path, reason: str) -> WeightsError:
    """The error for weights of another network; it names that one if it can be found."""
    remedy = (
        "give weights of that architecture, or name theirs in the recipe (teacher.architecture, student.architecture)"
    )
    if head := find_other_head(tensors, network.state_dict()):
        reason = f"{reason}, as its head is {shorten(head)}"
        remedy = "give weights of the plain head, or register the network with that head (docs/networks.md)"
    elif other := _recognize(tensors, vars(network).get("spec")):
        settings = {"architecture": other.architecture, **other.settings}
        flags = " ".join(f"--set teacher.{key}={value}" for key, value in settings.items())
        remedy = f"they are those of {other.architecture}: use {flags}"
    return WeightsError(f"{path} does not fit {type(network).__name__}: {reason}", remedy)


def _recognize(tensors: Mapping[str, Tensor], wanted: NetworkSpec | None) -> NetworkSpec | None:
    """The depthwise student or torchvision's classifier that has weights of these names and shapes."""
    with contextlib.suppress(WeightsError):
        for prefix in find_prefixes(tensors, "cnn.0.0.weight"):
            _, base, width_mult = infer_student({name.removeprefix(prefix): value for name, value in tensors.items()})
            return NetworkSpec(DEPTHWISE, {"base": base, "width_mult": width_mult})
    if len(tensors) < FEWEST_TENSORS:
        return None
    like = wanted.architecture if wanted else ""
    name = find_classifier(like, lambda own: _are_of(own, tensors))
    return NetworkSpec(name) if name and name != like else None


def _are_of(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are weights of such names and shapes, for any number of classes and size of images."""
    found = match(tensors, own)
    return found is not None and all(
        value.shape == own[name].shape
        or (own[name].shape[:1] == (MANY_CLASSES,) and own[name].shape[1:] == value.shape[1:])
        or name.endswith("pos_embedding")
        for name, value in found.tensors.items()
    )
