"""ImageNet weights of torchvision, as far as no download is needed."""

import pytest
from torch import nn

from toolkit.distill.teacher import _load_imagenet_body
from toolkit.errors import WeightsError


def test_a_network_without_imagenet_weights_is_refused_before_a_download() -> None:
    with pytest.raises(
        WeightsError, match=r"torchvision has no ImageNet weights for depthwise; use teacher.weights = "
    ):
        _load_imagenet_body(nn.Linear(1, 1), "depthwise")
