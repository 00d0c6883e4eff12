"""A teacher's logits of (view, image), kept in the cache: computed once, replayed for every student.

The idea is that of Shen & Xing 2022, "A Fast Knowledge Distillation Framework" (arXiv:2112.01528): views are seeded, so
the teacher's logits of each can be kept and the same view shown to the student. N images of the split, K views,
C classes, B images of a batch, V validation images.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from toolkit import console
from toolkit.data.batches import TrainingViews, batches
from toolkit.data.cache import REMEDY, cache_folder
from toolkit.data.disk import remove_leftovers
from toolkit.data.pixels import Pixels
from toolkit.data.resident import copy_in_pieces, send
from toolkit.data.views import Indices
from toolkit.distill import distributed
from toolkit.distill.objective import NetworkOutput
from toolkit.distill.precision import Arithmetic
from toolkit.distill.teachers import Teacher
from toolkit.errors import ArtifactError, DataError
from toolkit.files import write_atomically
from toolkit.recipe import NEWER_SETTINGS

LAYOUT_VERSION = 1
"""A part of the store's key; raised whenever the meaning of the content changes."""

ELEMENT_BYTES = 4
"""float32"""

FILL_BATCH_PIXELS = 2**22
"""px in a batch of the filling pass: 64 images of 256 px, 256 of 128 px"""

WRITE_BYTES = 2**26
"""bytes of logits that gather where they were computed, before they are written: no batch waits for GPU or disk"""

NOT_IN_VIEWS = {
    *("source", "layout", "unlabelled", "workers", "mean", "std"),
    *("validation_fraction", "test_fraction", "split_seed", "share"),
}
"""[data] settings that do not change a view; the key holds the images themselves."""


class StoredTeacher:
    """Replays the logits of a LogitStore: view v is stored view v mod K."""

    def __init__(self, train_logits: np.ndarray, valid_logits: np.ndarray, device: str) -> None:
        self._train_logits = train_logits
        self._valid_logits = torch.from_numpy(np.array(valid_logits)).to(device)
        self._device = device
        self._shown = torch.empty(0, device=device)
        self._number = -1

    @property
    def is_capturable(self) -> bool:
        return True

    def show(self, view: int) -> None:
        """Have that view's logits on the device: float32 (N, C), in place."""
        if (number := view % len(self._train_logits)) == self._number:
            return
        if self._number < 0:
            self._shown = torch.empty(self._train_logits.shape[1:], device=self._device)
        copy_in_pieces(self._train_logits[number], self._shown)
        self._number = number

    def expect(self, coming: Sequence[Indices], view: int) -> None:
        """Does nothing: answers are read at once."""

    def answer(self, indices: Indices, view: int, student_images: Tensor) -> NetworkOutput:
        if isinstance(indices, Tensor):
            self.show(view)
            return NetworkOutput(self._shown[indices])
        logits = self._train_logits[view % len(self._train_logits), indices]
        return NetworkOutput(send(logits, self._device))

    def valid_logits(self) -> Tensor:
        return self._valid_logits


