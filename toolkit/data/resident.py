"""A split's pixels in a GPU's memory, so that batches are cut there and nothing waits for the bus.

B images of a batch, S px the side of the network's square. Tensors on the device choose the images.
"""

import contextlib

import numpy as np
import torch
from torch import Tensor

from toolkit import console
from toolkit.data.pixels import Pixels
from toolkit.data.preprocess import crop_start

MEMORY_SHARE = 0.4
"""share of the device's free memory that pixels may take; the rest is for training"""
PIECE_BYTES = 64 * 2**20
"""bytes that travel to the device at once; the host needs no more memory than that"""


class ResidentPixels:
    """`pixels` on `device`: one copy for all users, freed together with `pixels`."""

    def __init__(self, pixels: Pixels, device: str) -> None:
        self._colours = torch.empty(len(pixels.data) // 3, 3, dtype=torch.uint8, device=device)
        copy_in_pieces(pixels.data, self._colours)
        self._starts = torch.from_numpy(pixels.starts // 3).to(device)
        self.sizes = torch.from_numpy(pixels.sizes).to(device)
        self._centres = torch.from_numpy(crop_start(pixels.sizes, pixels.preprocess.image_size)).to(device)
        self._steps = torch.arange(pixels.preprocess.image_size, device=device)

    @classmethod
    def where_it_fits(cls, pixels: Pixels, device: str) -> "ResidentPixels | None":
        """The copy on `device`; None, with one line, if it takes more than MEMORY_SHARE of the free memory."""
        if device not in pixels.residents:
            free_bytes = free_memory_bytes(device)
            copy = None
            if pixels.data.nbytes <= MEMORY_SHARE * free_bytes:
                with contextlib.suppress(torch.OutOfMemoryError):  # free memory may be in pieces, or belong to a graph
                    copy = cls(pixels, device)
            pixels.residents[device] = copy
            if copy is None:
                console.say(
                    f"{device}: the pixels of {len(pixels):,} images, {console.size(pixels.data.nbytes)}, stay in the"
                    f" host's memory, because they may take {MEMORY_SHARE:.0%} of the GPU's free"
                    f" {console.size(free_bytes)}; batches are cut there, which is slower"
                )
        return pixels.residents[device]

    def crops(self, chosen: Tensor, rows: Tensor, columns: Tensor, *, black: bool) -> Tensor:
        """uint8 (B, S, S, 3): the pixels of image `chosen`, int64 (B,), at `rows` and `columns`, int64 (B, S) each.

        With `black`, row or column −1 is black; without it, none may be −1.
        """
        down, across = (rows.clamp_min(0), columns.clamp_min(0)) if black else (rows, columns)
        lines = self._starts[chosen].unsqueeze(1) + down * self.sizes[chosen, 1].unsqueeze(1)
        crops = self._colours[lines.unsqueeze(2) + across.unsqueeze(1)]
        if black:
            crops.masked_fill_(((rows < 0).unsqueeze(2) | (columns < 0).unsqueeze(1)).unsqueeze(3), 0)
        return crops

    def centre(self, chosen: Tensor) -> Tensor:
        """uint8 (B, S, S, 3), as Pixels.centre gives them."""
        places = self._centres[chosen].unsqueeze(2) + self._steps
        inside = (places >= 0) & (places < self.sizes[chosen].unsqueeze(2))
        rows, columns = torch.where(inside, places, -1).unbind(1)
        return self.crops(chosen, rows, columns, black=True)


def send(values: np.ndarray, device: str) -> Tensor:
    """A copy of these few values on `device`, without waiting for a GPU."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.startswith("cuda") else tensor.to(device)


def free_memory_bytes(device: str) -> int:
    """Bytes that can still be allocated on a GPU; memory that torch keeps unused is free too."""
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return free_bytes + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def copy_in_pieces(data: np.ndarray, copy: Tensor) -> None:
    """Fill `copy`, on any device, with `data` through a buffer of PIECE_BYTES: `data` may exceed the host's memory.

    Both are contiguous and have the same number of bytes.
    """
    source, target = data.reshape(-1).view(np.uint8), copy.view(-1).view(torch.uint8)
    buffer = torch.empty(min(PIECE_BYTES, len(source)), dtype=torch.uint8, pin_memory=copy.is_cuda)
    for start in range(0, len(source), PIECE_BYTES):
        piece = source[start : start + PIECE_BYTES]
        buffer[: len(piece)].numpy()[:] = piece
        target[start : start + len(piece)].copy_(buffer[: len(piece)])  # waits until the buffer may be filled again
