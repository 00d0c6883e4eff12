"""Near copies: pictures of two splits that show the same, though their pixels differ.

They were compressed again, resized, cropped a little or made brighter. A 64-bit hash of each picture's thumbnail finds
pairs that may be copies, and the thumbnails decide: near copies are far more alike than other pictures of one class are
in the same data set. N pictures, P pairs.
"""

from collections.abc import Iterator

import numpy as np
from PIL import Image

from toolkit.console import progress
from toolkit.data.parallel import run_in_blocks

SIDE = 16
"""px; the side of a thumbnail's brightness."""
COLOUR_SIDE = 4
"""px; the side of a thumbnail's two colour differences."""
THUMBNAIL_BYTES = SIDE**2 + 2 * COLOUR_SIDE**2

HASH_DISTANCE = 12
"""bits; of 64 that may differ. Unrelated pictures differ in 32 on average."""
CANDIDATES = 64
"""Pictures compared with each one at most: those with the nearest hashes."""
ORDINARY_PAIRS = 5000
"""Random pairs of one class that say how alike pictures of this data set usually are."""
DEVIATIONS = 7.0
"""Robust standard deviations by which a near copy is more alike than an ordinary pair."""
LEAST_LIKENESS, MOST_LIKENESS = 0.7, 0.98
"""Bounds of the likeness that is required, whatever the data set is like."""
LEAST_CONTRAST = 4.0
"""Grey levels of 255; pictures whose brightness deviates less than this are too even to be compared."""

_WEAK = 20.0
"""Grey levels; differences of neighbouring pixels far above this all count alike, those below by their size."""
_BLOCK_DISTANCES = 2**22
_BLOCK_PAIRS = 2**13
_COSINES = np.cos(np.pi * np.outer(np.arange(8), 2 * np.arange(SIDE) + 1) / (2 * SIDE)).astype(np.float32)


def make_thumbnail(image: Image.Image) -> np.ndarray:
    """RGB → uint8 (THUMBNAIL_BYTES,): 16×16 px of brightness (Y), then 4×4 px of each colour difference (Cb, Cr)."""
    small = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0).convert("YCbCr")
    coarse = small.resize((COLOUR_SIDE, COLOUR_SIDE), Image.Resampling.BOX)
    planes = (small.getchannel("Y"), coarse.getchannel("Cb"), coarse.getchannel("Cr"))
    return np.concatenate([np.asarray(plane).ravel() for plane in planes])


def hash_thumbnails(thumbnails: np.ndarray) -> np.ndarray:
    """uint8 (N, THUMBNAIL_BYTES) → uint64 (N,): the signs of the 64 lowest frequencies, against their median.

    This is pHash (C. Zauner 2010, Implementation and Benchmarking of Perceptual Image Hash Functions), from 16×16
    instead of 32×32 px. It is written here because the library ImageHash needs SciPy and PyWavelets.
    """
    frequencies = (_COSINES @ _brightness(thumbnails) @ _COSINES.T).reshape(-1, 64)
    bits = frequencies > np.median(frequencies[:, 1:], axis=1, keepdims=True)
    bits[:, 0] = False  # the mean brightness says nothing about what is in the picture
    return np.packbits(bits, axis=1).view(np.uint64)[:, 0]


def find_near_copies(thumbnails: np.ndarray, labels: np.ndarray, splits: np.ndarray) -> list[tuple[int, int]]:
    """(i, j) with splits[i] < splits[j]: for each picture j that has a near copy in an earlier split, the nearest one.

    uint8 (N, THUMBNAIL_BYTES), int64 (N,) with −1 for pictures without a label, int64 (N,). Copies that are equal to
    the pixel count too.
    """
    hashes, clear = _hash_blocks(thumbnails)
    required = require_likeness(thumbnails, labels, clear)
    found: list[tuple[int, int]] = []
    for split in np.unique(splits)[1:]:
        earlier, own = np.flatnonzero(clear & (splits < split)), np.flatnonzero(clear & (splits == split))
        for candidates in _find_candidates(hashes, earlier, own):
            found += _choose_nearest(thumbnails, candidates, required)
    return found


