"""A network's answers on a whole split, shared out over the processes that train. N images, C classes."""

import itertools
from collections.abc import Iterator
from typing import cast

import numpy as np
import torch
from torch import Tensor

from toolkit import console
from toolkit.data.pixels import Pixels
from toolkit.data.resident import ResidentPixels, send
from toolkit.data.views import centre_views
from toolkit.distill import distributed
from toolkit.distill.distributed import Items
from toolkit.distill.memory import free_cache, is_out_of_memory
from toolkit.distill.precision import Precision, autocast
from toolkit.errors import TrainingError
from toolkit.networks.classifier import Classifier

BATCH_PIXELS, GPU_BATCH_PIXELS = 2**22, 2**24
"""px in a batch: 64 images of 256 px, 256 on a GPU"""
LARGEST_BATCH, GPU_LARGEST_BATCH = 250, 1024
"""images"""


def compute_logits(network: Classifier, pixels: Pixels, precision: Precision, device: str) -> Tensor:
    """Logits float32 (N, C) of the evaluation view of every image, on `device`, where the network is.

    Where memory runs out, smaller batches are tried. TrainingError where one image is too much.
    """
    network.eval()
    most_pixels, most = (BATCH_PIXELS, LARGEST_BATCH) if device == "cpu" else (GPU_BATCH_PIXELS, GPU_LARGEST_BATCH)
    batch_size = max(1, min(most, most_pixels // pixels.preprocess.image_size**2))
    share = distributed.own_share(np.arange(len(pixels)))
    # a process without a share, where there are fewer images than processes, still has to know C
    asked = share if len(share) else np.zeros(1, np.int64)
    while (logits := _logits_or_none(network, pixels, asked, batch_size, precision, device)) is None:
        if batch_size == 1:
            raise TrainingError(
                "validation: out of memory with one image at a time", "use a smaller data.image_size or network"
            )
        batch_size //= 2
        free_cache(device)
        console.say(f"out of memory: validating {batch_size} images at a time")
    return distributed.gather_shares(logits[: len(share)], len(pixels))


def _logits_or_none(
    network: Classifier, pixels: Pixels, indices: np.ndarray, batch_size: int, precision: Precision, device: str
) -> Tensor | None:
    """None where memory ran out; what was allocated is free again by then."""
    parts = []
    try:
        for batch in batches(indices, batch_size, 1):
            images = _evaluation_views(pixels, batch, device)
            with torch.inference_mode(), autocast(device, precision):
                parts.append(network(images).float())
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return None
    return torch.cat(parts)


def _evaluation_views(pixels: Pixels, indices: np.ndarray, device: str) -> Tensor:
    """float32 (B, 3, S, S) in 0..1 on `device`; cut out there where the pixels lie on a GPU."""
    resident = None if device == "cpu" else ResidentPixels.where_it_fits(pixels, device)
    crops = torch.from_numpy(pixels.centre(indices)) if resident is None else resident.centre(send(indices, device))
    return centre_views(crops.to(device, non_blocking=True))


def batches(order: Items, batch_size: int, least: int) -> Iterator[Items]:
    """Consecutive batches; a last one of fewer than `least` images joins the one before.

    Batch statistics need two images, and every process that trains its share of each batch.
    """
    starts = list(range(0, len(order), batch_size))
    if len(starts) > 1 and len(order) - starts[-1] < least:
        starts.pop()
    for start, end in itertools.pairwise((*starts, len(order))):
        yield cast(Items, order[start:end])
