"""A teacher of which only the answers are there: logits of named images, from a file. N images, C classes."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from toolkit.architectures import NetworkSettings
from toolkit.errors import RecipeError
from toolkit.networks.families import Family


class Answers(nn.Module):
    """Buffers `logits`, float32 (N, C), and `names`, those images' names as UTF-8 with line breaks between, uint8.

    It is no network: asked about an image, it raises RecipeError.
    """

    logits: Tensor
    names: Tensor

    def __init__(self, names: Sequence[str] = (), logits: Tensor | None = None) -> None:
        super().__init__()
        text = bytearray("\n".join(names).encode())
        self.register_buffer("names", torch.frombuffer(text, dtype=torch.uint8) if text else torch.empty(0).byte())
        self.register_buffer("logits", torch.empty(0, 0) if logits is None else logits)

    @property
    def image_names(self) -> list[str]:
        return self.names.cpu().numpy().tobytes().decode().split("\n")

    def find(self, names: Sequence[str]) -> np.ndarray:
        """The rows, int64 (N,), of the images of those names; -1 for one without an answer."""
        rows = {name: row for row, name in enumerate(self.image_names)}
        return np.array([rows.get(name, -1) for name in names], dtype=np.int64)

    def forward(self, images: Tensor) -> Tensor:
        raise RecipeError(
            "answers is no network, but a teacher's answers in a file",
            "give such a file with toolkit teacher --answers FILE, or name a network",
        )


class OfAnswers(Family):
    """The family of one name, `answers`: what it holds comes from a file."""

    def require(self, architecture: str) -> None:
        """Always there."""

    def build(
        self, architecture: str, num_classes: int, settings: NetworkSettings, image_size: int | None
    ) -> nn.Module:
        return Answers()
