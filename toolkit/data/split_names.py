"""The names of split folders: the plain ones, those that downloads and scripts give them, and those that only hint."""

import re
from collections import defaultdict
from collections.abc import Iterable

from toolkit.data.dataset import Split

SPLIT_FOLDERS: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "valid"),
    **dict.fromkeys(("test", "testing", "evaluation", "eval"), "test"),
}
"""Plain names, in upper or lower case."""

_HINTS: dict[str, Split] = {"trn": "train", "dev": "valid", "tst": "test", "holdout": "test", "heldout": "test"}
"""Words that mean a split for some people and something else for others."""

_NEUTRAL = frozenset(
    (
        *("set", "sets", "data", "dataset", "split", "splits", "part", "folder", "dir", "seg", "sample", "samples"),
        *("image", "images", "img", "imgs", "picture", "pictures", "pics", "photo", "photos"),
    )
)
"""Words that stand beside that of a split, and mean no class."""

_WORD = re.compile(r"[^\W\d_]+")
_CAPITAL = re.compile(r"(?<=[a-z])(?=[A-Z])")


def split_of(name: str) -> Split | None:
    """The split that a folder of this name is by its name alone: `train`, `Training_Set`, `test1`, `valImages`."""
    plain = SPLIT_FOLDERS.get(name.lower())
    if plain is None and (found := _parse(name, SPLIT_FOLDERS)) is not None and not found[1]:
        plain = found[0]
    return plain


def likely_splits(names: Iterable[str]) -> dict[str, Split]:
    """Those of `names` that are splits by their names, or because they differ in the word of the split only.

    `birds-train` and `birds-test` are, `bullet-train` and `crash-test` are not.
    """
    return _match(names, SPLIT_FOLDERS)


def called_like_splits(names: Iterable[str]) -> list[str]:
    """The same with words that only hint, without the plain names."""
    return [name for name in _match(names, SPLIT_FOLDERS | _HINTS) if name.lower() not in SPLIT_FOLDERS]


def _match(names: Iterable[str], words: dict[str, Split]) -> dict[str, Split]:
    by_rest: dict[tuple[str, ...], dict[str, Split]] = defaultdict(dict)
    for name in names:
        if (found := _parse(name, words)) is not None:
            by_rest[found[1]][name] = found[0]
    return {
        name: split
        for rest, group in by_rest.items()
        if not rest or len({*group.values()}) > 1
        for name, split in group.items()
    }


def _parse(name: str, words: dict[str, Split]) -> tuple[Split, tuple[str, ...]] | None:
    """The split that is named, and the words that are neither it nor neutral; None if not exactly one is named."""
    tokens = [part for token in _WORD.findall(_CAPITAL.sub(" ", name)) for part in _divide(token.lower(), words)]
    splits = {words[token] for token in tokens if token in words}
    if len(splits) != 1:
        return None
    return splits.pop(), tuple(token for token in tokens if token not in words and token not in _NEUTRAL)


def _divide(token: str, words: dict[str, Split]) -> tuple[str, ...]:
    """`trainset` → train, set."""
    for word in words:
        if token.startswith(word) and token[len(word) :] in _NEUTRAL:
            return word, token[len(word) :]
    return (token,)
