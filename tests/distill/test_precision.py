"""fp32 or bfloat16: the clock decides, and the network comes out as it went in."""

from collections.abc import Callable

import pytest
import torch

from toolkit.distill.precision import autocast, choose_precision, has_fast_bf16
from toolkit.networks.classifier import Classifier
from toolkit.networks.student import DepthwiseStudent


def network() -> Classifier:
    torch.manual_seed(0)
    return Classifier(DepthwiseStudent(3, base=4), (0.5,) * 3, (0.5,) * 3)


def clock_of(fp32_s: float, bf16_s: float) -> Callable[[], float]:
    """A clock on which every fp32 step takes `fp32_s` and every bf16 step `bf16_s`; fp32 comes first in each round."""
    now, calls = 0.0, 0

    def clock() -> float:
        nonlocal now, calls
        if calls % 2:
            now += (fp32_s, bf16_s)[calls // 2 % 2]
        calls += 1
        return now

    return clock


@pytest.mark.parametrize(("fp32_s", "bf16_s", "expected"), [(2.0, 1.0, "bf16"), (1.0, 2.0, "fp32")])
@pytest.mark.parametrize("training", [True, False])
def test_auto_takes_the_faster(
    fp32_s: float, bf16_s: float, expected: str, training: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = choose_precision("auto", network(), 4, 32, "cpu", training=training, clock=clock_of(fp32_s, bf16_s))
    assert chosen == expected
    told = capsys.readouterr().err
    assert f"{fp32_s * 1e3:.0f} ms in fp32, {bf16_s * 1e3:.0f} ms in bf16" in told


def test_a_wish_is_granted_without_timing() -> None:
    def never() -> float:
        raise AssertionError("nothing is to be timed")

    assert choose_precision("bf16", network(), 4, 32, "cpu", clock=never) == "bf16"


def test_the_network_is_left_as_it_was() -> None:
    subject = network()
    before = {name: value.clone() for name, value in subject.state_dict().items()}
    choose_precision("auto", subject, 4, 32, "cpu")
    assert all(torch.equal(before[name], value) for name, value in subject.state_dict().items())
    assert all(parameter.grad is None for parameter in subject.parameters())


def test_autocast_computes_in_the_precision_asked_for() -> None:
    layer, images = torch.nn.Conv2d(3, 2, 1), torch.rand(1, 3, 4, 4)
    with autocast("cpu", "bf16"):
        assert layer(images).dtype == torch.bfloat16
    with autocast("cpu", "fp32"):
        assert layer(images).dtype == torch.float32


@pytest.mark.parametrize("has_it", [True, False])
def test_a_cpu_has_bfloat16_where_onednn_has_instructions_for_it(monkeypatch: pytest.MonkeyPatch, has_it: bool) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has_it)
    assert has_fast_bf16("cpu") is has_it


@pytest.mark.parametrize("has_it", [True, False])
def test_a_gpu_that_only_emulates_bfloat16_does_not_count(monkeypatch: pytest.MonkeyPatch, has_it: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_it or including_emulation)
    assert has_fast_bf16("cuda:0") is has_it
