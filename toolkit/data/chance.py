"""Random numbers that are fixed by what they are for: a seed, an image, a view and a kind of draw. B images."""

from enum import IntEnum

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Draw(IntEnum):
    """What numbers are drawn for. Each kind has 256 numbers per view of its own; a new kind goes to the end."""

    PLACE = 0
    CROP = 1
    POLICY = 2
    COLOUR = 3
    ERASING = 4


def uniform(seed: int, images: np.ndarray, view: int, count: int, draw: Draw = Draw.PLACE) -> np.ndarray:
    """Float64 (B, count) in [0, 1), a hash of (seed, image, view, place): splitmix64 (Steele, Lea, Flood 2014)."""
    run = _mix(np.array([seed], np.uint64) + _GOLDEN) ^ _mix(np.array([view], np.uint64) * _GOLDEN + np.uint64(1))
    state = _mix(images.astype(np.uint64) * _GOLDEN + run)
    places = (np.arange(1, count + 1, dtype=np.uint64) + np.uint64(draw << 8)) * _GOLDEN
    bits = _mix(state[:, None] + places)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(state: np.ndarray) -> np.ndarray:
    """Scramble uint64 values; overflow wraps, as it should."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = state ^ (state >> np.uint64(31))
    return mixed
