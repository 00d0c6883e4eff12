"""The line for a loss that is not finite can be followed: it names what has not been tried."""

from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from distill_samples import make_plan
from torch import nn

from toolkit.distill.not_finite import Breakdown, explain
from toolkit.distill.precision import Arithmetic

PLAIN = nn.Sequential(nn.Flatten(), nn.Linear(3, 3))
NORMED = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 3))
What = Literal["loss", "validation loss", "weight"]


def line(
    what: What = "loss",
    step: int = 3,
    rate: float = 0.1,
    network: nn.Module = PLAIN,
    precision: Arithmetic = "fp32",
    **settings: Any,
) -> str:
    plan = replace(make_plan(**{"learning_rate": 0.1, "role": "student"} | settings), precision=precision)
    text = str(explain(Breakdown(what, 1, step, rate, "no state was saved yet"), network, plan))
    assert "\n" not in text
    return text


def test_a_third_of_the_learning_rate_comes_first() -> None:
    assert line() == (
        "student: the loss is not finite at epoch 1, step 3 (learning rate 0.1); no state was saved yet;"
        " start over with --force and distill.learning_rate=0.033"
    )


def test_a_teacher_s_is_its_own() -> None:
    assert line(role="teacher").endswith("--force and teacher.learning_rate=0.033")
    low = line(role="teacher", rate=0.001, learning_rate=0.001)
    assert "another teacher.architecture, images larger than 32 px (teacher.image_size) or" in low
    assert low.endswith("(teacher.batch_size)")


def test_fp32_is_offered_to_those_who_do_not_have_it() -> None:
    assert line(precision="bf16").endswith("distill.learning_rate=0.033, or training.precision=fp32")
    assert "use training.precision=fp32, another student.architecture" in line(precision="bf16", step=1)
    for given in ({}, {"step": 1}, {"rate": 0.001, "learning_rate": 0.001}):
        assert "fp32" not in line(**given)


def test_in_a_warm_up_the_peak_is_named_and_the_advice_is_below_what_failed() -> None:
    text = line(rate=0.02)
    assert "(learning rate 0.02, 0.1 at its peak)" in text
    assert text.endswith("distill.learning_rate=0.02")


@pytest.mark.parametrize(("optimizer", "rounds"), [("sgd", 3), ("adamw", 6)])
def test_who_follows_the_line_again_and_again_comes_to_another_cause(optimizer: str, rounds: int) -> None:
    rate, texts = 0.1, []
    while "learning_rate=" in (text := line(rate=rate, learning_rate=rate, optimizer=optimizer)):
        texts.append(text)
        rate = float(text.rpartition("learning_rate=")[2])
    assert len(texts) < rounds
    assert text.endswith(
        "start over with --force; a lower learning rate alone may not do: use another student.architecture, images"
        " larger than 32 px (data.image_size) or batches larger than 6 (distill.batch_size)"
    )


def test_before_the_first_update_no_learning_rate_is_to_blame() -> None:
    text = line(step=1, rate=0.004)
    assert "the loss is not finite at epoch 1, step 1, before any weight has changed; no state" in text
    assert "no learning rate mends that: use another student.architecture, images larger than 32 px" in text


def test_statistics_that_lag_behind_sound_weights_are_named() -> None:
    text = line("validation loss", network=NORMED)
    assert "though its weights are: the running statistics of its batch norms have not settled; no state" in text
    assert text.endswith("distill.learning_rate=0.033")
    assert "statistics" not in line("validation loss")
    assert "statistics" not in line("weight", network=NORMED)
    broken = nn.Sequential(nn.BatchNorm2d(3), nn.Linear(1, 1))
    with torch.no_grad():
        broken[1].weight.fill_(float("inf"))
    assert "statistics" not in line("validation loss", network=broken)
