"""The teacher's answers for a batch: computed live here, or replayed by logit_store.py.

C classes, B images of a batch, V validation images.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from toolkit.data.batches import TrainingViews
from toolkit.data.mixed_views import MixedIndices, Portions, Views
from toolkit.data.pixels import Pixels
from toolkit.data.views import Indices
from toolkit.distill.evaluation import compute_logits
from toolkit.distill.features import TappedNetwork
from toolkit.distill.frozen import freeze
from toolkit.distill.objective import NetworkOutput
from toolkit.distill.precision import Arithmetic, autocast
from toolkit.networks.registry import has_file
from toolkit.networks.small_maps import place

LEAST_PROBABILITY = 1e-4
"""of a class in an answer that is made of a label"""


class Teacher(Protocol):
    """A teacher, live or stored. It always sees the view the student sees, at its own full size.

    `indices` are those of its views: see data/mixed_views.py.
    """

    def answer(self, indices: Any, view: int, student_images: Tensor) -> NetworkOutput:
        """The teacher's answers for view `view` of the images at `indices`, as float32.

        `student_images` (B, 3, R, R) is that view as the student sees it.
        """

    def show(self, view: int) -> None:
        """Have on the device what the answers for view `view` need, before a captured step looks for it there."""

    def expect(self, coming: Sequence[Any], view: int) -> None:
        """The next answers are for these batches: begin the work that a GPU would wait for."""

    def valid_logits(self) -> Tensor:
        """float32 (V, C), the evaluation views of the validation images."""

    @property
    def is_capturable(self) -> bool:
        """Whether `answer` is the same work for any batch, all of it on the GPU, so that a CUDA graph can replay it."""


class LiveTeacher:
    """Runs the network on every batch; on a GPU a frozen copy of it, unless the method needs its layers.

    `views` and `valid_pixels` are as it sees them. If `own_views`, the student sees others, of another size.
    """

    def __init__(
        self,
        network: TappedNetwork,
        views: Views,
        valid_pixels: Pixels,
        precision: Arithmetic,
        *,
        own_views: bool = False,
    ) -> None:
        place(network, views.device)
        self._network = network.eval()
        if views.device.startswith("cuda") and not network.projectors:
            self._network = TappedNetwork(freeze(network.classifier, precision, views.data.image_size))
        self._views, self._valid_pixels, self._precision = views, valid_pixels, precision
        self._own_views = own_views

    @property
    def is_capturable(self) -> bool:
        return not has_file(self._network.classifier.network) and not (self._own_views and not self._views.is_resident)

    def show(self, view: int) -> None:
        if self._own_views:
            self._views.show(view)

    def expect(self, coming: Sequence[Indices | MixedIndices], view: int) -> None:
        if self._own_views:
            self._views.expect(coming, view)

    def answer(self, indices: Indices | MixedIndices, view: int, student_images: Tensor) -> NetworkOutput:
        alike = not self._own_views and student_images.shape[-1] == self._views.data.image_size
        images = student_images if alike else self._views.render(indices, view)
        with torch.no_grad(), autocast(self._views.device, self._precision):
            logits, features = self._network(images)
        return NetworkOutput(logits.float(), features)

    def valid_logits(self) -> Tensor:
        return compute_logits(self._network.classifier, self._valid_pixels, self._precision, self._views.device)


class MixedTeacher:
    """Two teachers for batches of two kinds, each on its own views; `portions` says which view is which."""

    def __init__(self, labelled: Teacher, unlabelled: Teacher, portions: Portions) -> None:
        self._labelled, self._unlabelled, self._portions = labelled, unlabelled, portions

    @property
    def is_capturable(self) -> bool:
        return self._labelled.is_capturable and self._unlabelled.is_capturable

    def show(self, view: int) -> None:
        self._labelled.show(view)
        self._unlabelled.show(self._portions.view_of(view))

    def expect(self, coming: Sequence[MixedIndices], view: int) -> None:
        self._labelled.expect([part.labelled for part in coming if len(part.labelled)], view)
        unlabelled = [part.unlabelled for part in coming if len(part.unlabelled)]
        self._unlabelled.expect(unlabelled, self._portions.view_of(view))

    def answer(self, indices: MixedIndices, view: int, student_images: Tensor) -> NetworkOutput:
        labelled, unlabelled = indices.labelled, indices.unlabelled
        both = (
            (self._labelled, labelled, view, student_images[: len(labelled)]),
            (self._unlabelled, unlabelled, self._portions.view_of(view), student_images[len(labelled) :]),
        )
        answers = [teacher.answer(chosen, number, images) for teacher, chosen, number, images in both if len(chosen)]
        return NetworkOutput(torch.cat([answer.logits for answer in answers]))

    def valid_logits(self) -> Tensor:
        return self._labelled.valid_logits()


class TeacherOfSomeClasses:
    """A teacher that does not know all classes: an image of an unknown one is answered by its label.

    The answer is then log p · T of the target p, with probabilities of LEAST_PROBABILITY at least, so that p is what
    the temperature T makes of it.
    """

    def __init__(
        self,
        teacher: Teacher,
        unknown: Sequence[int],
        temperature: float,
        views: TrainingViews,
        valid_labels: np.ndarray,
    ) -> None:
        self._teacher, self._unknown, self._temperature = teacher, list(unknown), temperature
        self._views, self._valid_labels = views, torch.from_numpy(valid_labels).to(views.device)

    @property
    def is_capturable(self) -> bool:
        return self._teacher.is_capturable

    def show(self, view: int) -> None:
        self._teacher.show(view)

    def expect(self, coming: Sequence[Indices], view: int) -> None:
        self._teacher.expect(coming, view)

    def answer(self, indices: Indices, view: int, student_images: Tensor) -> NetworkOutput:
        output = self._teacher.answer(indices, view, student_images)
        return NetworkOutput(self._fill(output.logits, self._views.targets(indices, view)), output.features)

    def valid_logits(self) -> Tensor:
        return self._fill(self._teacher.valid_logits(), self._valid_labels)

    def _fill(self, logits: Tensor, target: Tensor) -> Tensor:
        shares = target if target.ndim == 2 else functional.one_hot(target, logits.shape[1]).float()
        is_unknown = shares[:, self._unknown].sum(1, keepdim=True) > 0
        return torch.where(is_unknown, answer_by_label(shares, self._temperature), logits)


def answer_by_label(shares: Tensor, temperature: float) -> Tensor:
    """log p · T of targets p (N, C), with probabilities of LEAST_PROBABILITY at least."""
    return shares.clamp_min(LEAST_PROBABILITY).log() * temperature
