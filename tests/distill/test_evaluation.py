"""A split's logits: the same for any amount of memory, and one line if nothing fits."""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distill_samples import load_splits
from test_step import OUT_OF_MEMORY
from torch import Tensor, nn

from toolkit.data.host_crops import CentreCrops
from toolkit.data.pixels import Pixels
from toolkit.data.resident import ResidentPixels
from toolkit.distill import evaluation
from toolkit.distill.evaluation import compute_logits, require_finite
from toolkit.errors import TrainingError, WeightsError
from toolkit.networks.classifier import Classifier


class Greedy(nn.Module):
    """Mean colours; has memory for `most` images at once."""

    def __init__(self, most: int, where: str) -> None:
        super().__init__()
        self.most, self.where = most, where
        self.sizes: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        if len(images) > self.most:
            raise OUT_OF_MEMORY[self.where]()
        self.sizes.append(len(images))
        return images.mean((2, 3))


@pytest.mark.parametrize("where", list(OUT_OF_MEMORY))
def test_smaller_batches_are_tried_if_memory_runs_out(
    where: str, class_folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = load_splits(class_folders)[1]
    plenty, little = Greedy(250, where), Greedy(3, where)
    logits = [
        compute_logits(Classifier(network, (0.5,) * 3, (0.5,) * 3), pixels, "fp32", "cpu")
        for network in (plenty, little)
    ]
    assert plenty.sizes == [12]
    assert little.sizes == [3, 3, 3, 3]
    assert torch.equal(*logits)
    assert "out of memory: validating 3 images at a time" in capsys.readouterr().err


def test_one_image_too_many(class_folders: Path) -> None:
    network = Classifier(Greedy(0, "cpu"), (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(TrainingError, match="validation: out of memory with one image at a time; use a smaller data"):
        compute_logits(network, load_splits(class_folders)[1], "fp32", "cpu")


def test_other_errors_are_bugs(class_folders: Path) -> None:
    class Broken(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        compute_logits(Classifier(Broken(), (0.5,) * 3, (0.5,) * 3), load_splits(class_folders)[1], "fp32", "cpu")


def test_on_a_gpu_images_are_cut_where_they_lie_and_batches_are_larger(
    class_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The meta device stands for the GPU."""
    pixels, network = load_splits(class_folders)[1], Greedy(5000, "gpu")
    monkeypatch.setattr(ResidentPixels, "where_it_fits", classmethod(lambda cls, pixels, device: cls(pixels, device)))
    monkeypatch.setattr(Pixels, "centre", lambda *_: pytest.fail("cut on the host"))
    many = np.tile(np.arange(len(pixels)), 100)
    batch_size = min(evaluation.GPU_LARGEST_BATCH, evaluation.GPU_BATCH_PIXELS // 32**2)
    classifier = Classifier(network, (0.5,) * 3, (0.5,) * 3).to("meta")
    monkeypatch.setattr(evaluation.distributed, "own_share", lambda _: many)
    monkeypatch.setattr(evaluation, "autocast", lambda device, precision: contextlib.nullcontext())
    assert compute_logits(classifier, pixels, "fp32", "meta").device.type == "meta"
    assert network.sizes == [batch_size, len(many) - batch_size]


def test_if_a_gpu_has_no_room_the_next_batch_is_cut_while_it_computes(
    class_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The views come from the host's memory, to the bit those of the CPU."""
    pixels = load_splits(class_folders)[1]
    begun: list[bytes] = []
    begin = CentreCrops._begin

    def note(self: CentreCrops, indices: np.ndarray, view: int) -> Any:
        begun.append(indices.tobytes())
        return begin(self, indices, view)

    monkeypatch.setattr(CentreCrops, "_begin", note)
    monkeypatch.setattr(ResidentPixels, "where_it_fits", lambda *_: None)
    chosen = list(evaluation.batches(np.arange(len(pixels)), 5, 1))
    expected = list(evaluation._evaluation_views(pixels, chosen, "cpu"))
    assert begun == []
    # "cpu:0" is the CPU, and not the CPU's way
    for number, images in enumerate(evaluation._evaluation_views(pixels, chosen, "cpu:0")):
        assert torch.equal(images, expected[number])
        assert begun == [batch.tobytes() for batch in chosen[: number + 2]], "one ahead, and each once"
    assert len(begun) == 3


def test_a_teacher_s_answers_have_to_be_finite() -> None:
    logits = torch.zeros(3, 2)
    require_finite(logits, ("a", "b", "c"))
    for value in (float("nan"), float("inf"), -float("inf")):
        logits[1, 1] = value
        with pytest.raises(WeightsError, match="the teacher answers b with values that are not finite"):
            require_finite(logits, ("a", "b", "c"))
