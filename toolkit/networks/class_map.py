"""From a teacher's classes to the data's: matched by name, in any order, with more or fewer of them. C classes."""

from collections.abc import Sequence

from toolkit.errors import WeightsError, letters_and_digits, shorten

UNKNOWN = -1
"""stands for a class of the data that the teacher does not know"""

SHOWN_CLASSES = 6
"""names of each side in an error"""


def map_classes(theirs: Sequence[str], ours: Sequence[str], who: str) -> tuple[int, ...]:
    """The place among `theirs` of each of `ours`, (C,), or UNKNOWN. `who` has `theirs`.

    Names are equal if they are the same apart from capitals, spaces and marks. Raises WeightsError if each side has
    classes that the other has not, if the teacher knows fewer than two of the data's, and if two names are the same.
    """
    if tuple(theirs) == tuple(ours):
        return tuple(range(len(ours)))
    places: dict[str, int] = {}
    for place, name in enumerate(theirs):
        if places.setdefault(_letters(name), place) != place:
            raise WeightsError(
                f"{who} has two classes named {shorten(name)!r}", "give a file with a name for each class"
            )
    found = tuple(places.get(_letters(name), UNKNOWN) for name in ours)
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
    """Letters and digits alone; the name itself if it has none of these."""
    return letters_and_digits(name.casefold()) or name
