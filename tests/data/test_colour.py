"""Changes of colour against torchvision's own functions, over their strengths, one image after the other."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as V2F

from toolkit.data import colour


@pytest.fixture
def images() -> Tensor:
    """float32 (6, 3, 20, 20), values of eight bits: noise, dark, bright, grey, two colours, one colour."""
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (6, 3, 20, 20))
    noise[1] //= 3
    noise[2] = 170 + noise[2] // 3
    noise[3] = noise[3, :1]
    noise[4] = np.where(noise[4, :1] > 100, *np.array([[200, 40, 90], [10, 250, 250]])[:, :, None, None])
    noise[5] = 130
    return torch.from_numpy(noise.astype(np.float32)) / 255


def as_bytes(image: Tensor) -> Tensor:
    return (image * 255).round().to(torch.uint8)


FACTORS = [0.0, 0.1, 0.55, 1.0, 1.3, 1.9, 3.0]
CASES: dict[str, tuple[colour.Change, Callable[..., Tensor], list[float]]] = {
    "brightness": (colour.brightness, V2F.adjust_brightness, FACTORS),
    "contrast": (colour.contrast, V2F.adjust_contrast, FACTORS),
    "saturation": (colour.saturation, V2F.adjust_saturation, FACTORS),
    "hue": (colour.hue, V2F.adjust_hue, [-0.5, -0.31, -0.05, 0.0, 0.02, 0.25, 0.5]),
    "sharpness": (colour.sharpness, V2F.adjust_sharpness, FACTORS),
    "solarize": (colour.solarize, V2F.solarize, [0.0, 0.3, 0.513, 0.7, 1.0]),
    "autocontrast": (colour.autocontrast, lambda image, _: V2F.autocontrast(image), [0.0]),
    "equalize": (colour.equalize, lambda image, _: V2F.equalize(image), [0.0]),
    "grey": (colour.grey, lambda image, _: V2F.rgb_to_grayscale(image, 3), [0.0]),
}


@pytest.mark.parametrize("name", list(CASES))
def test_each_change_is_torchvision_s(name: str, images: Tensor) -> None:
    change, reference, strengths = CASES[name]
    for strength in strengths:
        found = change(images, torch.full((len(images),), strength))
        expected = torch.stack([reference(image, strength) for image in images])
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-6, msg=lambda text: f"{strength}: {text}")  # noqa: B023


@pytest.mark.parametrize("bits", range(1, 9))
def test_posterize_is_torchvision_s_of_eight_bits(bits: int, images: Tensor) -> None:
    found = colour.posterize(images, torch.full((len(images),), float(bits)))
    expected = torch.stack([V2F.posterize(as_bytes(image), bits) for image in images])
    torch.testing.assert_close(found, expected / 255, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [*CASES, "posterize"])
def test_each_image_has_its_own_strength(name: str, images: Tensor) -> None:
    change = getattr(colour, name)
    strengths = torch.linspace(1, 8, 6) if name == "posterize" else torch.linspace(0, 0.5, 6)
    together = change(images, strengths)
    alone = torch.cat([change(images[i : i + 1], strengths[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("sigma", [0.005, 0.03, 0.09])
def test_blur_is_torchvision_s_gaussian_with_the_same_kernel(sigma: float, images: Tensor) -> None:
    found = colour.blur(images, torch.full((6,), sigma), most=0.1)
    size = 2 * math.ceil(colour.SIGMAS * 0.1 * 20) + 1
    torch.testing.assert_close(found, V2F.gaussian_blur(images, [size, size], [sigma * 20] * 2), rtol=0, atol=1e-5)


def test_blur_is_as_strong_at_any_size() -> None:
    """On an edge: its blurred profile is the same function of the place, in shares of the side."""
    profiles = []
    for side in (32, 64, 128):
        edge = torch.zeros(1, 3, side, side)
        edge[..., side // 2 :] = 1
        blurred = colour.blur(edge, torch.tensor([0.08]), most=0.09)
        profiles.append(torch.nn.functional.avg_pool2d(blurred, side // 32)[0, 0, 16])
    for profile in profiles[1:]:
        torch.testing.assert_close(profile, profiles[0], rtol=0, atol=0.01)


@pytest.mark.parametrize("whole", [True, False])
def test_only_chosen_images_change(whole: bool, images: Tensor) -> None:
    chosen, factors = torch.tensor([True, False, False, True, False, False]), torch.linspace(0.2, 0.8, 6)
    found = colour.change_some(images, chosen, colour.brightness, factors, whole=whole)
    expected = images.clone()
    expected[chosen] = colour.brightness(images, factors)[chosen]
    assert torch.equal(found, expected)
    nothing = colour.change_some(images, torch.zeros(6, dtype=torch.bool), colour.brightness, factors, whole=whole)
    assert torch.equal(nothing, images)


def test_only_chosen_images_cost_time_on_a_cpu(images: Tensor) -> None:
    sizes: list[int] = []

    def note(some: Tensor, _: Any) -> Tensor:
        sizes.append(len(some))
        return some

    for chosen in ([0, 1, 0, 0, 1, 0], [0] * 6):
        colour.change_some(images, torch.tensor(chosen).bool(), note, torch.ones(6), whole=False)
    assert sizes == [2]
