"""Several teachers as one network: the mean of what they say. N images, S px their side, C classes, M members."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.architectures import EnsembleSettings, NetworkSettings
from toolkit.networks.classifier import Classifier
from toolkit.networks.families import Channels, Family


class Ensemble(nn.Module):
    """float images (N, 3, S, S) in 0..1 → logits (N, C): the members' mean.

    Each member has its own normalisation and sees the images at its own size, px. The mean is that of logits, or the
    logarithm of the mean of probabilities.
    """

    def __init__(self, members: Sequence[Classifier], sizes: Sequence[int], combine: str) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.sizes, self.combine = tuple(sizes), combine

    @property
    def classifiers(self) -> list[Classifier]:
        """The members, each with its normalisation."""
        return [member for member in self.members if isinstance(member, Classifier)]

    def forward(self, images: Tensor) -> Tensor:
        answers = torch.stack([self._ask(member, images, size) for member, size in self._pairs()])
        if self.combine == "logits":
            return answers.mean(0)
        count = torch.tensor(float(len(self.sizes)), device=answers.device)
        return answers.float().log_softmax(2).logsumexp(0) - count.log()

    def _pairs(self) -> Iterator[tuple[nn.Module, int]]:
        return zip(self.members, self.sizes, strict=True)

    def _ask(self, member: nn.Module, images: Tensor, size: int) -> Tensor:
        if size != images.shape[-1]:
            images = F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False, antialias=True)
        answer: Tensor = member(images)
        return answer


class OfEnsemble(Family):
    """The family of one name, `ensemble`: its settings describe the members."""

    def __init__(self, build_member: Any) -> None:
        self._build_member = build_member

    def require(self, architecture: str) -> None:
        """Always there; the members may not be."""

    def build(
        self, architecture: str, num_classes: int, settings: NetworkSettings, image_size: int | None
    ) -> nn.Module:
        assert isinstance(settings, EnsembleSettings)
        members, sizes = [], []
        for described in settings.members:
            network = self._build_member(described["network"], num_classes, described["image_size"])
            members.append(Classifier(network, described["mean"], described["std"]))
            sizes.append(described["image_size"])
        return Ensemble(members, sizes, settings.combine)


def describe_member(network: Mapping[str, Any], mean: Channels, std: Channels, image_size: int) -> dict[str, Any]:
    """A member in the settings of an ensemble; `network` is NetworkSpec.to_json."""
    return {"network": dict(network), "mean": list(mean), "std": list(std), "image_size": image_size}
