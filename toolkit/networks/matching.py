"""The weights of a network among the tensors of a file: scripts put them under names of their own.

`{"net": {"module.conv1.weight": ...}}` has a network's `conv1.weight` under the prefix `net.module.`. No list of such
names is needed: a prefix is right if all weights of the network stand under it, and no other ones.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from toolkit.errors import shorten

WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Parts of names that torch adds where a part of a network was wrapped: `features.module.0.weight`."""
COUNTERS = {"num_batches_tracked", "n_averaged", "total_ops", "total_params"}
"""Last parts of names that no answer depends on: old files lack the first, a profiler leaves the last two."""
AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
"""Heads that GoogLeNet and Inception have in training alone."""
MOST_PARTS = 64
"""of a name; torchvision's have eight at most"""
AVERAGES = {"ema", "swa", "averaged", "average", "teacher"}
"""Words of a prefix that say that these weights are an average over training."""


@dataclass(frozen=True)
class Match:
    """A network's weights in a file: `tensors` by the network's names, `prefix` what stands before them in the file.

    `without` are further parts of names that were taken off, and heads that were left out. Under `others` there are
    weights that fit as well. `moved` says which layer was taken for which, if the last one has another name.
    """

    prefix: str
    tensors: dict[str, Tensor]
    without: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    moved: str = ""

    def describe(self) -> str:
        """What was taken off, in words; "" if nothing was."""
        if not (self.prefix or self.without or self.others or self.moved):
            return ""
        under = f" under {self.prefix.rstrip('.')}" if self.prefix else ""
        without = f" without {' and '.join(self.without)}" if self.without else ""
        names = " and ".join(other.rstrip(".") or "no prefix" for other in self.others)
        moved = f", {self.moved}" if self.moved else ""
        return shorten(f"the weights{under}{without}{moved}" + (f" (there are others under {names})" if names else ""))


Way = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Match | None]
"""Finds the weights of a network in one of the forms that files have."""


