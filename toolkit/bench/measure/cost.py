"""A network's multiply-adds: what it costs, without timing."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from toolkit.networks.registry import has_file


def count_macs(network: nn.Module, image_size: int) -> int | None:
    """Multiply-adds of convolutions and matrix products for one image (1, 3, image_size, image_size).

    None for an ONNX file of another tool: torch does not see its operators.

    Element-wise work (biases, activations, normalisation, pooling) is not counted, as is usual.
    """
    if has_file(network):
        return None
    network.eval()
    image = torch.zeros(1, 3, image_size, image_size, device=next(network.parameters()).device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(image)
    return int(counter.get_total_flops()) // 2
