"""Findings about a data set: files passed over, files read in a special way, and what looks wrong."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Group = Literal["passed over", "read in a special way", "looks wrong"]
GROUPS: tuple[Group, ...] = get_args(Group)


@dataclass(frozen=True)
class Finding:
    """One kind of oddity in a data set: how often it occurs, and one example."""

    group: Group
    kind: str
    """a short name for programs that never changes, such as "hidden", "linked", "cmyk", "two labels" """
    count: int
    """how many files, pictures or classes"""
    example: str
    """one of them: a path relative to the data set's root with `/`, or the name of a class"""
    sentence: str
    """one line for people, complete with count and example"""
    remedy: str = ""
    """what to do about it, if anything"""


def find(
    group: Group, kind: str, items: Sequence[str], what: str, remedy: str = "", *, shown: str = ""
) -> list[Finding]:
    """A finding about `items`; none without items. The first one is the example, and `shown` is how it is shown.

    The sentence reads `1 blank picture: a.png` or `2 blank pictures, such as a.png`; `{s}` or `{es}` in `what` is the
    plural's ending. Names in `what` go through `verbatim`: they may hold braces.
    """
    if not items:
        return []
    one = len(items) == 1
    what = what.format(s="" if one else "s", es="" if one else "es")
    sentence = f"{len(items):,} {what}{': ' if one else ', such as '}{shown or items[0]}"
    return [Finding(group, kind, len(items), items[0], sentence, remedy)]


def verbatim(name: str) -> str:
    """A name as it may stand in the `what` of `find`."""
    return name.replace("{", "{{").replace("}", "}}")


def say_briefly(findings: Iterable[Finding]) -> list[str]:
    """A line for each finding that a training should mention: what was passed over, and what looks wrong."""
    beginnings = {"passed over": "passed over ", "looks wrong": "warning: "}
    return [
        beginnings[finding.group] + "; ".join(filter(None, (finding.sentence, finding.remedy)))
        for finding in findings
        if finding.group in beginnings
    ]
