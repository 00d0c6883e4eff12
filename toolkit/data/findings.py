"""Findings about a data set: files passed over, files read in a special way, and what looks wrong."""

from dataclasses import dataclass
from typing import Literal

Group = Literal["passed over", "read in a special way", "looks wrong"]


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