def match(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Match | None:
    """The weights with all names of `own`, a network's state dict; None if there are none.

    Of several, those whose shapes are the network's come first, then an average, then what stands first in the file.
    """
    ways = (_match_plain, _match_unwrapped, _match_parts)
    found = next((found for way in ways if (found := way(tensors, own))), None)
    return found or _match_moved_head(tensors, own, ways)


def misfits(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    """Names, as in the file, that are missing there and that are there without being the network's.

    They are those under the prefix that has most of the network's names.
    """
    prefix = _best_prefix(tensors, own)
    below = _below(prefix, tensors)
    missing, unexpected = _missing(below, own), _unexpected(below, own)
    return [prefix + name for name in missing], [prefix + name for name in unexpected]


def find_prefixes(tensors: Iterable[str], name: str) -> list[str]:
    """What stands before each `name` in the file, averages first."""
    found = [other.removesuffix(name) for other in tensors if other == name or other.endswith(f".{name}")]
    return sorted(found, key=lambda prefix: not _is_average(prefix))


def _prefixes(tensors: Iterable[str], own: Iterable[str]) -> Counter[str]:
    """Prefix → how many names of `own` stand under it."""
    names = set(own)
    return Counter(name.removesuffix(end) for name in tensors for end in _ends(name) if end in names)


def _best_prefix(tensors: Iterable[str], own: Collection[str]) -> str:
    """The prefix that most of the network's names stand under; none if even that has few of them."""
    prefix, count = next(iter(_prefixes(tensors, own).most_common(1)), ("", 0))
    return prefix if 2 * count > len(own) else ""


def _ends(name: str) -> list[str]:
    """`a.b.c` → `a.b.c`, `b.c`, `c`; none of a name that no script gives."""
    parts = name.split(".")
    if len(parts) > MOST_PARTS:
        return []
    return [".".join(parts[start:]) for start in range(len(parts))]


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _missing(below: Iterable[str], own: Iterable[str]) -> list[str]:
    there = set(below)
    return [name for name in own if name not in there and not _is_counter(name)]


def _unexpected(below: Iterable[str], own: Iterable[str]) -> list[str]:
    names = set(own)
    others = [name for name in below if name not in names and not _is_counter(name)]
    return [name for name in others if not name.startswith(AUXILIARY)]


def _match_plain(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Match | None:
    """The match under one prefix."""
    least = len(_missing({}, own))
    prefixes = [prefix for prefix, count in _prefixes(tensors, own).items() if count >= least]
    found = [one for prefix in prefixes if (one := _match_below(prefix, tensors, own))]
    if not found:
        return None
    best, *others = sorted(found, key=lambda one: (_misshapen(one, own), not _is_average(one.prefix)))
    return replace(best, others=tuple(other.prefix for other in others))


def _match_below(prefix: str, tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Match | None:
    below = _below(prefix, tensors)
    if _missing(below, own) or _unexpected(below, own):
        return None
    left_out = {name.partition(".")[0] for name in below if name not in own and name.startswith(AUXILIARY)}
    return Match(prefix, {name: below[name] for name in own if name in below}, tuple(sorted(left_out)))


def _match_unwrapped(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Match | None:
    """The match without the parts of names that torch adds in their middle."""
    parts = {part for name in tensors for part in name.split(".")} & WRAPPERS
    plain, plain_own = ({_unwrap(name): name for name in names} for names in (tensors, own))
    if not parts or len(plain) < len(tensors) or len(plain_own) < len(own):
        return None
    by_plain_name = (
        {name: values[full] for name, full in names.items()} for values, names in ((tensors, plain), (own, plain_own))
    )
    if (found := _match_plain(*by_plain_name)) is None:
        return None
    renamed = {plain_own[name]: value for name, value in found.tensors.items()}
    return replace(found, tensors=renamed, without=(*sorted(parts), *found.without))


def _unwrap(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _match_parts(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Match | None:
    """The match where parts of the network have different prefixes (`backbone.conv1.weight`, `head.fc.weight`).

    Each name of the file counts for the longest of the network's names that it ends in.
    """
    ends = {name: next((end for end in _ends(name) if end in own), None) for name in tensors}
    taken = {end: tensors[name] for name, end in ends.items() if end is not None}
    prefixes = {name.removesuffix(end) for name, end in ends.items() if end is not None}
    strange = [name for name, end in ends.items() if end is None and name.startswith(tuple(prefixes))]
    if _missing(taken, own) or _unexpected(strange, own) or len(taken) < sum(end is not None for end in ends.values()):
        return None
    names = tuple(sorted(prefix.rstrip(".") for prefix in prefixes if prefix))
    return Match("", {name: taken[name] for name in own if name in taken}, names)


def _match_moved_head(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], ways: Sequence[Way]) -> Match | None:
    """The match where only the last layer has another name, and that differs in its numbers.

    `network.fc = Sequential(Dropout(), Linear(512, 3))` names it `fc.1`. What has no weights there has no say in an
    answer, or keeps the order of the classes.
    """
    prefix = _best_prefix(tensors, own)
    below = _below(prefix, tensors)
    missing, unexpected = _missing(below, own), _unexpected(below, own)
    ours, theirs = {*map(_layer, missing)}, {*map(_layer, unexpected)}
    if len(ours) != 1 or len(theirs) != 1 or [*map(_kind, missing)] != [*map(_kind, unexpected)]:
        return None
    (our,), (their,) = ours, theirs
    if _without_numbers(our) != _without_numbers(their) or our != _last_layer(own):
        return None
    if below[f"{their}.weight"].shape[1:] != own[f"{our}.weight"].shape[1:]:
        return None
    taken = {prefix + there: prefix + name for there, name in zip(unexpected, missing, strict=True)}
    renamed = {taken.get(name, name): value for name, value in tensors.items()}
    found = next((found for way in ways if (found := way(renamed, own))), None)
    return found and replace(found, moved=f"{their} for {our}")


def find_other_head(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """The layers that the file has in place of the network's last one, if all else is there; or else ""."""
    below = _below(_best_prefix(tensors, own), tensors)
    stem = f"{_without_numbers(_last_layer(own))}."
    unexpected = _unexpected(below, own)
    if not unexpected or not all(name.startswith(stem) for name in (*_missing(below, own), *unexpected)):
        return ""
    return ", ".join(dict.fromkeys(_layer(name) for name in below if name.startswith(stem)))


def _last_layer(own: Mapping[str, Tensor]) -> str:
    """The last linear layer of a network; "" if it has none."""
    layers = [_layer(name) for name, value in own.items() if _kind(name) == "weight" and value.ndim == 2]
    return layers[-1] if layers else ""


def _layer(name: str) -> str:
    return name.rpartition(".")[0]


def _without_numbers(layer: str) -> str:
    """`fc.1` → `fc`; `features.18.0` → `features`"""
    return re.sub(r"(\.\d+)+$", "", layer)


def _kind(name: str) -> str:
    return name.rpartition(".")[2]


def _misshapen(found: Match, own: Mapping[str, Tensor]) -> int:
    return sum(value.shape != own[name].shape for name, value in found.tensors.items())


def _is_counter(name: str) -> bool:
    return _kind(name) in COUNTERS


def _is_average(prefix: str) -> bool:
    return not AVERAGES.isdisjoint(re.split(r"[^a-z]+", prefix.lower()))
