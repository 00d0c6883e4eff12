"""The one list of picture formats: the content of files, and the endings of their names.

The rule is the same everywhere, for a data set and for `toolkit predict`: a file found in a folder is a picture if its
name has one of these endings, in capitals or not; its content decides in which format it is read. A file that is named
one by one is read whatever its ending.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import PurePath

from toolkit.console import name_some, printable

FORMATS: dict[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WebP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
}
"""Format → endings of its files. Pillow's other readers stay off: one starts programs."""

READERS = (*(name.upper() for name in FORMATS), "DIB")
"""Pillow's names of them; DIB is a BMP without the file's own header."""

PICTURE_ENDINGS = frozenset(ending for endings in FORMATS.values() for ending in endings)
"""Endings, in lower case, of the files that are pictures if a directory is given."""

UNREAD_PICTURE_ENDINGS = frozenset(
    {
        *(".heic", ".heif", ".hif", ".avif", ".jxl", ".jp2", ".j2k", ".jpx", ".jxr"),  # phones, the web, archives
        *(".dng", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2", ".pef", ".srw", ".x3f"),  # cameras
        *(".tga", ".psd", ".svg", ".ico", ".qoi", ".exr", ".hdr", ".pfm", ".dcm", ".nii"),
    }
)
"""Endings of pictures that are not read: a folder that holds them is meant to be a class."""


def ending_of(name: str) -> str:
    """`.jpg` of `a/b.JPG`; "" without an ending."""
    return PurePath(name).suffix.lower()


def is_picture(name: str) -> bool:
    return ending_of(name) in PICTURE_ENDINGS


def join_names(names: tuple[str, ...]) -> str:
    """`jpg, png or bmp`"""
    return f"{', '.join(names[:-1])} or {names[-1]}"


FORMAT_NAMES = join_names(tuple(FORMATS))

NO_ENDING = "without ending"


def count_endings(names: Iterable[str]) -> Counter[str]:
    """`.txt` → how many files end so; NO_ENDING stands for those that have none."""
    return Counter(ending_of(name) or NO_ENDING for name in names)


def name_endings(endings: Counter[str]) -> str:
    """`6 .txt, 5 .heic`"""
    return name_some([f"{times:,} {printable(ending)}" for ending, times in endings.most_common()])


def find_way_out(endings: Iterable[str]) -> str:
    """What to do about files with these endings if they are pictures; "" if they hardly are."""
    ways = [] if UNREAD_PICTURE_ENDINGS.isdisjoint(endings) else ["convert them to JPEG or PNG"]
    ways += ["give them endings such as .jpg or .png"] if NO_ENDING in endings else []
    return " or ".join(ways)
