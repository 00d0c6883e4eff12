"""A split's pixels in a GPU's memory, so that batches are cut out there and nothing waits for the bus.

B images of a batch, H W pixels.
"""

from typing import Self

import numpy as np
import torch
from torch import Tensor

from toolkit.data.pixels import Pixels

MEMORY_SHARE = 0.4
"""of the device's free memory that pixels may take; the rest is for training"""


class ResidentPixels:
    """`pixels` on `device`; `canvas` gives what Pixels.canvas gives, as a tensor there."""

    def __init__(self, pixels: Pixels, device: str) -> None:
        self._pixels = pixels
        self._data = torch.from_numpy(np.array(pixels.data)).to(device)
        self._starts = torch.from_numpy(pixels.starts).to(device)
        self._sizes = np.stack((pixels.heights, pixels.widths), axis=1)

    @classmethod
    def where_it_fits(cls, pixels: Pixels, device: str) -> Self | None:
        """None where the pixels would take more than MEMORY_SHARE of the GPU's free memory."""
        free_bytes, _ = torch.cuda.mem_get_info(device)
        return cls(pixels, device) if pixels.data.nbytes <= MEMORY_SHARE * free_bytes else None

    def canvas(self, indices: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """uint8 (B, Hmax, Wmax, 3) on the device and int64 (B, 2) sizes; images lie top left on black."""
        sizes = self._sizes[indices]
        height, width = sizes.max(axis=0, initial=0)
        device = self._data.device
        chosen = torch.from_numpy(np.asarray(indices, dtype=np.int64)).to(device)
        heights, widths = torch.from_numpy(sizes).to(device).view(-1, 2, 1, 1).unbind(1)
        rows = torch.arange(height, device=device).view(1, -1, 1)
        columns = torch.arange(width, device=device).view(1, 1, -1)
        places = self._starts[chosen].view(-1, 1, 1) + (rows * widths + columns) * 3
        inside = (rows < heights) & (columns < widths)
        places = torch.where(inside, places, 0).unsqueeze(-1) + torch.arange(3, device=device)
        return torch.where(inside.unsqueeze(-1), self._data[places], 0), sizes
