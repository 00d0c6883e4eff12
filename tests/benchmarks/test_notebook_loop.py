"""The yardstick: the notebook's loop, by itself and as distill_speed.py drives it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from toolkit.networks.depthwise import DepthwiseStudent

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_its_student_answers_as_the_toolkit_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from notebook_loop import build_student

    ours, theirs = DepthwiseStudent(5).double().eval(), build_student(5).double().eval()
    assert [type(layer).__name__ for layer in theirs.cnn[0]] == ["Conv2d", "BatchNorm2d", "ReLU6", "MaxPool2d"]
    for network in (ours, theirs):  # of the first block the convolution and the norm have weights
        block = network.cnn[0]
        torch.manual_seed(0)
        torch.nn.init.normal_(block[0].weight)
        torch.nn.init.normal_(block[1].weight)
    theirs.cnn[1:].load_state_dict(ours.cnn[1:].state_dict())
    theirs.fc.load_state_dict(ours.fc.state_dict())
    theirs.cnn[0][0].bias.data.copy_(ours.cnn[0][0].bias)
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(ours(images), theirs(images))


@pytest.mark.slow
def test_an_epoch_for_every_line_that_it_reads(class_folders: Path) -> None:
    flags = ["--data", str(class_folders), "--size", "32", "--images", "8", "--epochs", "3", "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "notebook_loop.py"), *flags, "--wait"],
        input="\n\n",
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    epochs = [json.loads(line) for line in done.stdout.splitlines()]
    assert [epoch["epoch"] for epoch in epochs] == [0, 1]
    assert all(epoch["train_img_s"] > 0 for epoch in epochs)
