"""Networks by name."""

import copy

import pytest
import torch

from toolkit.errors import RecipeError
from toolkit.networks.registry import architectures, build, count_parameters, enlargement


def test_known_names() -> None:
    names = architectures()
    assert names[0] == "depthwise"
    assert {"resnet18", "mobilenet_v3_small", "vit_b_16"} <= set(names)
    assert not any(name.startswith(("fcn", "fasterrcnn", "raft", "r3d", "quantized")) for name in names)


def test_resnet18_is_torchvisions() -> None:
    network = build("resnet18", 11)
    assert count_parameters(network) == 11_689_512 - 513 * 1000 + 513 * 11  # torchvision's count, with another head
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 11)


def test_an_enlarging_network_sees_each_image_so_much_larger() -> None:
    torch.manual_seed(0)
    network = build("resnet18", 3, image_size=16, enlarge=2).eval()
    images = torch.rand(2, 3, 16, 16)
    larger = torch.nn.functional.interpolate(images, size=(32, 32), mode="bilinear", align_corners=False)
    plain = build("resnet18", 3).eval()
    plain.load_state_dict(network.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(network(images), plain(larger))
    assert enlargement(network) == enlargement(copy.deepcopy(network)) == 2
    assert enlargement(plain) == 1


def test_a_network_of_one_size_is_built_for_the_enlarged_one() -> None:
    with torch.device("meta"):
        network = build("vit_b_32", 5, image_size=32, enlarge=2)
        assert network(torch.rand(2, 3, 32, 32)).shape == (2, 5)


@pytest.mark.parametrize("architecture", ["googlenet", "inception_v3"])
def test_auxiliary_heads_are_left_out(architecture: str) -> None:
    """In training, too, the output is a tensor."""
    with torch.device("meta"):
        network = build(architecture, 5, image_size=96).train()
        assert network(torch.rand(2, 3, 96, 96)).shape == (2, 5)


@pytest.mark.parametrize(("architecture", "size"), [("vit_b_32", 64), ("maxvit_t", 224), ("swin_t", 64)])
def test_networks_of_one_size_are_built_for_it(architecture: str, size: int) -> None:
    with torch.device("meta"):
        network = build(architecture, 5, image_size=size)
        assert network(torch.rand(2, 3, size, size)).shape == (2, 5)


FAMILIES = (
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "mnasnet0_5", "mobilenet_v2"),
    *("mobilenet_v3_large", "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_0", "swin_v2_t", "vgg11_bn"),
)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_every_family_can_be_built(architecture: str) -> None:
    with torch.device("meta"):
        network = build(architecture, 7, image_size=64).eval()
        assert network(torch.rand(2, 3, 64, 64)).shape == (2, 7)


@pytest.mark.parametrize("architecture", ["mnasnet0_5", "resnet18"])
def test_tensors_are_loaded_without_what_torch_keeps_beside_them(architecture: str) -> None:
    """Safetensors, and copies of the tensors, have no version of the layout."""
    tensors = {name: value.clone() for name, value in build(architecture, 3).state_dict().items()}
    other = build(architecture, 3)
    other.load_state_dict(tensors)
    assert all(torch.equal(value, tensors[name]) for name, value in copy.deepcopy(other).state_dict().items())


def test_the_size_check_changes_nothing() -> None:
    torch.manual_seed(3)
    checked = build("mobilenet_v3_small", 3, image_size=32)
    torch.manual_seed(3)
    unchecked = build("mobilenet_v3_small", 3)
    assert checked.training
    for ours, theirs in zip(checked.state_dict().values(), unchecked.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def test_unknown_names_get_the_nearest_one() -> None:
    with pytest.raises(RecipeError, match=r"unknown architecture 'resnt18'; did you mean resnet18 "):
        build("resnt18", 3)
    with pytest.raises(RecipeError, match=r"unknown architecture 'qqq'; allowed: depthwise, any classifier"):
        build("qqq", 3)


@pytest.mark.parametrize(("architecture", "size"), [("depthwise", 8), ("alexnet", 32), ("vit_b_16", 50)])
def test_sizes_that_a_network_refuses(architecture: str, size: int) -> None:
    with pytest.raises(
        RecipeError, match=rf"{architecture} cannot take images of {size} px \(data.image_size\): "
    ) as info:
        build(architecture, 3, image_size=size)
    assert "\n" not in str(info.value)
