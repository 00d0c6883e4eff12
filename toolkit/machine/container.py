"""Facts about the container that the image knows: where a volume belongs, and whether one is mounted."""

import os
from pathlib import Path

VOLUME = "KD_TOOLKIT_VOLUME"
"""Environment variable of the image: the folder where a volume belongs."""

MOUNTS = Path("/proc/self/mountinfo")
"""Linux's list of mounts; the fifth field of a line is the mount point (proc_pid_mountinfo(5))."""


def missing_volume(path: Path) -> str | None:
    """In the image: the folder where a volume would keep `path`, if none of its folders is a mount; else None."""
    volume = os.environ.get(VOLUME)
    if not volume or not MOUNTS.is_file():
        return None
    lines = MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()
    mounted = {Path(line.split()[4]) for line in lines} - {Path("/")}
    place = path.resolve()
    return None if mounted.intersection((place, *place.parents)) else volume