@dataclass(frozen=True)
class LogitStore:
    """The cache's file of a teacher's logits, of `num_views` views of every image and of the validation images.

    `dataset_sha256` is the images': of unlabelled ones their own. With these there are no validation images.

    The key is all that decides them: the teacher's file, the images, the views' settings, seed and number, their mix
    and the arithmetic.
    """

    teacher_sha256: str
    dataset_sha256: str
    views: TrainingViews
    valid: Pixels | None
    num_views: int

    def find(self, precisions: Sequence[Arithmetic]) -> Arithmetic | None:
        """The first of `precisions` in which the cache of every process has them already."""
        return next((precision for precision in precisions if self._is_everywhere(precision)), None)

    def open(self, live: Callable[[], Teacher], precision: Arithmetic) -> StoredTeacher:
        """From the cache, or computed now by the `live` teacher. Raises DataError if the cache cannot be written."""
        path, views, valid = self._path(precision), self.views, 0 if self.valid is None else len(self.valid)
        kind = "unlabelled images" if self.valid is None else "images"
        amount = f"teacher logits: {console.count(self.num_views, 'view')} of {len(views):,} {kind}"
        if self._is_everywhere(precision):
            console.say(f"{amount} from the store")
        else:
            size_bytes = self._rows * views.num_classes * ELEMENT_BYTES
            console.say(f"{amount} to compute once ({console.size(size_bytes)} in {path.parent})")
            if distributed.local_rank() == 0:
                remove_leftovers(path.parent, (path.suffix,))
            _fill(path, live(), views, self.num_views, with_valid=self.valid is not None)
            distributed.barrier()
        stored = np.memmap(path, dtype=np.float32, mode="r", shape=(self._rows, views.num_classes))
        train_logits = stored[valid:].reshape(self.num_views, len(views), views.num_classes)
        return StoredTeacher(train_logits, stored[:valid], views.device)

    @property
    def _rows(self) -> int:
        return (0 if self.valid is None else len(self.valid)) + self.num_views * len(self.views)

    def _is_everywhere(self, precision: Arithmetic) -> bool:
        path, size_bytes = self._path(precision), self._rows * self.views.num_classes * ELEMENT_BYTES
        missing = not (path.is_file() and path.stat().st_size == size_bytes)
        return not distributed.greatest(torch.tensor(int(missing), device=self.views.device)).item()

    def _path(self, precision: Arithmetic) -> Path:
        views, of_data = self.views, self.views.data.model_dump(mode="json")
        settings = {name: value for name, value in of_data.items() if self._is_in_views(name, value)}
        names_of_valid = () if self.valid is None else self.valid.names
        names = "\n".join((*views.pixels.names, "", *names_of_valid)).encode(errors="surrogateescape")
        images = self.dataset_sha256, hashlib.sha256(names).hexdigest()
        what = (LAYOUT_VERSION, self.teacher_sha256, *images, settings, self.num_views, views.seed, views.mix.mixup)
        cutmix = (views.mix.cutmix,) if views.mix.cutmix else ()
        key = json.dumps((*what, precision, *cutmix), sort_keys=True)
        return cache_folder("logits", f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.f32")

    def _is_in_views(self, name: str, value: Any) -> bool:
        """Whether a [data] setting is part of the key; one that came later is not where it changes nothing."""
        if name == "mean" and self.views.data.erasing:
            return True  # what is erased gets that colour
        return name not in NOT_IN_VIEWS and NEWER_SETTINGS.get(f"data.{name}", ...) != value


def _fill(path: Path, live: Teacher, views: TrainingViews, num_views: int, *, with_valid: bool) -> None:
    """Compute every row and write the file, whole or not at all; one process of each machine writes."""
    batch_size = max(1, FILL_BATCH_PIXELS // views.data.image_size**2) * distributed.world_size()
    steps = list(batches(np.arange(len(views)), batch_size, distributed.world_size()))
    shares = [distributed.own_share(indices) for indices in steps]
    nothing = torch.empty(0, 3, 0, 0)
    try:
        with (
            write_atomically(path) if distributed.local_rank() == 0 else contextlib.nullcontext() as temporary,
            temporary.open("wb") if temporary else contextlib.nullcontext() as file,
            console.progress("teacher logits", num_views * len(views)) as advance,
        ):
            waiting = [live.valid_logits()] if with_valid else []
            for view in range(num_views):
                for step, (indices, share) in enumerate(zip(steps, shares, strict=True)):
                    views.expect(shares[step : step + 2], view)
                    logits = live.answer(share, view, nothing).logits
                    waiting.append(distributed.gather_shares(logits, len(indices)))
                    if sum(part.nbytes for part in waiting) >= WRITE_BYTES:
                        _write(file, waiting)
                    advance(len(indices))
            _write(file, waiting)
    except ArtifactError as error:
        problem = error.problem.replace("cannot write", "cannot keep the teacher's logits in the cache,", 1)
        raise DataError(problem, REMEDY) from None


def _write(file: IO[bytes] | None, waiting: list[Tensor]) -> None:
    """Write the waiting logits, float32 (B, C) each, and forget them."""
    if file is not None and waiting:
        file.write(torch.cat(waiting).cpu().numpy().data)
    waiting.clear()
