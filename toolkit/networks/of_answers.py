"""A teacher of which only the answers are there: logits of named images, from a file. N images, C classes."""

import torch
from torch import Tensor, nn

from toolkit.errors import RecipeError
from toolkit.networks.families import Pretrained, no_pretrained
from toolkit.architectures import NetworkSettings


class Answers(nn.Module):
    """Buffers `logits`, float32 (N, C), and `names`, the names of those images as UTF-8 with newlines between, uint8.

    It is no network: asked for an image's answer, it raises RecipeError.
    """

    logits: Tensor
    names: Tensor

    def __init__(self, names: tuple[str, ...] = (), logits: Tensor | None = None) -> None:
        super().__init__()
        text = "\n".join(names).encode(errors="surrogateescape")
        self.register_buffer("names", torch.frombuffer(bytearray(text or b"\n"), dtype=torch.uint8))
        self.register_buffer("logits", torch.empty(0, 0) if logits is None else logits)

    @property
    def image_names(self) -> tuple[str, ...]:
        return tuple(self.names.numpy().tobytes().decode(errors="surrogateescape").split("\n"))

    def forward(self, images: Tensor) -> Tensor:
        raise RecipeError(
            "the teacher is a file of answers, and cannot answer an image",
            "use a network as the teacher: toolkit teacher --weights FILE --force",
        )


class OfAnswers:
    """The family of one name, `answers`: what it holds comes from a file."""

    def require(self, architecture: str) -> None:
        """Always there."""

    def build(
        self, architecture: str, num_classes: int, settings: NetworkSettings, image_size: int | None
    ) -> nn.Module:
        return Answers()

    def pretrained(self, architecture: str, settings: NetworkSettings, image_size: int) -> Pretrained:
        raise no_pretrained(architecture)
