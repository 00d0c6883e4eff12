"""A frozen teacher answers as the network that it was made from."""

import copy
from pathlib import Path

import pytest
import torch
from distill_samples import load_splits, make_views
from torch import Tensor, nn

from toolkit.distill import frozen
from toolkit.distill.features import TappedNetwork
from toolkit.distill.frozen import freeze
from toolkit.distill.precision import autocast
from toolkit.distill.teachers import LiveTeacher
from toolkit.networks import registry
from toolkit.networks.classifier import Classifier

IMAGES = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1)).contiguous(
    memory_format=torch.channels_last
)


def make_classifier(network: nn.Module) -> Classifier:
    """In evaluation mode, with statistics as training leaves them."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            for values, low, high in (
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 1.5),
                (module.weight.data, 0.5, 1.5),
                (module.bias.data, -0.2, 0.2),
            ):
                values.uniform_(low, high)
    return Classifier(network, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)).eval()


def count_norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


@pytest.mark.parametrize("name", ["resnet18", "depthwise", "mobilenet_v3_small", "shufflenet_v2_x0_5", "densenet121"])
def test_a_folded_network_answers_the_same(name: str) -> None:
    classifier = make_classifier(registry.build(name, 4))
    before = copy.deepcopy(classifier.state_dict())
    network = freeze(classifier, "fp32", 64)
    norms = count_norms(classifier)
    assert count_norms(network) <= (norms / 1.9 if name == "densenet121" else 0), "there norms come before convolutions"
    with torch.no_grad():
        expected, answers = classifier(IMAGES), network(IMAGES)
    torch.testing.assert_close(answers, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(before[key], value) for key, value in classifier.state_dict().items())


def test_a_network_that_enlarges_images_still_does() -> None:
    classifier = make_classifier(registry.build("resnet18", 4, enlarge=2))
    network = freeze(classifier, "fp32", 32)
    with torch.no_grad():
        torch.testing.assert_close(network(IMAGES), classifier(IMAGES), rtol=1e-3, atol=1e-4)
    assert count_norms(network) == 0


def test_in_bfloat16_weights_are_cast_once_and_to_the_same() -> None:
    classifier = make_classifier(registry.build("resnet18", 4))
    once, again = freeze(classifier, "bf16", 64), freeze(classifier, "fp32", 64)
    layers = [module for module in once.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert {layer.weight.dtype for layer in layers} == {torch.bfloat16}
    with torch.no_grad(), autocast("cpu", "bf16"):
        assert torch.equal(once(IMAGES), again(IMAGES))


def test_normalisation_is_the_classifier_s_and_stays_channels_last() -> None:
    classifier = make_classifier(nn.Identity())
    images = freeze(classifier, "fp32", 64)(IMAGES)
    torch.testing.assert_close(images, classifier(IMAGES))
    assert images.is_contiguous(memory_format=torch.channels_last)


class Branching(nn.Module):
    """A network whose path depends on the values of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images)
        return logits if images.sum() > 0 else -logits


def test_a_network_that_torch_cannot_follow_stays_as_it_is() -> None:
    classifier = make_classifier(Branching())
    network = freeze(classifier, "fp32", 64)
    assert count_norms(network) == 1
    with torch.no_grad():
        torch.testing.assert_close(network(-IMAGES), classifier(-IMAGES))


class Shared(nn.Module):
    """One convolution before two batch norms: it cannot take on both."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, images: Tensor) -> Tensor:
        return self.second(self.conv(self.first(self.conv(images)))).mean((2, 3))


def test_a_network_whose_answers_would_differ_stays_as_it_is() -> None:
    classifier = make_classifier(Shared())
    folded = frozen._fold_or_none(classifier.network)
    assert folded is not None
    assert not frozen._is_same(classifier.network, folded, 64, torch.device("cpu"))
    assert count_norms(freeze(classifier, "fp32", 64)) == 2


@pytest.mark.gpu
def test_on_a_gpu_a_frozen_teacher_answers_as_on_the_cpu(class_folders: Path) -> None:
    train, valid = load_splits(class_folders)
    network = make_classifier(registry.build("resnet18", 3))
    on_cpu = LiveTeacher(TappedNetwork(copy.deepcopy(network)), make_views(train), valid, "fp32").valid_logits()
    views = make_views(train)
    views.device = "cuda:0"
    for precision, farthest in (("fp32", 0.01), ("bf16", 0.1)):
        live = LiveTeacher(TappedNetwork(copy.deepcopy(network)), views, valid, precision)  # type: ignore[arg-type]
        assert count_norms(live._network) == 0
        assert (live.valid_logits().cpu() - on_cpu).abs().max() <= farthest * on_cpu.abs().max()
