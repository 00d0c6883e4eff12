"""A network together with the normalisation it was trained with."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Classifier(nn.Module):
    """float images (N, 3, H, W) in 0..1 → logits (N, C).

    `mean` and `std` are buffers (1, 3, 1, 1) that follow the module to its device and stay out of its state dict:
    weights files carry them as metadata.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, 3, 1, 1), persistent=False)

    @property
    def normalisation(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """Mean and standard deviation of RGB in 0..1."""
        mean, std = (tuple(values.flatten().tolist()) for values in (self.mean, self.std))
        return mean, std

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network((images - self.mean) / self.std)
        return logits
