"""The faults of a data set: unreadable files, copies in two splits or under two labels, classes of unequal size.

N images of all splits together. Copies are equal in every decoded pixel; near copies look alike.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from toolkit.data.contents import (
    Copies,
    DataReport,
    ImageSizes,
    Place,
    UnlabelledCopy,
    UnlabelledReport,
    UnreadableImage,
)
from toolkit.data.dataset import SPLITS, Dataset, Split
from toolkit.data.findings import Finding, find, verbatim
from toolkit.data.near_copies import find_near_copies
from toolkit.data.reading import KINDS
from toolkit.data.survey import BLANK, NEARLY_BLACK, Survey, survey
from toolkit.data.unlabelled import CopyTable, Unlabelled, keep_copies

MOST_TIMES = 10
"""A class with fewer training images than the largest class has, divided by this, is named."""
LARGE_PART = 0.25
"""Share of a class's images; a class of which more cannot be read is named."""


def check_dataset(dataset: Dataset, workers: int = 0, unlabelled: Unlabelled | None = None) -> DataReport:
    """Decode every image of every split, and all unlabelled ones.

    `workers` threads; 0: the cores that this process may use.
    """
    seen = survey(dataset, workers)
    of_unlabelled = check_unlabelled(dataset, seen, unlabelled, workers) if unlabelled else None
    pictures = _number_pictures(seen)
    same = _group_copies(pictures)
    near = [pair for pair in _find_near_copies(seen) if pictures[pair[0]] != pictures[pair[1]]]
    unreadable = tuple(UnreadableImage(seen.split_of(i), seen.names[i], why) for i, why in seen.reasons.items())
    leaks = _name_copies(dataset, seen, (group for group in same if np.ptp(seen.splits[group])))
    near_copies = _name_copies(dataset, seen, near, exact=False)
    two_labels = _name_copies(dataset, seen, (group for group in same if np.ptp(seen.labels[group])))
    return DataReport(
        name=dataset.name,
        sha256=dataset.sha256,
        classes=dataset.classes,
        layout=dataset.layout,
        notes=dataset.notes,
        counts={
            split: np.bincount(images.labels, minlength=len(dataset.classes)).tolist()
            for split, images in dataset.splits.items()
        },
        sizes=_summarize_sizes(seen),
        repeats=_count_repeats(seen, pictures),
        unreadable=unreadable,
        leaks=leaks,
        near_copies=near_copies,
        two_labels=two_labels,
        findings=(
            *dataset.findings,
            *_describe_kinds(seen),
            *_describe_unreadable(unreadable),
            *_find_losses(dataset, seen),
            *_describe_copies(leaks, near_copies, two_labels),
            *_find_imbalance(dataset, seen),
            *_find_blank(seen),
            *(of_unlabelled.findings if of_unlabelled else ()),
        ),
        unlabelled=of_unlabelled,
    )


def check_unlabelled(dataset: Dataset, seen: Survey, unlabelled: Unlabelled, workers: int = 0) -> UnlabelledReport:
    """Decode all unlabelled images, and compare them with the labelled ones that were `seen`."""
    own = survey(unlabelled.as_dataset(), workers)
    table = keep_copies(dataset, unlabelled, CopyTable.of(seen, own))
    copies = tuple(
        UnlabelledCopy(own.names[j], Place(seen.split_of(i), seen.names[i], dataset.classes[seen.labels[i]]), exact)
        for j, i, exact in zip(table.copies.tolist(), table.originals.tolist(), table.exact.tolist(), strict=True)
    )
    pictures = _number_pictures(own)
    return UnlabelledReport(
        folders=unlabelled.folders,
        sha256=unlabelled.sha256,
        images=len(unlabelled),
        repeated=_count_repeats(own, pictures)["train"],
        sizes=_summarize_sizes(own).get("train"),
        unreadable=tuple((own.names[i], why) for i, why in own.reasons.items()),
        copies=copies,
        findings=(*unlabelled.findings, *_describe_unlabelled(own, copies)),
    )


def _describe_unlabelled(own: Survey, copies: Sequence[UnlabelledCopy]) -> list[Finding]:
    """What looks wrong with unlabelled images; that some are training images does not."""
    held_out = [copy for copy in copies if copy.original.split != "train"]
    broken = [f"{own.names[i]}: {why}" for i, why in own.reasons.items()]
    return [
        *find(
            "looks wrong",
            "unlabelled unreadable",
            [own.names[i] for i in own.reasons],
            "unreadable unlabelled image{s}, left out of training",
            "repair or delete them",
            shown="".join(broken[:1]),
        ),
        *find(
            "looks wrong",
            "unlabelled copies",
            [copy.name for copy in held_out],
            "unlabelled image{s} that show a validation or test image, left out of training",
            "nothing need be done; look at them if they are many",
            shown="".join(map(str, held_out[:1])),
        ),
    ]


def _number_pictures(seen: Survey) -> np.ndarray:
    """int64 (N,): the same number for images that are equal in every pixel; −1 for unreadable ones."""
    numbers = np.full(len(seen.names), -1, dtype=np.int64)
    if seen.readable.any():
        _, numbers[seen.readable] = np.unique(seen.digests[seen.readable], axis=0, return_inverse=True)
    return numbers


def _group_copies(pictures: np.ndarray) -> list[np.ndarray]:
    """The images of each picture that is there more than once; by their first images."""
    _, inverse, times = np.unique(pictures, return_inverse=True, return_counts=True)
    repeated = np.flatnonzero((times[inverse] > 1) & (pictures >= 0))
    repeated = repeated[np.argsort(pictures[repeated], kind="stable")]
    groups = np.split(repeated, np.flatnonzero(np.diff(pictures[repeated])) + 1)
    return sorted((group for group in groups if len(group)), key=lambda group: int(group[0]))


