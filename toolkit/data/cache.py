"""Where downloads and decoded pixels are kept."""

import os
from pathlib import Path

REMEDY = "free some space, or set KD_TOOLKIT_CACHE to a folder you may write to"
"""What to do where the cache cannot be written."""


def cache_folder(*parts: str) -> Path:
    """$KD_TOOLKIT_CACHE, else $XDG_CACHE_HOME/kd-toolkit, else ~/.cache/kd-toolkit; not created."""
    if own := os.environ.get("KD_TOOLKIT_CACHE"):
        return Path(own).expanduser().absolute().joinpath(*parts)
    user_cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(user_cache).expanduser().absolute().joinpath("kd-toolkit", *parts)
