"""Seeded, stratified splits for data without splits."""

from collections.abc import Sequence

import numpy as np

from toolkit.console import count, name_some
from toolkit.data.dataset import Images
from toolkit.errors import DataError


def require_enough(images: Images, held_out: Sequence[str], classes: Sequence[str], where: str) -> None:
    """Raise DataError, which names every class at fault, if `held_out` splits would leave a class without images.

    `where` is the data set as messages name it.
    """
    needed = 1 + len(held_out)
    counts = np.bincount(images.labels, minlength=len(classes)).tolist()
    few = {name: have for name, have in zip(classes, counts, strict=True) if have < needed}
    if not few or not held_out:
        return
    purposes = f"one each for {', '.join(['training', *held_out][:-1])} and {held_out[-1]}"
    first, have = next(iter(few.items()))
    problem = f"class {first!r} has {count(have, 'image')}; {needed} are needed, {purposes}"
    if len(few) > 1:
        shown = name_some([f"{name!r} ({have})" for name, have in few.items()], 20)
        problem = f"{len(few):,} classes have too few images: {shown}; {needed} are needed, {purposes}"
    raise DataError(
        f"{where}: {problem}",
        "add images, leave out those classes, or give the data set train, val and test folders of its own",
    )


def hold_out(images: Images, fraction: float, seed: int) -> tuple[Images, Images]:
    """Divide `images` into (kept, held out), both in their old order; the same every time.

    It holds out `fraction` (0..1) of each class, rounded, but at least one image stays on each side: each class needs
    two (`require_enough`).
    """
    draw = np.random.default_rng([seed, round(fraction * 1_000_000)])
    held = np.zeros(len(images), dtype=bool)
    for label in np.unique(images.labels):
        members = np.flatnonzero(images.labels == label)
        share = min(max(round(len(members) * fraction), 1), len(members) - 1)
        held[draw.permutation(members)[:share]] = True
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
