"""fp32 or bfloat16: the clock decides, and the network comes out as it went in."""

from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from toolkit.distill import precision
from toolkit.distill.precision import (
    CHOICE_S,
    NetworkStep,
    autocast,
    choose_precision,
    has_fast_bf16,
    has_tf32_convolutions,
    least_times,
    step_seconds,
)
from toolkit.networks.classifier import Classifier
from toolkit.networks.depthwise import DepthwiseStudent


def network() -> Classifier:
    torch.manual_seed(0)
    return Classifier(DepthwiseStudent(3, base=4), (0.5,) * 3, (0.5,) * 3)


@pytest.fixture(autouse=True)
def _nothing_is_known_yet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    precision.forget()
    monkeypatch.setattr(precision, "has_fast_bf16", lambda device: True)
    yield
    precision.forget()


class Steps:
    """Steps on which a clock of their own goes on by so many s per image; `calls` are (name, images)."""

    def __init__(self, **image_s: float) -> None:
        self.now, self.image_s, self.calls = 0.0, image_s, list[tuple[str, int]]()

    def clock(self) -> float:
        return self.now

    def works(self) -> dict[str, Callable[[int], object]]:
        return {name: partial(self.take, name) for name in self.image_s}

    def take(self, name: str, images: int) -> None:
        self.calls.append((name, images))
        self.now += images * self.image_s[name]

    def stand_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let them be the steps that choose_precision takes."""
        monkeypatch.setattr(NetworkStep, "take", lambda step, views, choice: self.take(choice, len(views)))


@pytest.mark.parametrize(("fp32_s", "bf16_s", "expected"), [(0.02, 0.015, "bf16"), (0.01, 0.015, "fp32")])
@pytest.mark.parametrize("training", [True, False])
def test_auto_takes_the_faster(
    fp32_s: float,
    bf16_s: float,
    expected: str,
    training: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps = Steps(fp32=fp32_s, bf16=bf16_s)
    steps.stand_for(monkeypatch)
    chosen = choose_precision("auto", NetworkStep(network(), 4, 32, "cpu", training), clock=steps.clock)
    assert chosen == expected
    assert f"{fp32_s * 1e3:.3g} ms in fp32, {bf16_s * 1e3:.3g} ms in bf16" in capsys.readouterr().err
    assert steps.calls == [("fp32", 4), ("bf16", 4)] * (1 + precision.ROUNDS)


def test_bfloat16_is_not_tried_if_there_are_no_instructions_for_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(precision, "has_fast_bf16", lambda device: False)
    monkeypatch.setattr(NetworkStep, "take", never)
    for training in (True, False):
        assert choose_precision("auto", NetworkStep(network(), 4, 32, "cpu", training)) == "fp32"
    assert capsys.readouterr().err == "precision: fp32, because the cpu has no instructions for bfloat16\n"


def test_a_candidate_is_given_up_after_one_call_on_few_images(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = Steps(fp32=0.1, bf16=1.5)
    steps.stand_for(monkeypatch)
    assert choose_precision("auto", NetworkStep(network(), 64, 256, "cpu"), clock=steps.clock) == "fp32"
    assert steps.calls == [("fp32", 2), ("bf16", 2)]
    assert "100 ms in fp32)" in capsys.readouterr().err


def test_the_first_one_is_given_up_too() -> None:
    steps = Steps(slow=1e-3, fast=1e-4)
    assert least_times(steps.works(), 2, 8, clock=steps.clock) == {"fast": pytest.approx(1e-4)}
    assert [name for name, _ in steps.calls] == ["slow", "fast"] * 2


def test_a_call_that_is_slow_by_chance_is_not_held_against_the_last_candidate() -> None:
    steps = Steps(a=0.001)
    works = {"a": lambda n: steps.take("a", n * (50 if len(steps.calls) == 2 else 1))}
    assert least_times(works, 2, 8, clock=steps.clock) == {"a": pytest.approx(0.001)}


def test_a_choice_is_remembered_for_the_same_network_size_batch_and_use(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = Steps(fp32=0.02, bf16=0.015)
    steps.stand_for(monkeypatch)
    for _ in range(2):
        assert choose_precision("auto", NetworkStep(network(), 4, 32, "cpu"), clock=steps.clock) == "bf16"
    assert capsys.readouterr().err.count("precision:") == 1
    asked = len(steps.calls)
    assert step_seconds(NetworkStep(network(), 4, 32, "cpu"), "bf16", clock=steps.clock) == pytest.approx(0.015)
    assert len(steps.calls) == asked, "the choice has measured that"
    wider = Classifier(DepthwiseStudent(3, base=8), (0.5,) * 3, (0.5,) * 3)
    for other in ((network(), 8, 32), (network(), 4, 48), (wider, 4, 32)):
        choose_precision("auto", NetworkStep(*other, "cpu"), clock=steps.clock)
        assert len(steps.calls) > asked
        asked = len(steps.calls)
    choose_precision("auto", NetworkStep(network(), 4, 32, "cpu", training=False), clock=steps.clock)
    assert len(steps.calls) > asked


def test_a_step_that_was_called_once_is_called_again_if_its_time_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(fp32=0.16, bf16=0.15)
    steps.stand_for(monkeypatch)
    assert choose_precision("auto", NetworkStep(network(), 8, 256, "cpu"), clock=steps.clock) == "bf16"
    assert steps.calls.count(("bf16", 8)) == 1
    steps.image_s["bf16"] = 0.1
    for _ in range(2):
        assert step_seconds(NetworkStep(network(), 8, 256, "cpu"), "bf16", clock=steps.clock) == pytest.approx(0.1)
    assert steps.calls[-4:] == [("bf16", 2), ("bf16", 8), ("bf16", 8), ("bf16", 8)]


class TestTime:
    def test_no_call_begins_after_a_few_seconds(self) -> None:
        steps = Steps(a=0.2, b=0.21)
        least_times(steps.works(), 2, 8, clock=steps.clock)
        longest = 8 * 0.21
        assert CHOICE_S <= steps.now < CHOICE_S + longest
        assert steps.calls == [("a", 2), ("b", 2), ("a", 8), ("b", 8)]

    def test_no_call_begins_after_two_percent_of_the_work(self) -> None:
        steps = Steps(a=0.001, b=0.001)
        least_times(steps.works(), 2, 8, images=1000, clock=steps.clock)
        assert sum(images for _, images in steps.calls) == 20 == 0.02 * 1000

    def test_if_almost_no_work_is_left_the_first_is_taken_untimed_against_others(self) -> None:
        steps = Steps(a=0.002, b=0.001)
        assert list(least_times(steps.works(), 2, 8, images=10, clock=steps.clock)) == ["a"]
        assert steps.calls == [("a", 2)]

    def test_cold_times_are_not_held_against_warm_ones(self) -> None:
        """`a` is timed on many images, for `b` there is no time: both are judged by their first tries."""
        steps = Steps(a=0.5, b=0.6)
        times = least_times(steps.works(), 2, 8, clock=steps.clock)
        assert times == {"a": pytest.approx(0.5), "b": pytest.approx(0.6)}
        assert steps.calls == [("a", 2), ("b", 2), ("a", 8)]


def never(*arguments: object) -> None:
    raise AssertionError("not to be called")


def test_a_wish_is_granted_without_timing() -> None:
    def never() -> float:
        raise AssertionError("nothing is to be timed")

    assert choose_precision("bf16", NetworkStep(network(), 4, 32, "cpu"), clock=never) == "bf16"


def test_the_network_is_left_as_it_was() -> None:
    subject = network()
    before = {name: value.clone() for name, value in subject.state_dict().items()}
    choose_precision("auto", NetworkStep(subject, 4, 32, "cpu"))
    step_seconds(NetworkStep(subject, 4, 48, "cpu"), "fp32")
    assert all(torch.equal(before[name], value) for name, value in subject.state_dict().items())
    assert all(parameter.grad is None for parameter in subject.parameters())


def test_autocast_computes_in_the_precision_asked_for() -> None:
    layer, images = torch.nn.Conv2d(3, 2, 1), torch.rand(1, 3, 4, 4)
    with autocast("cpu", "bf16"):
        assert layer(images).dtype == torch.bfloat16
    with autocast("cpu", "fp32"):
        assert layer(images).dtype == torch.float32


@pytest.mark.parametrize("has_it", [True, False])
def test_a_cpu_has_bfloat16_if_onednn_has_instructions_for_it(monkeypatch: pytest.MonkeyPatch, has_it: bool) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has_it)
    assert has_fast_bf16("cpu") is has_it


def test_a_gpu_that_only_emulates_bfloat16_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A T4 does; each GPU is asked for itself, not the first of them."""
    capabilities = {"cuda:0": (7, 5), "cuda:1": (8, 0)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capabilities[device])
    assert not has_fast_bf16("cuda:0")
    assert has_fast_bf16("cuda:1")


