"""Networks with a few thousand weights in which constants or shapes alone enter between the layers.

They are torchvision's own classes, or a few lines where one kind is to stand alone.
"""

from collections.abc import Callable
from functools import cache, partial

import onnx
import torch
from small_networks import graph_of
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.maxvit import MaxVit
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2
from torchvision.models.vision_transformer import VisionTransformer

SIDE = 32
"""px of the images that all of them take"""

CLASSES = 4


class FromShape(nn.Module):
    """A ramp as long as the batch, made of its size alone, is added to what a layer makes."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        features = self.body(images).mean((2, 3))
        ramp = torch.zeros(features.shape[0], device=images.device).unsqueeze(1) + torch.arange(8.0)
        logits: Tensor = self.head(features + ramp)
        return logits


class FromPicture(nn.Module):
    """The picture itself, in two sizes, is read by two layers: more than one tensor leads into the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.near, self.far = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(3, 8, 2, 2)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        near, far = self.near(images), self.far(nn.functional.avg_pool2d(images, 2))
        logits: Tensor = self.head(torch.cat([near, far], 1).mean((2, 3)))
        return logits


def make_vit() -> nn.Module:
    network = VisionTransformer(SIDE, 16, 2, 2, 16, 32, num_classes=CLASSES)
    nn.init.normal_(network.heads.head.weight)
    return network


def make_swin(**changes: object) -> nn.Module:
    return SwinTransformer([4, 4], 8, [2, 2], [2, 2], [4, 4], num_classes=CLASSES, **changes)


MAKERS: dict[str, Callable[[], nn.Module]] = {
    "vit": make_vit,
    "swin": make_swin,
    "swin_v2": partial(make_swin, block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2),
    "maxvit": lambda: MaxVit((SIDE, SIDE), 8, 2, [8], [1], 4, 0.0, num_classes=CLASSES),
    "convnext": lambda: ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], num_classes=CLASSES),
    "from shape": FromShape,
    "from picture": FromPicture,
}
"""Class token · bias tables and masks · a table that layers compute · both at once · layer scale · ..."""


def make_family(name: str) -> nn.Module:
    """In evaluation mode, with random weights."""
    torch.manual_seed(0)
    return MAKERS[name]().eval()


def family_graph(name: str) -> onnx.ModelProto:
    """The graph of `make_family`, built once and copied."""
    return onnx.ModelProto.FromString(_family_graph(name))


@cache
def _family_graph(name: str) -> bytes:
    return graph_of(make_family(name), SIDE).SerializeToString()
