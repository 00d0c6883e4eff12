"""From a teacher's classes to the data's: matched by name, in any order, with more or fewer of them. C classes."""

import unicodedata
from collections import Counter
from collections.abc import Sequence

from toolkit.errors import WeightsError, shorten

UNKNOWN = -1
"""stands for a class of the data that the teacher does not know"""

SHOWN_CLASSES = 6
"""names of each side in an error"""


def map_classes(theirs: Sequence[str], ours: Sequence[str], who: str) -> tuple[int, ...]:
    """The place among `theirs` of each of `ours`, (C,), or UNKNOWN. `who` has `theirs`.

    If one side has all names of the other, these are matched as they are. Else names are equal if they are the same
    apart from capitals, spaces and punctuation, and from the encoding of accents. Raises WeightsError if each side has
    classes that the other has not, if the teacher knows fewer than two of the data's, and if two names are the same.
    """
    if tuple(theirs) == tuple(ours):
        return tuple(range(len(ours)))
    as_they_are = set(theirs) <= set(ours) or set(ours) <= set(theirs)
    keys = [[name if as_they_are else _letters(name) for name in names] for names in (theirs, ours)]
    for owner, names, own_keys in ((who, theirs, keys[0]), ("the data", ours, keys[1])):
        counts = Counter(own_keys)
        if twice := [name for name, key in zip(names, own_keys, strict=True) if counts[key] > 1]:
            raise WeightsError(
                f"{owner} has two classes named {shorten(twice[1])!r}", "give a file with a name for each class"
            )
    places = {key: place for place, key in enumerate(keys[0])}
    found = tuple(places.get(key, UNKNOWN) for key in keys[1])
    known = len(found) - found.count(UNKNOWN)
    if known < min(2, len(ours)) or (UNKNOWN in found and len(theirs) > known):
        missing = [name for name, place in zip(ours, found, strict=True) if place == UNKNOWN]
        raise WeightsError(
            f"{who} has the classes {show(theirs)}; the data has {show(ours)}, and {show(missing)} is not among them",
            "give a teacher of these classes or train one here (teacher.weights=''), or the names of its outputs in"
            " their order, one per line, in a file: --set teacher.classes=FILE",
        )
    return found


def show(names: Sequence[str]) -> str:
    """`apple, pear, …`"""
    shown = ", ".join(shorten(name) for name in names[:SHOWN_CLASSES])
    return f"{shown}, … ({len(names)})" if len(names) > SHOWN_CLASSES else shown


def _letters(name: str) -> str:
    """Letters and digits alone, with their accents and vowel signs; the name itself if it has none of these."""
    plain = unicodedata.normalize("NFC", name.casefold())
    return "".join(char for char in plain if char.isalnum() or unicodedata.category(char)[0] == "M") or name
