"""A network with its normalisation."""

import torch
from torch import nn

from toolkit.networks.classifier import Classifier


def test_normalises_by_channel() -> None:
    """Against hand-worked numbers: (0.5 − 0.1) / 0.2 = 2, (0.5 − 0.2) / 0.4 = 0.75, (0.5 − 0.5) / 0.3 = 0."""
    classifier = Classifier(nn.Flatten(), (0.1, 0.2, 0.5), (0.2, 0.4, 0.3))
    logits = classifier(torch.full((1, 3, 1, 1), 0.5))
    assert torch.allclose(logits, torch.tensor([[2.0, 0.75, 0.0]]), atol=1e-6)


def test_normalisation_follows_the_module_but_is_no_weight() -> None:
    classifier = Classifier(nn.Linear(2, 2), (0.1, 0.2, 0.3), (1.0, 1.0, 1.0)).double()
    assert classifier.mean.dtype == classifier.std.dtype == torch.float64
    assert set(classifier.state_dict()) == {"network.weight", "network.bias"}
