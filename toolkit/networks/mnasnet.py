"""Torchvision's MNASNet, made to take weights that do not carry the version of its layout.

Torch keeps that version beside a state dict of its own. Safetensors, and copies of the tensors, lose it.
"""

from typing import Any

from torch import Tensor
from torchvision import models


class MNASNet(models.MNASNet):  # type: ignore[misc]
    """A state dict without a version is of the newest one; an older one has other shapes, and is refused for them."""

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, local_metadata: dict[str, Any], *rest: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, {"version": self._version} | local_metadata, *rest)
