"""Reading a folder: the pictures under it by their names, and what is passed over. No file is opened."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from toolkit.data.formats import count_endings, is_picture
from toolkit.data.leftovers import Leftover, find_leftover
from toolkit.errors import DataError

Reason = Leftover | Literal["linked", "special", "other endings"]
"""Linked: a folder that a link leads to, where links are not followed. Special: a pipe, a socket, a device."""

CLASS_LIST = "classes.txt"
"""The file of class names in the root of a data set."""


@dataclass(frozen=True)
class PassedOver:
    """A file, or a folder with all that is in it, that is not read; `path` is relative to the folder that was read."""

    reason: Reason
    path: str
    is_folder: bool = False


@dataclass(eq=False)
class Folder:
    """A folder and what lies in it, sorted; `path` is relative to the folder that was read ("" is that folder)."""

    path: str
    name: str
    pictures: list[str] = field(default_factory=list)
    """paths of the pictures directly in it"""
    folders: "list[Folder]" = field(default_factory=list)
    passed_over: list[PassedOver] = field(default_factory=list)
    """directly in it"""
    links: list[str] = field(default_factory=list)
    """paths of pictures and folders directly in it that are links, and were followed"""

    def walk(self) -> "Iterator[Folder]":
        """This folder and every folder under it."""
        waiting = [self]
        while waiting:
            folder = waiting.pop()
            yield folder
            waiting += reversed(folder.folders)

    @property
    def has_pictures(self) -> bool:
        return any(folder.pictures for folder in self.walk())

    def all_pictures(self) -> list[str]:
        """Paths of all pictures under it, sorted as text."""
        return sorted(picture for folder in self.walk() for picture in folder.pictures)

    def all_passed_over(self) -> list[PassedOver]:
        return [item for folder in self.walk() for item in folder.passed_over]

    def unread_endings(self) -> Counter[str]:
        """Endings of the files under it that are passed over because of them → how many."""
        return count_endings(item.path for item in self.all_passed_over() if item.reason == "other endings")


def read_folder(root: Path, follows_links: Callable[[str], bool] = lambda _: False) -> Folder:
    """Everything under `root`. Raises DataError for a folder that may not be read.

    Links to files are followed. Links to folders are followed in `root` and in those folders of it of whose names
    `follows_links` is true; nowhere else, and never back to a folder above the link: so it always ends.
    """
    top = Folder("", root.name)
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        follows = not folder.path or ("/" not in folder.path and follows_links(folder.name))
        for entry in _list(root / folder.path):
            _sort_in(folder, entry, follows=follows)
        waiting += folder.folders
    return top


def _list(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(
            f"cannot read the folder {folder}: {error.strerror}", "change its permissions so that you may read it"
        ) from None


def _sort_in(folder: Folder, entry: os.DirEntry[str], *, follows: bool) -> None:
    """Put an entry of `folder` where it belongs."""
    path = f"{folder.path}/{entry.name}" if folder.path else entry.name
    kind = _kind_of(entry)
    reason: Reason | None = find_leftover(entry.name)
    if reason is None:
        if kind == "folder":
            reason = "linked" if entry.is_symlink() and not (follows and _leads_away(entry)) else None
        elif kind == "special":
            reason = "special"
        elif not is_picture(entry.name):
            reason = "other endings"
    if reason is not None:
        if entry.name != CLASS_LIST:
            folder.passed_over.append(PassedOver(reason, path, kind == "folder"))
        return
    if entry.is_symlink():
        folder.links.append(path)
    if kind == "folder":
        folder.folders.append(Folder(path, entry.name))
    else:
        folder.pictures.append(path)


def _kind_of(entry: os.DirEntry[str]) -> Literal["folder", "file", "special"]:
    """What it is, or what it is a link to; a link to nothing is a file, which cannot be read."""
    try:
        if entry.is_dir():
            return "folder"
        return "file" if entry.is_file() or (entry.is_symlink() and not Path(entry.path).exists()) else "special"
    except OSError:  # a link to itself, or into a folder that may not be entered
        return "file"


def _leads_away(link: os.DirEntry[str]) -> bool:
    """Whether a link to a folder does not lead to the folder that it lies in, or to one above: back to itself."""
    place = Path(link.path)
    return not place.parent.resolve().is_relative_to(place.resolve())
