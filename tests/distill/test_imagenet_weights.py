"""ImageNet weights of torchvision, as far as no download is needed."""

import pytest

from toolkit.errors import WeightsError
from toolkit.networks.registry import NetworkSpec, find_pretrained


def test_a_network_without_imagenet_weights_is_refused_before_a_download() -> None:
    with pytest.raises(WeightsError, match=r"there are no ImageNet weights for depthwise; use teacher.weights = "):
        find_pretrained(NetworkSpec("depthwise"), 32)