def _hash_blocks(thumbnails: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """uint64 (N,) hashes, and bool (N,): which pictures have enough contrast to be compared."""
    hashes, clear = np.zeros(len(thumbnails), dtype=np.uint64), np.zeros(len(thumbnails), dtype=bool)
    for start in range(0, len(thumbnails), _BLOCK_PAIRS):
        block = slice(start, start + _BLOCK_PAIRS)
        hashes[block] = hash_thumbnails(thumbnails[block])
        clear[block] = _brightness(thumbnails[block]).std(axis=(1, 2)) >= LEAST_CONTRAST
    return hashes, clear


def require_likeness(thumbnails: np.ndarray, labels: np.ndarray, clear: np.ndarray) -> float:
    """The likeness from which on two pictures of this data set count as near copies; of `clear`, labelled ones.

    Fisher's transform makes likenesses, which are correlations, roughly normal; median and median deviation ignore
    pairs that are copies themselves.
    """
    chosen = np.flatnonzero(clear & (labels >= 0))
    a, b = (chosen[part] for part in _draw_ordinary_pairs(labels[chosen]))
    if not len(a):
        return MOST_LIKENESS
    values = np.arctanh(_likeness(thumbnails[a], thumbnails[b]).astype(np.float64).clip(-0.999, 0.999))
    middle = np.median(values)
    deviation = 1.4826 * np.median(np.abs(values - middle))
    return float(np.clip(np.tanh(middle + DEVIATIONS * deviation), LEAST_LIKENESS, MOST_LIKENESS))


def _draw_ordinary_pairs(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices (P,), (P,) of different pictures of one class; the same ones each time."""
    generator = np.random.default_rng(0)
    order = np.argsort(labels, kind="stable")
    first = generator.integers(0, max(len(labels), 1), ORDINARY_PAIRS if len(labels) else 0)
    starts, ends = (np.searchsorted(labels[order], labels[order[first]], side=side) for side in ("left", "right"))
    second = generator.integers(starts, ends)
    return order[first[first != second]], order[second[first != second]]


def _find_candidates(hashes: np.ndarray, earlier: np.ndarray, own: np.ndarray) -> Iterator[np.ndarray]:
    """int64 (P, 2): pictures of `earlier` and of `own` whose hashes are near, block by block."""
    step = max(_BLOCK_DISTANCES // max(len(earlier), 1), 1)
    blocks = [own[start : start + step] for start in range(0, len(own), step)]

    def compare(i: int) -> np.ndarray:
        distances = np.bitwise_count(hashes[blocks[i], None] ^ hashes[earlier])
        near = distances <= HASH_DISTANCE
        for row in np.flatnonzero(near.sum(axis=1) > CANDIDATES):
            near[row] = False
            near[row, np.argpartition(distances[row], CANDIDATES)[:CANDIDATES]] = True
        rows, columns = np.nonzero(near)
        return np.stack([earlier[columns], blocks[i][rows]], axis=1)

    with progress("compare", len(blocks)) as advance:
        for found in run_in_blocks(compare, len(blocks)):
            yield from found
            advance(len(found))


def _choose_nearest(thumbnails: np.ndarray, pairs: np.ndarray, required: float) -> list[tuple[int, int]]:
    """Of int64 (P, 2), the pairs that are near copies; for each second picture the nearest first one."""
    best: dict[int, tuple[float, int]] = {}
    for start in range(0, len(pairs), _BLOCK_PAIRS):
        some = pairs[start : start + _BLOCK_PAIRS]
        a, b = thumbnails[some[:, 0]], thumbnails[some[:, 1]]
        likeness = np.where(_same_colours(a, b), _likeness(a, b), 0)
        for k in np.flatnonzero(likeness >= required):
            i, j = map(int, some[k])
            best[j] = max(best.get(j, (0.0, 0)), (float(likeness[k]), -i))  # the first one of those that are equal
    return [(-i, j) for j, (_, i) in sorted(best.items())]


def _brightness(thumbnails: np.ndarray) -> np.ndarray:
    return thumbnails[:, : SIDE**2].reshape(-1, SIDE, SIDE).astype(np.float32)


def _likeness(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Thumbnails (P, THUMBNAIL_BYTES) of each → float32 (P,), −1 to 1: the correlation of their edges."""
    likeness: np.ndarray = (_edges(a) * _edges(b)).sum(axis=1)
    return likeness


def _edges(thumbnails: np.ndarray) -> np.ndarray:
    """float32 (P, K) of length 1: differences of neighbouring pixels, the strong ones compressed.

    Uncompressed, an outline on a plain background would outweigh everything that is inside it.
    """
    light = _brightness(thumbnails)
    down, right = np.diff(light, axis=1)[:, :, 1:], np.diff(light, axis=2)[:, 1:]
    edges = np.stack([down, right], axis=1).reshape(len(light), -1)
    edges /= np.abs(edges) + _WEAK
    edges /= np.maximum(np.linalg.norm(edges, axis=1, keepdims=True), 1e-6)
    return edges


def _same_colours(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """bool (P,): colour differences that deviate by half their size at most (and by 4 levels in any case).

    A grey picture may be a copy of one in colours.
    """
    x, y = (part[:, SIDE**2 :].astype(np.float32) - 128 for part in (a, b))
    level = np.sqrt(x.shape[1])  # the length of a deviation of one level
    lengths = np.stack([np.linalg.norm(x, axis=1), np.linalg.norm(y, axis=1)])
    same: np.ndarray = np.linalg.norm(x - y, axis=1) <= 0.5 * lengths.max(axis=0) + 4 * level
    same |= lengths.min(axis=0) <= 2 * level
    return same
