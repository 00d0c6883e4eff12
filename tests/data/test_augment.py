"""RandAugment and TrivialAugment: operations and magnitudes are torchvision's, and so is how often each is drawn."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from toolkit.data.augment import MAGNITUDES, MOVES, NUMBERS, OPERATIONS, apply_policy, draw_policy, policy_length
from toolkit.data.chance import uniform
from toolkit.data.warps import sample
from toolkit.settings import DataRecipe

SIDE = 56
TORCHVISION_S = [
    *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast"),
    *("Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize"),
]
NAMES = dict(zip(OPERATIONS, TORCHVISION_S, strict=True))
"""Our name of an operation → torchvision's."""
POLICIES: dict[str, Any] = {"randaugment": v2.RandAugment, "trivialaugment": v2.TrivialAugmentWide}


def recipe(**values: object) -> DataRecipe:
    return DataRecipe.model_validate(values)


def chance_of(operation: str, *, negative: bool, magnitude: int) -> list[float]:
    """The numbers that draw it."""
    place = (OPERATIONS.index(operation) + 0.5) / len(OPERATIONS)
    return [place, 0.25 if negative else 0.75, (magnitude + 0.5) / MAGNITUDES]


def magnitude_in_torchvision(policy: str, operation: str, *, negative: bool, magnitude: int) -> float:
    find, signed = POLICIES[policy]._AUGMENTATION_SPACE[NAMES[operation]]
    found = find(MAGNITUDES, SIDE, SIDE)
    if found is None:
        return 0.0
    value = float(found[magnitude])
    if policy == "trivialaugment" and operation.startswith("translate"):
        value *= SIDE / 224  # 32 px of 224 px, at any size
    return -value if signed and negative else value


def apply_torchvision_s(image: Tensor, operation: str, magnitude: float) -> Tensor:
    """On float32 (3, S, S) that hold eight bits; moves bilinear, and shifts by parts of a pixel too."""
    if operation.startswith("translate"):
        shift = [magnitude, 0.0] if operation.endswith("x") else [0.0, magnitude]
        options: dict[str, Any] = {"interpolation": InterpolationMode.BILINEAR, "fill": None}
        return v2.functional.affine(image, 0.0, shift, 1.0, [0.0, 0.0], **options)
    policy: Any = v2.RandAugment(interpolation=InterpolationMode.BILINEAR)
    if operation == "posterize":  # the function for floats is another one
        image = (image * 255).round().to(torch.uint8)
    found = policy._apply_image_or_video_transform(
        image, NAMES[operation], magnitude, InterpolationMode.BILINEAR, policy._fill
    )
    return found / 255 if found.dtype == torch.uint8 else found


def apply_ours(images: Tensor, drawn: dict[str, np.ndarray], *, whole: bool) -> Tensor:
    tensors = {name: torch.from_numpy(values) for name, values in drawn.items()}
    moved = sample(images, tensors["warps"][:, 0], SIDE)
    return apply_policy(moved, tensors["operations"], tensors["strengths"], tensors["warps"], whole=whole)


@pytest.fixture
def image() -> Tensor:
    noise = np.random.default_rng(0).integers(0, 256, (3, SIDE // 8, SIDE // 8)).repeat(8, 1).repeat(8, 2)
    return torch.from_numpy(noise.astype(np.float32)) / 255


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("policy", list(POLICIES))
def test_each_operation_is_torchvision_s_over_its_magnitudes(
    policy: str, operation: str, whole: bool, image: Tensor
) -> None:
    cases = [(magnitude, negative) for magnitude in (0, 4, 9, 15, 22, 30) for negative in (True, False)]
    for magnitude, negative in cases:
        data = recipe(augment=policy, augment_operations=1, augment_magnitude=magnitude)
        drawn = draw_policy(data, np.array([chance_of(operation, negative=negative, magnitude=magnitude)]))
        value = magnitude_in_torchvision(policy, operation, negative=negative, magnitude=magnitude)
        expected = apply_torchvision_s(image, operation, value)
        found = apply_ours(image[None], drawn, whole=whole)[0]
        # sampling without a move is exact to some 1e-6, which may lie on the other side of a step
        difference = (found - expected).abs()
        assert (difference > 1e-4).float().mean() < 0.002, (magnitude, negative, difference.max())


@pytest.mark.parametrize("whole", [True, False])
def test_operations_follow_each_other_as_torchvision_s_do(whole: bool, image: Tensor) -> None:
    data = recipe(augment="randaugment", augment_operations=3, augment_magnitude=7)
    count = 60
    drawn = draw_policy(data, uniform(5, np.arange(count), 0, 3 * NUMBERS))
    found = apply_ours(image.expand(count, -1, -1, -1).contiguous(), drawn, whole=whole)
    negatives = uniform(5, np.arange(count), 0, 3 * NUMBERS).reshape(count, 3, NUMBERS)[..., 1] <= 0.5
    for i in range(count):
        expected = image
        for number, negative in zip(drawn["operations"][i], negatives[i], strict=True):
            name = OPERATIONS[number]
            value = magnitude_in_torchvision("randaugment", name, negative=bool(negative), magnitude=7)
            expected = apply_torchvision_s(expected, name, value)
        # a step of equalize or posterize may be taken a value earlier or later
        assert (found[i] - expected).abs().mean() < 0.01, [OPERATIONS[number] for number in drawn["operations"][i]]
        assert (found[i] - expected).abs().median() < 1e-4


@pytest.mark.parametrize("policy", list(POLICIES))
def test_each_operation_sign_and_magnitude_is_drawn_as_often(policy: str) -> None:
    count, data = 28_000, recipe(augment=policy, augment_magnitude=12)
    length = policy_length(data)
    assert length == {"randaugment": 2, "trivialaugment": 1}[policy]
    drawn = draw_policy(data, uniform(0, np.arange(count), 0, length * NUMBERS))
    assert drawn["operations"].shape == (count, length)
    assert list(POLICIES[policy]._AUGMENTATION_SPACE) == list(NAMES.values())
    for place in range(length):
        operations, strengths = drawn["operations"][:, place], drawn["strengths"][:, place]
        counts = Counter(operations.tolist())
        assert all(abs(counts[number] / count - 1 / 14) < 0.007 for number in range(14))
        factors = strengths[operations == OPERATIONS.index("brightness")] - 1
        solarized = strengths[operations == OPERATIONS.index("solarize")]
        bits = strengths[operations == OPERATIONS.index("posterize")]
        if policy == "randaugment":
            np.testing.assert_allclose(np.abs(factors), 0.36, atol=1e-6)
            assert abs((factors < 0).mean() - 0.5) < 0.05
            np.testing.assert_allclose(solarized, 0.6, atol=1e-6)
            assert set(bits) == {6}
        else:
            assert -0.99 <= factors.min() < -0.9 < 0.9 < factors.max() <= 0.99
            assert abs(factors.mean()) < 0.05
            assert len(set(solarized)) == MAGNITUDES
            assert set(bits) == {2, 3, 4, 5, 6, 7, 8}


def test_operations_on_colours_move_nothing() -> None:
    drawn = draw_policy(recipe(augment="trivialaugment"), uniform(0, np.arange(1000), 0, NUMBERS))
    moves = (drawn["operations"] > 0) & (drawn["operations"] < len(MOVES))
    still = (drawn["warps"] == np.array([1, 1j, 0], np.complex64)).all(-1)
    assert still[~moves].all()
    assert not still[moves].all()
