"""The cache of downloads, hashes and decoded pixels: its folder, and the limit of decoded pixels."""

import math
import os
from pathlib import Path

from toolkit.errors import DataError

REMEDY = "free some space, or set KD_TOOLKIT_CACHE to a writable folder"
"""The remedy if the cache cannot be written."""

LIMIT_VARIABLE = "KD_TOOLKIT_CACHE_LIMIT_GIB"
"""Environment variable: the user's limit of decoded pixels, in GiB (2^30 bytes)."""


def cache_folder(*parts: str) -> Path:
    """$KD_TOOLKIT_CACHE, else $XDG_CACHE_HOME/kd-toolkit, else ~/.cache/kd-toolkit; not created.

    Raises DataError if that begins with ~ and there is no home folder.
    """
    if own := os.environ.get("KD_TOOLKIT_CACHE"):
        return _absolute(own).joinpath(*parts)
    user_cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return _absolute(user_cache).joinpath("kd-toolkit", *parts)


def cache_limit_bytes() -> int | None:
    """Bytes that all decoded pixels in the cache may take together; None if the user set no limit.

    Raises DataError for a limit that is not a number above 0.
    """
    text = os.environ.get(LIMIT_VARIABLE, "").strip()
    if not text:
        return None
    try:
        limit_gib = float(text)
    except ValueError:
        limit_gib = math.nan
    if not (math.isfinite(limit_gib) and limit_gib > 0):
        raise DataError(
            f"{LIMIT_VARIABLE} = {text!r} is not a number above 0",
            "set it to the most GiB of decoded images in the cache, or unset it for no limit",
        )
    return int(limit_gib * 2**30)


def _absolute(folder: str) -> Path:
    try:
        return Path(folder).expanduser().absolute()
    except RuntimeError:
        raise DataError(
            f"there is no place for the cache: {folder} begins with ~, but this user has no home folder",
            "set KD_TOOLKIT_CACHE to a writable folder",
        ) from None
