"""Convolutions of small maps as products: the sums of nn.Conv2d, in another order."""

import copy

import pytest
import torch
from torch import Tensor, nn

from toolkit.graphs.build import build_graph
from toolkit.networks import registry
from toolkit.networks.classifier import Classifier
from toolkit.networks.small_maps import MAX_PAIRS, SmallMapConv2d, output_size, pair_places, use_small_map_convolutions

LAYERS = {
    "dense 3×3": {"kernel_size": 3, "padding": 1},
    "dense 3×3 of every second place": {"kernel_size": 3, "padding": 1, "stride": 2},
    "dense 2×3, uneven": {"kernel_size": (2, 3), "padding": (1, 0), "stride": (1, 2)},
    "dense 7×7": {"kernel_size": 7, "padding": 3, "stride": 2},
    "depthwise 3×3": {"kernel_size": 3, "padding": 1, "groups": 4},
    "depthwise 5×5 of every second place": {"kernel_size": 5, "padding": 2, "stride": 2, "groups": 4},
    "pointwise": {"kernel_size": 1},
    "pointwise of every second place": {"kernel_size": 1, "stride": 2},
    "without a bias": {"kernel_size": 3, "padding": 1, "bias": False},
}
MAPS = [(1, 1), (1, 4), (2, 2), (3, 2), (4, 4), (8, 8), (9, 9)]
"""Some are too large for a product with some layers: then torch's own convolution answers."""


def _pair(settings: dict[str, object], *, dtype: torch.dtype = torch.float64) -> tuple[nn.Conv2d, nn.Conv2d]:
    torch.manual_seed(0)
    outputs = 4 if "groups" in settings else 6
    plain = nn.Conv2d(4, outputs, **settings).to(dtype)  # type: ignore[arg-type]
    quick = copy.deepcopy(plain)
    use_small_map_convolutions(quick)
    assert type(quick) is SmallMapConv2d
    return plain, quick


def _results(layer: nn.Conv2d, maps: Tensor) -> list[Tensor]:
    """The output, and the gradients of maps and parameters."""
    maps = maps.clone().requires_grad_()
    output = layer(maps)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return [output, *torch.autograd.grad((output * weights).sum(), [maps, *layer.parameters()])]


@pytest.mark.parametrize("size", MAPS, ids=str)
@pytest.mark.parametrize("settings", LAYERS.values(), ids=LAYERS)
def test_output_and_gradients_are_those_of_conv2d(settings: dict[str, object], size: tuple[int, int]) -> None:
    plain, quick = _pair(settings)
    maps = torch.randn(5, 4, *size, dtype=torch.float64)
    try:
        wanted = _results(plain, maps)
    except RuntimeError:  # the map is smaller than the kernel: both must say so
        with pytest.raises(RuntimeError):
            quick(maps)
        return
    for one, other in zip(_results(quick, maps), wanted, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["dense 3×3", "depthwise 3×3"])
def test_in_bfloat16_it_is_as_near_as_conv2d_is(name: str) -> None:
    plain, quick = _pair(LAYERS[name], dtype=torch.float32)
    maps = torch.randn(5, 4, 2, 2)
    exact = _results(plain, maps)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = _results(quick, maps)
    assert rounded[0].dtype == torch.bfloat16
    assert all(gradient.dtype == torch.float32 for gradient in rounded[1:])
    for one, other in zip(rounded, exact, strict=True):
        assert (one.float() - other).abs().max() <= 0.02 * other.abs().max()


def test_a_frozen_layer_and_maps_without_gradients_cost_none() -> None:
    _, quick = _pair(LAYERS["dense 3×3"])
    quick.weight.requires_grad_(False)
    maps = torch.randn(5, 4, 2, 2, dtype=torch.float64, requires_grad=True)
    quick(maps).sum().backward()
    assert maps.grad is not None
    assert quick.weight.grad is None


@pytest.mark.parametrize("name", ["dense 3×3", "depthwise 3×3", "pointwise", "pointwise of every second place"])
def test_gradients_lie_in_memory_as_the_weights_do(name: str) -> None:
    """Or the optimiser copies each of them, and DistributedDataParallel warns."""
    _, quick = _pair(LAYERS[name])
    quick.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    quick(torch.randn(5, 4, 2, 2, dtype=torch.float64)).sum().backward()
    assert quick.weight.grad is not None
    assert quick.weight.grad.stride() == quick.weight.stride()


def test_every_pair_of_places_is_one_that_a_kernel_joins() -> None:
    geometry = (3, 2, 3, 3, 2, 1, 1, 1)
    rows, columns = output_size(geometry)
    assert (rows, columns) == (2, 2)
    joined = {
        (y * 2 + x, row * columns + column, y - row * 2 + 1, x - column + 1)
        for row in range(rows)
        for column in range(columns)
        for y in range(3)
        for x in range(2)
        if 0 <= y - row * 2 + 1 < 3 and 0 <= x - column + 1 < 3
    }
    assert set(pair_places(geometry)) == joined


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 3, padding=1, dilation=2),
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.Conv2d(4, 8, 3, padding=1, groups=4),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
    ],
)
def test_other_convolutions_stay_torchs(layer: nn.Conv2d) -> None:
    use_small_map_convolutions(layer)
    assert type(layer) is nn.Conv2d


def test_large_maps_go_to_torchs_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    _, quick = _pair(LAYERS["dense 3×3"])
    taken: list[tuple[int, ...]] = []
    monkeypatch.setattr(
        nn.Conv2d,
        "forward",
        lambda self, maps: taken.append(tuple(maps.shape)) or torch.zeros(()),  # type: ignore[func-returns-value]
    )
    side = int(MAX_PAIRS**0.25)  # side² · side² pairs
    quick(torch.randn(1, 4, side, side, dtype=torch.float64))
    assert not taken
    quick(torch.randn(1, 4, side + 1, side + 1, dtype=torch.float64))
    assert taken == [(1, 4, side + 1, side + 1)]


@pytest.mark.parametrize("architecture", ["depthwise", "resnet18"])
def test_a_network_answers_and_exports_as_before(architecture: str) -> None:
    torch.manual_seed(0)
    network = registry.build(architecture, 3).eval()
    quick = copy.deepcopy(network)
    use_small_map_convolutions(quick)
    assert list(quick.state_dict()) == list(network.state_dict())
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(quick(images), network(images), rtol=1e-4, atol=1e-5)
    graphs = [build_graph(Classifier(one, (0, 0, 0), (1, 1, 1)), 32, 20).graph for one in (network, quick)]
    assert [node.op_type for node in graphs[0].node] == [node.op_type for node in graphs[1].node]