def _find_near_copies(seen: Survey) -> list[tuple[int, int]]:
    """Pairs of images of two splits; equal ones among them."""
    chosen = np.flatnonzero(seen.readable)
    pairs = find_near_copies(seen.thumbnails[chosen], seen.labels[chosen], seen.splits[chosen])
    return [(int(chosen[i]), int(chosen[j])) for i, j in pairs]


def _name_copies(
    dataset: Dataset, seen: Survey, groups: Iterable[Iterable[int]], *, exact: bool = True
) -> tuple[Copies, ...]:
    return tuple(
        Copies(tuple(Place(seen.split_of(i), seen.names[i], dataset.classes[seen.labels[i]]) for i in group), exact)
        for group in groups
    )


def _describe_kinds(seen: Survey) -> list[Finding]:
    """What was read in a special way."""
    found = []
    for kind, what in KINDS.items():
        found += find("read in a special way", kind, [seen.names[i] for i in seen.kinds[kind]], what)
    return found


def _find_blank(seen: Survey) -> list[Finding]:
    blank, black = ([seen.names[i] for i in seen.kinds[kind]] for kind in (BLANK, NEARLY_BLACK))
    stretch = "stretch their values to the whole range of 16 bits, or save them with 8 bits"
    what = "picture{s} of more than 8 bits per channel whose values are so low that the upper 8 are nearly black"
    return [
        *find("looks wrong", BLANK, blank, "picture{s} of a single colour", "take them out"),
        *find("looks wrong", NEARLY_BLACK, black, what, stretch),
    ]


def _describe_unreadable(images: Sequence[UnreadableImage]) -> list[Finding]:
    return find(
        "looks wrong",
        "unreadable",
        [image.name for image in images],
        "unreadable image{s}, left out of training",
        "repair or delete them",
        shown=str(images[0]) if images else "",
    )


def _find_losses(dataset: Dataset, seen: Survey) -> list[Finding]:
    """Classes of which a large part cannot be read."""
    of_all = np.bincount(seen.labels, minlength=len(dataset.classes))
    lost = np.bincount(seen.labels[~seen.readable], minlength=len(dataset.classes))
    hit = np.flatnonzero(lost > LARGE_PART * of_all).tolist()
    hit.sort(key=lambda label: lost[label] / of_all[label], reverse=True)
    return find(
        "looks wrong",
        "unreadable class",
        [dataset.classes[label] for label in hit],
        f"class{{es}} of which more than {LARGE_PART:.0%} of the images cannot be read",
        "get those images again",
        shown=f"{dataset.classes[hit[0]]!r} loses {lost[hit[0]]:,} of {of_all[hit[0]]:,}" if hit else "",
    )


def _describe_copies(
    leaks: tuple[Copies, ...], near: tuple[Copies, ...], two_labels: tuple[Copies, ...]
) -> list[Finding]:
    relabelled = sum(len({place.class_name for place in copies.places}) > 1 for copies in near)
    of_them = f" ({relabelled:,} under two labels)" if relabelled else ""
    pairs, look = f"pair{{s}} of near copies in two splits{of_them}", "look at them, and keep one picture in one split"
    return [
        *_find_copies("in two splits", leaks, "picture{s} in two splits", "keep each in one split only"),
        *_find_copies("near copies", near, pairs, look),
        *_find_copies("two labels", two_labels, "picture{s} under two labels", "keep the right one"),
    ]


def _find_copies(kind: str, items: tuple[Copies, ...], what: str, remedy: str) -> list[Finding]:
    shown = [copies.with_classes() if kind == "two labels" else str(copies) for copies in items[:1]]
    return find("looks wrong", kind, [copies.places[0].name for copies in items], what, remedy, shown="".join(shown))


def _find_imbalance(dataset: Dataset, seen: Survey) -> list[Finding]:
    """Classes with far fewer training images than the largest one."""
    training = seen.labels[seen.readable & (seen.splits == SPLITS.index("train"))]
    counts = np.bincount(training, minlength=len(dataset.classes))
    largest = int(counts.argmax())
    small = [int(label) for label in np.argsort(counts, kind="stable") if counts[label] * MOST_TIMES < counts[largest]]
    return find(
        "looks wrong",
        "imbalance",
        [dataset.classes[label] for label in small],
        f"class{{es}} with less than a tenth of the training images of {verbatim(repr(dataset.classes[largest]))} "
        f"({counts[largest]:,})",
        "gather more, or set class_weights or logit_adjustment; else the network rarely predicts them",
        shown=f"{dataset.classes[small[0]]!r} ({counts[small[0]]:,})" if small else "",
    )


def _summarize_sizes(seen: Survey) -> dict[Split, ImageSizes]:
    """Of the splits that have readable images."""
    sizes = {}
    for number, split in enumerate(SPLITS):
        measured = seen.sizes[seen.readable & (seen.splits == number)]
        if len(measured):
            low, middle, high = measured.min(axis=0), np.median(measured, axis=0).astype(int), measured.max(axis=0)
            widths, heights = (tuple(int(part[axis]) for part in (low, middle, high)) for axis in (0, 1))
            sizes[split] = ImageSizes((widths[0], widths[1], widths[2]), (heights[0], heights[1], heights[2]))
    return sizes


def _count_repeats(seen: Survey, pictures: np.ndarray) -> dict[Split, int]:
    """Surplus copies within each split."""
    parts = ((split, pictures[seen.readable & (seen.splits == number)]) for number, split in enumerate(SPLITS))
    return {split: len(part) - len(np.unique(part)) for split, part in parts}
