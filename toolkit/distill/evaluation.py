"""A network's answers on a whole split, shared out over the processes that train. N images, C classes."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from toolkit import console
from toolkit.data.batches import batches
from toolkit.data.host_crops import CentreCrops
from toolkit.data.pixels import Pixels
from toolkit.data.resident import ResidentPixels, send
from toolkit.data.views import centre_views
from toolkit.distill import distributed
from toolkit.distill.memory import free_cache, is_out_of_memory
from toolkit.distill.precision import Arithmetic, autocast
from toolkit.errors import TrainingError, WeightsError
from toolkit.networks.classifier import Classifier

BATCH_PIXELS, GPU_BATCH_PIXELS = 2**22, 2**24
"""px in a batch: 64 images of 256 px, 256 on a GPU"""
LARGEST_BATCH, GPU_LARGEST_BATCH = 250, 1024
"""images"""


def compute_logits(network: Classifier, pixels: Pixels, precision: Arithmetic, device: str) -> Tensor:
    """Logits float32 (N, C) of the evaluation view of every image, on `device`, where the network is.

    If memory runs out, smaller batches are tried. TrainingError if one image is too much.
    """
    network.eval()
    most_pixels, most = (BATCH_PIXELS, LARGEST_BATCH) if device == "cpu" else (GPU_BATCH_PIXELS, GPU_LARGEST_BATCH)
    batch_size = max(1, min(most, most_pixels // pixels.preprocess.image_size**2))
    share = distributed.own_share(np.arange(len(pixels)))
    # if there are fewer images than processes, a process without a share still has to know C
    asked = share if len(share) else np.zeros(1, np.int64)

    def answer() -> Tensor | None:
        return _logits_or_none(
            network, _evaluation_views(pixels, list(batches(asked, batch_size, 1)), device), precision, device
        )

    while (logits := answer()) is None:
        if batch_size == 1:
            raise TrainingError(
                "validation: out of memory with one image at a time", "use a smaller data.image_size or network"
            )
        batch_size //= 2
        free_cache(device)
        console.say(f"out of memory: validating {batch_size} images at a time")
    return distributed.gather_shares(logits[: len(share)], len(pixels))


def require_finite(logits: Tensor, names: Sequence[str]) -> None:
    """WeightsError unless the teacher's `logits` (N, C), for the images of these names, are all finite."""
    finite = logits.isfinite().all(1)
    if not bool(finite.all()):
        raise WeightsError(
            f"the teacher answers {names[int((~finite).int().argmax())]} with values that are not finite",
            "give other weights of it: trained again, or exported again in float32",
        )


def _logits_or_none(network: Classifier, views: Iterator[Tensor], precision: Arithmetic, device: str) -> Tensor | None:
    """None if memory ran out; all that was allocated is free again by then."""
    parts = []
    try:
        for images in views:
            with torch.inference_mode(), autocast(device, precision):
                parts.append(network(images).float())
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return None
    return torch.cat(parts)


def _evaluation_views(pixels: Pixels, chosen: list[np.ndarray], device: str) -> Iterator[Tensor]:
    """float32 (B, 3, S, S) in 0..1 on `device`, batch by batch; they are cut out there if the pixels lie on a GPU.

    If a GPU has no room for them, threads cut the next batch while it computes.
    """
    if device == "cpu":
        yield from (centre_views(torch.from_numpy(pixels.centre(batch))) for batch in chosen)
    elif resident := ResidentPixels.where_it_fits(pixels, device):
        yield from (centre_views(resident.centre(send(batch, device))) for batch in chosen)
    else:
        crops = CentreCrops(pixels, pinned=device.startswith("cuda"))
        for number, batch in enumerate(chosen):
            crops.expect(chosen[number : number + 2], 0)
            yield centre_views(crops.take(batch, 0).to(device, non_blocking=True))
