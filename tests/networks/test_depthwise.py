"""The depthwise student: layout, widths, and the way back from a state dict to its settings."""

import importlib.util

import pytest
import torch
from conftest import shared

from toolkit.errors import WeightsError
from toolkit.networks.depthwise import DepthwiseStudent, block_widths, infer_student
from toolkit.networks.registry import build, count_parameters


def test_parameters_of_the_notebook() -> None:
    assert count_parameters(DepthwiseStudent(11)) == 256_779
    assert count_parameters(DepthwiseStudent(10)) == 256_779 - 257


def test_state_dict_keys() -> None:
    batch_norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = {"cnn.0.0.weight", "cnn.0.0.bias", *(f"cnn.0.1.{name}" for name in batch_norm)}
    for block in range(1, 8):
        expected |= {f"cnn.{block}.{layer}.{name}" for layer in (0, 3) for name in ("weight", "bias")}
        expected |= {f"cnn.{block}.1.{name}" for name in batch_norm}
    assert set(DepthwiseStudent(11).state_dict()) == expected | {"fc.0.weight", "fc.0.bias"}


def test_the_published_checkpoint_fits_and_answers_as_the_notebook_does() -> None:
    """Strict loading, and the logits of an independent statement of the notebook's network."""
    checkpoint = shared("data", "notebook", "student_custom_small.bin")
    spec = importlib.util.spec_from_file_location("notebook_loop", shared("measure", "notebook_loop.py"))
    assert spec is not None
    assert spec.loader is not None
    notebook_loop = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(notebook_loop)
    weights = torch.load(checkpoint, map_location="cpu", weights_only=True)
    ours, theirs = DepthwiseStudent(11).double().eval(), notebook_loop.Student(11).double().eval()
    ours.load_state_dict(weights, strict=True)
    theirs.load_state_dict(weights, strict=True)
    images = torch.rand(2, 3, 80, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(ours(images), theirs(images), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("base", "width_mult", "widths"),
    [
        (16, 1.0, (16, 32, 64, 128, 256, 256, 256, 256)),
        (16, 0.5, (16, 16, 32, 64, 128, 128, 128, 256)),
        (3, 0.25, (3, 2, 3, 6, 12, 12, 12, 48)),  # 6 · 0.25 = 1.5: halves go up
        (1, 0.1, (1, 1, 1, 1, 2, 2, 2, 16)),  # 1.6 → 2; never less than 1
        (8, 2.0, (8, 32, 64, 128, 256, 256, 256, 128)),
    ],
)
def test_widths(base: int, width_mult: float, widths: tuple[int, ...]) -> None:
    assert block_widths(base, width_mult) == widths
    student = DepthwiseStudent(5, base=base, width_mult=width_mult)
    assert student(torch.rand(2, 3, 16, 16)).shape == (2, 5)


@pytest.mark.parametrize("base", [1, 3, 8, 16])
@pytest.mark.parametrize("width_mult", [0.07, 0.25, 0.333, 0.5, 0.75, 1.0, 1.5, 2.125])
def test_settings_are_found_again(base: int, width_mult: float) -> None:
    with torch.device("meta"):
        weights = DepthwiseStudent(7, base=base, width_mult=width_mult).state_dict()
    num_classes, found_base, found_mult = infer_student(weights)
    assert (num_classes, found_base) == (7, base)
    assert block_widths(base, found_mult) == block_widths(base, width_mult)


def test_found_settings_are_the_plain_ones() -> None:
    for width_mult in (0.25, 0.5, 0.75, 1.0, 1.5):
        assert infer_student(DepthwiseStudent(3, base=16, width_mult=width_mult).state_dict()) == (3, 16, width_mult)


def test_other_networks_are_not_taken_for_students() -> None:
    with pytest.raises(WeightsError, match=r"not the weights of a depthwise student: there is no convolution cnn\.0"):
        infer_student(build("squeezenet1_1", 3).state_dict())
    weights = DepthwiseStudent(3, base=2).state_dict()
    with pytest.raises(WeightsError, match=r"there is no linear layer fc\.0"):
        infer_student({name: value for name, value in weights.items() if not name.startswith("fc.")})
    weights["cnn.3.3.weight"] = torch.zeros(5, 8, 1, 1)
    with pytest.raises(WeightsError, match=r"the widths \(2, 4, 8, 5, .*\) are not multiples of base 2"):
        infer_student(weights)
