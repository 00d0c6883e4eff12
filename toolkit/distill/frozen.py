"""A teacher that is not trained, made ready for a GPU: fewer passes over memory per call, and no weight cast twice.

Under autocast, weights without gradient are cast to bfloat16 at every call. A batch norm in evaluation mode is a
factor and a summand of each channel, which the convolution before it can take on.
"""

import copy

import torch
from torch import Tensor, nn

from toolkit.distill.precision import Arithmetic
from toolkit.networks.classifier import Classifier

FARTHEST = 0.01
"""Largest difference of a folded network's answers, as a share of its largest answer; TF32 alone makes 0.001."""


class FrozenClassifier(Classifier):
    """A classifier whose normalisation is one operation."""

    scale: Tensor
    shift: Tensor

    def __init__(self, classifier: Classifier, network: nn.Module) -> None:
        super().__init__(network, classifier.mean.flatten().tolist(), classifier.std.flatten().tolist())
        self.register_buffer("scale", 1 / self.std, persistent=False)
        self.register_buffer("shift", -self.mean / self.std, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(torch.addcmul(self.shift, images, self.scale))
        return logits


def freeze(classifier: Classifier, precision: Arithmetic, image_size: int) -> FrozenClassifier:
    """A classifier with the same answers, for use under `autocast` in `precision`; `classifier` stays as it is.

    `classifier` is in evaluation mode. Batch norms are folded, unless that changes the answers to images of
    `image_size` px. For bfloat16, the weights of convolutions and linear layers are bfloat16.
    """
    device = classifier.mean.device
    folded = _fold_or_none(classifier.network)
    if folded is None or not _is_same(classifier.network, folded, image_size, device):
        folded = copy.deepcopy(classifier.network)
    if precision == "bf16":
        for module in folded.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.to(torch.bfloat16)
    frozen = FrozenClassifier(classifier, folded).requires_grad_(False).eval()
    return frozen.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _fold_or_none(network: nn.Module) -> nn.Module | None:
    """None if torch cannot trace the network."""
    from torch.fx.experimental.optimization import fuse

    try:
        return fuse(nn.Sequential(network))  # hooks of what is traced itself would be lost: one enlarges images
    except Exception:
        return None


@torch.no_grad()
def _is_same(network: nn.Module, folded: nn.Module, image_size: int, device: torch.device) -> bool:
    """Whether both give the same answers: torch may specialise to an image, and folds a layer for all its users."""
    images = torch.randn(2, 3, image_size, image_size, device=device, generator=torch.Generator(device).manual_seed(0))
    answers, others = network(images), folded(images)
    return bool((answers - others).abs().max() <= FARTHEST * answers.abs().max())
