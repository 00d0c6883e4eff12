"""A network's answers on a whole split, shared out over the processes that train. N images, C classes."""

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from toolkit.data.pixels import Pixels
from toolkit.data.views import centre_views
from toolkit.distill import distributed
from toolkit.distill.precision import Precision, autocast
from toolkit.networks.classifier import Classifier

BATCH_PIXELS = 2**22
"""px in a batch: 64 images of 256 px, 250 of smaller ones"""
LARGEST_BATCH = 250
"""images"""


def compute_logits(network: Classifier, pixels: Pixels, precision: Precision, device: str) -> Tensor:
    """Logits float32 (N, C) of the evaluation view of every image, on `device`, where the network is."""
    network.eval()
    batch_size = max(1, min(LARGEST_BATCH, BATCH_PIXELS // pixels.preprocess.image_size**2))
    share = distributed.own_share(np.arange(len(pixels)))
    parts = []
    with torch.inference_mode():
        # a process without a share, where there are fewer images than processes, still has to know C
        for indices in batches(share if len(share) else np.zeros(1, np.int64), batch_size, 1):
            with autocast(device, precision):
                parts.append(network(centre_views(pixels.centre(indices), device)).float())
        return distributed.gather_shares(torch.cat(parts)[: len(share)], len(pixels))


def batches(order: np.ndarray, batch_size: int, least: int) -> Iterator[np.ndarray]:
    """Consecutive batches; a last one of fewer than `least` images joins the one before.

    Batch statistics need two images, and every process that trains its share of each batch.
    """
    starts = list(range(0, len(order), batch_size))
    if len(starts) > 1 and len(order) - starts[-1] < least:
        starts.pop()
    for start, end in itertools.pairwise((*starts, len(order))):
        yield order[start:end]
