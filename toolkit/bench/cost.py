"""What a network costs before anything is timed: parameters, multiply-adds, memory on a GPU."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from toolkit.predictor import Predictor

MIB = 2**20


def count_params(network: nn.Module) -> int:
    """Trainable or not; buffers (batch-norm statistics, normalisation) are left out."""
    return sum(parameter.numel() for parameter in network.parameters())


def count_macs(network: nn.Module, image_size: int) -> int:
    """Multiply-adds of convolutions and matrix products for one image (1, 3, image_size, image_size).

    Element-wise work (biases, activations, normalisation, pooling) is not counted, as is the field's habit.
    """
    network.eval()
    image = torch.zeros(1, 3, image_size, image_size, device=next(network.parameters()).device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(image)
    return int(counter.get_total_flops()) // 2


def measure_peak_memory_mib(predictor: Predictor, images: NDArray[np.uint8], network: nn.Module) -> float | None:
    """MiB that one batch `images` (N, S, S, 3) needs on an NVIDIA GPU: the weights and the most held at any moment.

    Counted by torch's allocator, so without the CUDA context, and only for a torch row on a GPU. None otherwise: the
    high-water mark of a process that holds every row's network says nothing about one of them.
    """
    if predictor.runtime != "torch" or not predictor.provider.startswith("cuda"):
        return None
    device = torch.device(predictor.provider)
    tensors = [*network.parameters(), *network.buffers()]
    weights_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    predictor.logits(images)
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    predictor.logits(images)
    return (torch.cuda.max_memory_allocated(device) - before + weights_bytes) / MIB
