"""Seeded, stratified splits for data without splits."""

from collections.abc import Sequence

import numpy as np

from toolkit.data.dataset import Images
from toolkit.errors import DataError


def hold_out(images: Images, fraction: float, seed: int, classes: Sequence[str]) -> tuple[Images, Images]:
    """Divide `images` into (kept, held out), both in their old order; the same every time.

    It holds out `fraction` (0..1) of each class, rounded, but at least one image stays on each side. Raises DataError
    for a class of a single image.
    """
    draw = np.random.default_rng([seed, round(fraction * 1_000_000)])
    held = np.zeros(len(images), dtype=bool)
    for label, name in enumerate(classes):
        members = np.flatnonzero(images.labels == label)
        if len(members) < 2:
            raise DataError(
                f"class {name!r} has {len(members)} image, too few to hold one out for validation or test",
                "add images of that class, or give the data set its own train, val and test folders",
            )
        count = min(max(round(len(members) * fraction), 1), len(members) - 1)
        held[draw.permutation(members)[:count]] = True
    return images.subset(np.flatnonzero(~held)), images.subset(np.flatnonzero(held))


def take_share(images: Images, share: float, seed: int) -> Images:
    """`share` (0..1] of each class's images, rounded, but at least one; in their old order, the same every time."""
    draw = np.random.default_rng([seed, round(share * 1_000_000), 1])
    kept = np.zeros(len(images), dtype=bool)
    for label in np.unique(images.labels):
        members = np.flatnonzero(images.labels == label)
        kept[draw.permutation(members)[: max(round(len(members) * share), 1)]] = True
    return images.subset(np.flatnonzero(kept))


def describe_hold_out(split: str, count: int, total: int, what: str, seed: int) -> str:
    """The note that records a drawn split."""
    return (
        f"{split}: {count:,} of {total:,} {what}, held out at random, the same share of each class (split_seed {seed})"
    )