@pytest.mark.parametrize(
    ("capability", "setting", "expected"), [(9, "tf32", True), (8, "ieee", False), (7, "tf32", False)]
)
def test_convolutions_in_tf32_are_a_matter_of_the_gpu_and_of_cudnn_s_setting(
    capability: int, setting: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (capability, 0))
    monkeypatch.setattr(torch.backends.cudnn, "conv", SimpleNamespace(fp32_precision=setting))
    assert has_tf32_convolutions("cuda:0") == expected
    assert not has_tf32_convolutions("cpu")


def test_fp32_that_is_tf32_is_said_to_be(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(precision, "has_tf32_convolutions", lambda device: True)
    for _ in range(2):
        assert choose_precision("fp32", NetworkStep(network(), 8, 32, "cpu")) == "fp32"
    assert capsys.readouterr().err == "precision: fp32 with TF32 convolutions on cpu\n"
    for fp32_s, chosen in ((0.01, "fp32 with TF32 convolutions"), (0.03, "bf16")):
        precision.forget()
        steps = Steps(fp32=fp32_s, bf16=0.02)
        steps.stand_for(monkeypatch)
        choose_precision("auto", NetworkStep(network(), 8, 32, "cpu"), clock=steps.clock)
        said = capsys.readouterr().err
        assert said.startswith(f"precision: {chosen} to train DepthwiseStudent (an image takes ")
        assert " ms in fp32 with TF32 convolutions" in said
