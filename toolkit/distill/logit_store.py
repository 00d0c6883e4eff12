"""A teacher's logits of (view, image), kept in the cache: computed once, replayed for every student.

The idea is that of Shen & Xing 2022, "A Fast Knowledge Distillation Framework" (arXiv:2112.01528): views are seeded, so
the teacher's logits of each can be kept and the same view shown to the student. N images of the split, K views,
C classes, B images of a batch, V validation images.
"""

import contextlib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import IO

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
from toolkit.distill.features import TappedNetwork
from toolkit.distill.objective import NetworkOutput
from toolkit.distill.precision import Arithmetic
from toolkit.distill.teachers import LiveTeacher
from toolkit.errors import ArtifactError, DataError
from toolkit.files import write_atomically

LAYOUT_VERSION = 1
"""Goes into the store's key; raised whenever the meaning of what is kept changes."""

ELEMENT_BYTES = 4
"""float32"""

FILL_BATCH_PIXELS = 2**22
"""px in a batch of the filling pass: 64 images of 256 px, 256 of 128 px"""

WRITE_BYTES = 2**26
"""of logits that gather, where they were computed, before they are written: no batch waits for a GPU or a disk"""

NOT_IN_VIEWS = {"source", "workers", "validation_fraction", "test_fraction", "split_seed", "share", "mean", "std"}
"""[data] settings that do not change a view; which images there are is in the key by itself."""


class StoredTeacher:
    """Replays what `open_store` kept: view v is stored view v mod K."""

    def __init__(self, train_logits: np.ndarray, valid_logits: np.ndarray, device: str) -> None:
        self._train_logits = train_logits
        self._valid_logits = torch.from_numpy(np.array(valid_logits)).to(device)
        self._device = device
        self._shown = torch.empty(0, device=device)
        self._number = -1

    def show(self, view: int) -> None:
        """Have that view's logits on the device: float32 (N, C), in place."""
        if (number := view % len(self._train_logits)) == self._number:
            return
        if self._number < 0:
            self._shown = torch.empty(self._train_logits.shape[1:], device=self._device)
        copy_in_pieces(self._train_logits[number], self._shown)
        self._number = number

    def answer(self, indices: Indices, view: int, student_images: Tensor) -> NetworkOutput:
        if isinstance(indices, Tensor):
            self.show(view)
            return NetworkOutput(self._shown[indices])
        logits = self._train_logits[view % len(self._train_logits), indices]
        return NetworkOutput(send(logits, self._device))

    def valid_logits(self) -> Tensor:
        return self._valid_logits


def find_stored(
    teacher_sha256: str,
    dataset_sha256: str,
    views: TrainingViews,
    valid_pixels: Pixels,
    num_views: int,
    precisions: Sequence[Arithmetic],
) -> Arithmetic | None:
    """The first of `precisions` in which the cache of every process has the teacher's logits already."""
    for precision in precisions:
        path = _store_path(teacher_sha256, dataset_sha256, views, valid_pixels, num_views, precision)
        missing = not _is_whole(path, len(valid_pixels) + num_views * len(views), views.num_classes)
        if not distributed.greatest(torch.tensor(int(missing), device=views.device)).item():
            return precision
    return None


def open_store(
    network: TappedNetwork,
    teacher_sha256: str,
    dataset_sha256: str,
    views: TrainingViews,
    valid_pixels: Pixels,
    num_views: int,
    precision: Arithmetic,
) -> StoredTeacher:
    """The teacher's logits of `num_views` views of every image, from the cache or computed now.

    The key is all that decides them: the teacher's file, the images, the views' settings, seed and number, mixup and
    the arithmetic. Raises DataError where the cache cannot be written.
    """
    path = _store_path(teacher_sha256, dataset_sha256, views, valid_pixels, num_views, precision)
    rows = len(valid_pixels) + num_views * len(views)
    size_bytes = rows * views.num_classes * ELEMENT_BYTES
    missing = not _is_whole(path, rows, views.num_classes)
    told = console.count(num_views, "view")
    if distributed.greatest(torch.tensor(int(missing), device=views.device)).item():
        console.say(
            f"teacher logits: {told} of {len(views):,} images to compute once"
            f" ({console.size(size_bytes)} in {path.parent})"
        )
        if distributed.local_rank() == 0:
            remove_leftovers(path.parent, (path.suffix,))
        live = LiveTeacher(network, views, valid_pixels, precision)
        _fill(path, live, views, num_views)
        distributed.barrier()
    else:
        console.say(f"teacher logits: {told} of {len(views):,} images from the store")
    stored = np.memmap(path, dtype=np.float32, mode="r", shape=(rows, views.num_classes))
    train_logits = stored[len(valid_pixels) :].reshape(num_views, len(views), views.num_classes)
    return StoredTeacher(train_logits, stored[: len(valid_pixels)], views.device)


def _is_whole(path: Path, rows: int, num_classes: int) -> bool:
    return path.is_file() and path.stat().st_size == rows * num_classes * ELEMENT_BYTES


def _fill(path: Path, live: LiveTeacher, views: TrainingViews, num_views: int) -> None:
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
            waiting = [live.valid_logits()]
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
    """Write what waits, float32 (B, C) each, and forget it."""
    if file is not None and waiting:
        file.write(torch.cat(waiting).cpu().numpy().data)
    waiting.clear()


def _store_path(
    teacher_sha256: str,
    dataset_sha256: str,
    views: TrainingViews,
    valid_pixels: Pixels,
    num_views: int,
    precision: Arithmetic,
) -> Path:
    settings = {name: value for name, value in views.data.model_dump(mode="json").items() if name not in NOT_IN_VIEWS}
    names = hashlib.sha256("\n".join((*views.pixels.names, "", *valid_pixels.names)).encode(errors="surrogateescape"))
    what = (LAYOUT_VERSION, teacher_sha256, dataset_sha256, names.hexdigest(), settings)
    key = json.dumps((*what, num_views, views.seed, views.mixup, precision), sort_keys=True)
    return cache_folder("logits", f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.f32")
