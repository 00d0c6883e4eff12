"""What operating systems, network drives and programs leave between pictures: the one list of its names."""

import re
from typing import Literal

Leftover = Literal["hidden", "system", "partial"]
"""A name that begins with a dot; a file or folder of a system; a download that is not finished."""

_SYSTEM = frozenset(
    {
        *("__macosx", "icon\r", "network trash folder", "temporary items"),  # macOS
        *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "$recycle.bin"),  # Windows
        *("system volume information", "msdownld.tmp"),
        *("lost+found", "lost.dir"),  # ext4, Android
        *("@eadir", "#recycle", "#snapshot", "@tmp"),  # Synology
        *("@recycle", "@recently-snapshot", "@__thumb", ":2eds_store"),  # QNAP
        *("~snapshot", "_gsdata_", "sync.ffs_db"),  # NetApp, GoodSync, FreeFileSync
        *("picasa.ini", "pspbrwse.jbf", "zbthumbnail.info", "photothumb.db"),  # picture viewers
        "__pycache__",
    }
)
"""In lower case: several of these systems do not distinguish capitals."""

_SYSTEM_PATTERN = re.compile(
    r"found\.\d{3}"  # Windows, after a check of the disk
    r"|@gmt-[\d.-]+"  # Samba's shadow copies
    r"|~\$.*"  # Office, while a document is open
    r"|.*zone\.identifier"  # Windows' mark of a download, as a file of its own
)

_PARTIAL_ENDINGS = (
    *(".part", ".partial", ".crdownload", ".download", ".opdownload", ".filepart", ".aria2"),
    *(".tmp", ".temp", ".!ut", ".!qb"),
)


def find_leftover(name: str) -> Leftover | None:
    """What a file or folder of this name is left by; None if it is none of that."""
    lower = name.lower()
    if name.startswith("."):
        return "hidden"
    if lower in _SYSTEM or _SYSTEM_PATTERN.fullmatch(lower):
        return "system"
    return "partial" if lower.endswith(_PARTIAL_ENDINGS) else None
