"""Batches of labelled and unlabelled images: which images a step has, and their views.

N labelled images, M unlabelled ones; B images of a batch, the first L of them labelled and U = round(ratio·L) not;
C classes, R px side of the rendered view. An epoch is one pass over the labelled images, in the order and the views
that it has without the others. The unlabelled ones come in a seeded order of their own, which goes on from epoch to
epoch: each is shown once before one is shown again.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from toolkit.data.batches import TrainingViews, batches
from toolkit.data.views import Indices
from toolkit.settings import DataRecipe

_ORDER_STREAM = 0x756E6C
"""Separates the order of unlabelled images from other draws of the same seed."""


class Views(Protocol):
    """Views of one image set or of two: TrainingViews or MixedViews.

    `indices` are what its batches or their parts are made of: an array or tensor, or MixedIndices.
    """

    data: DataRecipe
    num_classes: int
    device: str

    def __len__(self) -> int:
        """How many labelled images there are."""

    @property
    def is_resident(self) -> bool: ...

    def render(self, indices: Any, view: int, side: int | None = None) -> Tensor: ...

    def labels(self, indices: Any) -> Tensor: ...

    def targets(self, indices: Any, view: int) -> Tensor: ...

    def upload(self, indices: Indices) -> Indices: ...

    def show(self, view: int) -> None: ...

    def expect(self, batches: Sequence[Any], view: int) -> None: ...


@dataclass(frozen=True)
class MixedIndices:
    """The images of a part of a batch, each kind by its own numbers."""

    labelled: Indices
    unlabelled: Indices

    def __len__(self) -> int:
        return len(self.labelled) + len(self.unlabelled)


@dataclass(frozen=True)
class Portions:
    """How the two kinds of images come together.

    `labelled` and `unlabelled` are N and M. `batch_size` counts labelled images; a last batch of fewer than `least`
    of them joins the one before.
    """

    ratio: float
    labelled: int
    unlabelled: int
    batch_size: int
    least: int = 2

    def beside(self, labelled: int) -> int:
        """U, for a batch with so many labelled images."""
        return round(self.ratio * labelled)

    def labelled_of(self, size: int) -> int:
        """L, for a batch of so many images in all."""
        near = round(size / (1 + self.ratio))
        return next(count for count in (near, near - 1, near + 1) if count + self.beside(count) == size)

    @property
    def per_epoch(self) -> int:
        """Unlabelled images in an epoch's batches."""
        steps = batches(np.arange(self.labelled), self.batch_size, self.least)
        return sum(self.beside(len(step)) for step in steps)

    def view_of(self, view: int) -> int:
        """The view of unlabelled images, if those of labelled ones are number `view`.

        It changes once every image was shown, and not more than once per epoch: no view is made that nobody sees.
        """
        return view * min(self.per_epoch, self.unlabelled) // self.unlabelled

    def order_of(self, epoch: int, seed: int) -> np.ndarray:
        """int64 (per_epoch,): the unlabelled images of `epoch`, a piece of one permutation after another."""
        start, count = epoch * self.per_epoch, self.unlabelled
        passes = range(start // count, -(-(start + self.per_epoch) // count))
        whole = np.concatenate(
            [np.random.default_rng((seed, number, _ORDER_STREAM)).permutation(count) for number in passes]
        )
        first = start - passes.start * count
        return whole[first : first + self.per_epoch]


class MixedViews:
    """The views of two image sets, for batches of both; `portions` says how many of each.

    A batch is one array or tensor: its labelled images, then the numbers of its unlabelled ones.
    """

    def __init__(self, labelled: TrainingViews, unlabelled: TrainingViews, portions: Portions) -> None:
        self.of_labelled, self.of_unlabelled, self.portions = labelled, unlabelled, portions
        self.data, self.num_classes, self.device = labelled.data, labelled.num_classes, labelled.device

    def __len__(self) -> int:
        return len(self.of_labelled)

    @property
    def is_resident(self) -> bool:
        """Whether the pixels of both are in a GPU's memory."""
        return self.of_labelled.is_resident and self.of_unlabelled.is_resident

    def add_unlabelled(self, steps: Sequence[np.ndarray], epoch: int) -> list[np.ndarray]:
        """The batches of `epoch`, from those of its labelled images."""
        others = self.portions.order_of(epoch, self.of_labelled.seed)
        ends = np.cumsum([self.portions.beside(len(step)) for step in steps])
        return [np.concatenate(both) for both in zip(steps, np.split(others, ends[:-1]), strict=True)]

    def parts(
        self, batch: Indices, own_share: Callable[[Indices], Indices], part_size: int | None
    ) -> list[MixedIndices]:
        """`own_share` of each kind in a batch, in parts of `part_size` images; None: in one part.

        Each part has its proportion of labelled images: batch statistics are of both kinds.
        """
        count = self.portions.labelled_of(len(batch))
        labelled, unlabelled = own_share(batch[:count]), own_share(batch[count:])
        if part_size is None:
            return [MixedIndices(labelled, unlabelled)]
        total = len(labelled) + len(unlabelled)
        ends = np.cumsum([len(part) for part in batches(np.arange(total), part_size, min(2, part_size))]).tolist()
        cuts = [(end * len(labelled) // total, end - end * len(labelled) // total) for end in [0, *ends]]
        return [
            MixedIndices(labelled[first[0] : last[0]], unlabelled[first[1] : last[1]])
            for first, last in itertools.pairwise(cuts)
        ]

    def render(self, indices: MixedIndices, view: int, side: int | None = None) -> Tensor:
        """float32 (n, 3, R, R) in 0..1, channels last in memory: the labelled images come first."""
        both = (
            (self.of_labelled, indices.labelled, view),
            (self.of_unlabelled, indices.unlabelled, self.portions.view_of(view)),
        )
        return torch.cat([views.render(chosen, number, side) for views, chosen, number in both if len(chosen)])

    def labels(self, indices: MixedIndices) -> Tensor:
        """int64 (l,), of the labelled images."""
        return self.of_labelled.labels(indices.labelled)

    def labels_of_batch(self, batch: Indices) -> Tensor:
        """int64 (L,), of the labelled images of a whole batch."""
        return self.of_labelled.labels(batch[: self.portions.labelled_of(len(batch))])

    def targets(self, indices: MixedIndices, view: int) -> Tensor:
        """The targets of the labelled images: int64 (l,), or with mixup float32 (l, C) that sum to 1."""
        return self.of_labelled.targets(indices.labelled, view)

    def upload(self, indices: Indices) -> Indices:
        """`indices` on the device that has the pixels of both, for a step."""
        return self.of_labelled.upload(indices) if self.is_resident else indices

    def show(self, view: int) -> None:
        """Send the draws of view `view` to the GPU, before a captured step needs them."""
        self.of_labelled.show(view)
        self.of_unlabelled.show(self.portions.view_of(view))

    def expect(self, batches: Sequence[MixedIndices], view: int) -> None:
        """View `view` of these parts of batches comes next."""
        self.of_labelled.expect([part.labelled for part in batches if len(part.labelled)], view)
        unlabelled = [part.unlabelled for part in batches if len(part.unlabelled)]
        self.of_unlabelled.expect(unlabelled, self.portions.view_of(view))
