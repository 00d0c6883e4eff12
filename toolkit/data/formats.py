"""The one list of picture formats: the content of files, and the endings of their names."""

FORMATS: dict[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "WebP": (".webp",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
}
"""Format → endings of its files. Pillow's other readers stay off: one starts programs."""

READERS = (*(name.upper() for name in FORMATS), "DIB")
"""Pillow's names of them; DIB is a BMP without the file's own header."""

PICTURE_ENDINGS = frozenset(ending for endings in FORMATS.values() for ending in endings)
"""Endings, in lower case, of the files that are pictures if a directory is given."""

DATA_SET_ENDINGS = PICTURE_ENDINGS - {".gif"}
"""Endings of files that belong to a data set. A GIF has 256 colours and is often animated: not a photograph."""


def join_names(names: tuple[str, ...]) -> str:
    """`jpg, png or bmp`"""
    return f"{', '.join(names[:-1])} or {names[-1]}"


FORMAT_NAMES = join_names(tuple(FORMATS))
DATA_SET_NAMES = tuple(ending[1:] for endings in FORMATS.values() for ending in endings if ending in DATA_SET_ENDINGS)
