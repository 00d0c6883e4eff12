"""The tensors of a file by name: safetensors, or what torch.save wrote. Nothing that a pickle names is imported or run.

Training scripts put weights beside all kinds of objects. torch's restricted reader stops at each class that it does not
know. Classes that can hold nothing but data become empty stand-ins here, which take any arguments and do nothing.
"""

import contextlib
import pickle
import re
import sys
import warnings
from _compat_pickle import IMPORT_MAPPING
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeGuard

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from toolkit.errors import WeightsError, one_line, shorten

HARMLESS_MODULES = ("argparse", "datetime", "decimal", "fractions", "numpy.dtypes", "pathlib", "typing", "uuid")
"""Modules whose classes are data, whatever their names."""
HARMLESS = {
    *(
        f"builtins.{kind.__name__}"
        for kind in (bool, bytes, dict, float, frozenset, int, list, object, range, slice, str)
    ),
    *("builtins.tuple", "types.SimpleNamespace", "torch.torch_version.TorchVersion"),
    *(f"numpy.{name}" for name in ("dtype", "ndarray", "bool_", "float32", "float64", "int32", "int64")),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *(f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core")),
}
"""...and other names of data. All else in LIBRARIES is refused."""
LIBRARIES = {*sys.stdlib_module_names, *IMPORT_MAPPING, "torch", "torchvision", "numpy"}
"""Python's own library, under its old names too, as pickles have them, and ours."""
ARRAY = "numpy array"
"""what stands in for one is called so"""
MOST_KINDS = 100
"""unknown classes in one file; scripts that save their settings have a dozen"""
MOST_NAMED = 4
"""of them in a refusal"""
DEEPEST = 12
"""mappings and lists within each other, below which no state dict lies"""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Name → tensor on the CPU, of all tensors in the file that have a name.

    A tensor in nested mappings and lists is named by its path: {"net": {"conv.weight": ...}} has `net.conv.weight`. The
    file's first bytes decide what it is, not its name. Raises WeightsError.
    """
    head = first_bytes(path)
    if looks_like_safetensors(head):
        try:
            return dict(load_file(path))
        except SafetensorError as error:
            raise unreadable(path, f"truncated or damaged ({one_line(error)})") from None
    require_torch_save(head, path)
    content = _load(path)
    tensors = {name: value.detach() for name, value in _walk(content) if _is_plain(value)}
    if not tensors:
        raise unreadable(path, _describe(content))
    return tensors


def describe_entry(path: Path, name: str) -> str:
    """What the file has in place of a tensor of that name, with or without a prefix; "" if nothing."""
    with contextlib.suppress(WeightsError):
        if not looks_like_safetensors(first_bytes(path)):
            others = (value for full, value in _walk(_load(path)) if f".{full}".endswith(f".{name}"))
            return next((_name_kind(value) for value in others if not _is_plain(value)), "")
    return ""


def require_torch_save(head: bytes, path: Path) -> None:
    """Raise WeightsError if the first bytes are not those of a zip archive, or of a bare pickle of earlier versions."""
    if head[:2] != b"PK" and head[:1] != b"\x80":
        raise unreadable(path, "damaged, or not a file of safetensors or of torch.save")


def first_bytes(path: Path) -> bytes:
    """Nine at most, enough to know the format. Raises WeightsError if there is no such file, or nothing in it."""
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
        raise unreadable(path, "empty (0 bytes)")
    return head


def looks_like_safetensors(head: bytes) -> bool:
    return len(head) == 9 and head[8:] == b"{"


def unreadable(path: Path, reason: str) -> WeightsError:
    return WeightsError(
        f"cannot read weights from {path}: it is {reason}",
        "give a complete .safetensors file, or a state dict saved with torch.save",
    )


def _load(path: Path) -> object:
    """What torch.save wrote, with stand-ins for harmless classes."""
    stand_ins: dict[str, Any] = {}
    while True:
        try:
            return _load_with(path, stand_ins)
        except pickle.UnpicklingError as error:
            name = _find_culprit(str(error))
            stand_in = _stand_in(name) if name else None
            if stand_in is None or name in stand_ins or len(stand_ins) == MOST_KINDS:
                raise _refusal(path, [*stand_ins, name], str(error)) from None
            stand_ins[name] = stand_in
        except Exception as error:  # a parser of damaged bytes raises whatever the bytes lead it to
            if "TorchScript" in str(error):
                raise WeightsError(
                    f"{path} is a TorchScript program, not weights",
                    "save tensors only: torch.save(torch.jit.load(path).state_dict(), other_path)",
                ) from None
            raise unreadable(path, f"truncated, damaged or not weights ({one_line(error)})") from error


def _load_with(path: Path, stand_ins: Mapping[str, Any]) -> object:
    named: list[Any] = [(stand_in, name) for name, stand_in in stand_ins.items()]
    with warnings.catch_warnings(), torch.serialization.safe_globals(named), path.open("rb") as file:
        warnings.simplefilter("ignore")  # torch warns about formats; what matters is raised
        return torch.load(file, map_location="cpu", weights_only=True)


def _find_culprit(message: str) -> str:
    """The class or function that torch's reader stopped at, with its module; "" if it stopped for another reason."""
    found = re.search(r"GLOBAL (\S+)", message)
    if found is None:
        return ""
    return found[1] if "." in found[1] else f"builtins.{found[1]}"


class _Nothing:
    """Stands in for a value: takes whatever makes or fills it, and keeps nothing."""

    def __new__(cls, *arguments: object, **named: object) -> "_Nothing":
        return super().__new__(cls)

    def __init__(self, *arguments: object, **named: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class _Mapping:
    """Stands in for a class that may be a mapping: torch's reader fills no other types entry by entry."""

    def __new__(cls, *arguments: object, **named: object) -> "OrderedDict[Any, Any]":  # type: ignore[misc]
        return OrderedDict()


class _List:
    """Stands in for a class that is filled item by item."""

    def __new__(cls, *arguments: object, **named: object) -> "list[Any]":  # type: ignore[misc]
        return []


def _stand_in(name: str) -> type | None:
    """What takes the place of the class or function of that name; None where it must be refused.

    Python's own library, torch and numpy hold all that could do harm, so there only known names of data pass. Other
    packages' classes are the settings of scripts. A whole network has torch's layers in it.
    """
    module, _, _ = name.rpartition(".")
    package = name.partition(".")[0]
    if name == "collections.defaultdict":
        return _Mapping
    if name == "collections.deque":
        return _List
    if name in HARMLESS or module.removesuffix("._local") in HARMLESS_MODULES:
        return type(ARRAY if name.endswith("._reconstruct") else name, (_Nothing,), {})
    return None if package in LIBRARIES else _Mapping


def _refusal(path: Path, asked: list[str], reason: str) -> WeightsError:
    """`asked`: names of classes and functions; the last is the one that is refused, "" if it is something else."""
    names = shorten(", ".join(asked[-MOST_NAMED:]))
    if asked[-1].startswith(("torch.nn.", "torchvision.")):
        content = f"a whole network (it asks for {names})"
    elif asked[-1]:
        content = f"more than tensors (it asks for {names})"
    elif "Unsupported operand" in reason:
        content = "a pickle that torch.save did not write"
    elif "Can only" in reason or "Trying to call" in reason:
        content = "more than tensors"
    else:
        return unreadable(path, "a pickle that torch.save did not write, or truncated")
    return WeightsError(
        f"{path} holds {content} and was refused unread: a pickle can run code",
        "save tensors only, torch.save(network.state_dict(), path), or use safetensors",
    )


def _walk(
    content: object, path: str = "", depth: int = 0, seen: set[int] | None = None
) -> Iterator[tuple[str, object]]:
    """(path, value) of everything with a name below `content`; each mapping and list is looked into once.

    A list of (name, value) is a mapping.
    """
    seen = set() if seen is None else seen
    if not isinstance(content, Mapping | list | tuple):
        if path:
            yield path, content
        return
    if depth == DEEPEST or id(content) in seen:
        return
    seen.add(id(content))
    parts: Iterable[tuple[object, object]] = enumerate(content)
    if isinstance(content, Mapping):
        parts = ((key, value) for key, value in content.items() if isinstance(key, str))
    elif content and all(map(_is_pair, content)):
        parts = content
    for key, value in parts:
        yield from _walk(value, f"{path}.{key}" if path else str(key), depth + 1, seen)


def _is_pair(value: object) -> bool:
    if not isinstance(value, list | tuple) or len(value) != 2:
        return False
    return isinstance(value[0], str) and isinstance(value[1], Tensor)


def _is_plain(value: object) -> TypeGuard[Tensor]:
    """Whether it is a tensor of real numbers, one beside the other, as weights are."""
    return isinstance(value, Tensor) and not _oddity(value)


def _oddity(tensor: Tensor) -> str:
    """What keeps it from holding plain numbers; "" if nothing does."""
    if tensor.is_quantized:
        return "quantized"
    if tensor.layout != torch.strided:
        return "sparse"
    return "complex" if tensor.is_complex() else "" if tensor.device.type == "cpu" else "without values"


def _describe(content: object) -> str:
    """A file's content that has no named tensor."""
    if not isinstance(content, Mapping):
        return f"a {_name_kind(content)}, not a state dict"
    odd = next(((key, value) for key, value in content.items() if not isinstance(value, Mapping)), None)
    if odd is None:
        return "an empty state dict"
    return f"not a state dict: {shorten(repr(odd[0]))} is a {_name_kind(odd[1])}"


def _name_kind(value: object) -> str:
    kind = type(value)
    if isinstance(value, Tensor) and (oddity := _oddity(value)):
        return f"{oddity} tensor, and dense real ones are needed"
    return f"{ARRAY}, and torch.from_numpy makes it a tensor" if kind.__name__ == ARRAY else kind.__name__
