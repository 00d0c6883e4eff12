"""The teacher's answers for a batch: computed live here, or replayed by logit_store.py.

C classes, B images of a batch, V validation images.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from toolkit.data.mixed_views import MixedIndices, Views
from toolkit.data.pixels import Pixels
from toolkit.data.views import Indices
from toolkit.distill.evaluation import compute_logits
from toolkit.distill.features import TappedNetwork
from toolkit.distill.frozen import freeze
from toolkit.distill.objective import NetworkOutput
from toolkit.distill.precision import Arithmetic, autocast
from toolkit.networks.small_maps import place


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


class LiveTeacher:
    """Runs the network on every batch; on a GPU a frozen copy of it, unless the method needs its layers.

    `views` and `valid_pixels` are as it sees them. If `own_views`, the student sees others, of another size.
    """

    def __init__(
        self,
        network: TappedNetwork,
        views: Views,
        valid_pixels: Pixels | None,
        precision: Arithmetic,
        *,
        own_views: bool = False,
    ) -> None:
        place(network, views.device)
        self._network = network.eval()
        if views.device.startswith("cuda") and not network.projectors:
            self._network = TappedNetwork(freeze(network.classifier, precision, views.data.image_size))
        self._views, self.valid_pixels, self._precision = views, valid_pixels, precision
        self._own_views = own_views

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
        assert self.valid_pixels is not None
        return compute_logits(self._network.classifier, self.valid_pixels, self._precision, self._views.device)
