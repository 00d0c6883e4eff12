"""A training on noise by the engine itself, and the demands of its steps on a GPU."""

import math
from types import SimpleNamespace

import pytest
from conftest import DEVICES
from torch._C._autograd import DeviceType

from toolkit.distill.rehearsal import Launches, Rehearsal

MOST_KERNELS = {"live": 400, "stored": 300}
"""a step; reckoned from the operators that a step calls: some 365 and 270 when each launched its own"""


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("live", [True, False])
def test_it_trains_and_reports_its_speed(device: str, live: bool) -> None:
    rehearsal = Rehearsal(device, 32, 8, 3, live=live, settings=("data.rotation_degrees=15.0",))
    lines = rehearsal.train(2)
    assert [line["epoch"] for line in lines] == [0, 1]
    assert all(math.isfinite(line["train_loss"]) for line in lines)
    assert lines[0]["image_size"] == 32
    assert len(rehearsal._pixels) == 3 * 8
    assert rehearsal._pixels.data.nbytes == 24 * 36 * 36 * 3
    assert rehearsal.images_per_second() > 0


def test_the_first_epoch_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = [{"train_img_s": speed} for speed in (900.0, 500.0, 600.0)]
    monkeypatch.setattr(Rehearsal, "train", lambda self, epochs: speeds[:epochs])
    assert Rehearsal("cpu", 32, 8, 1).images_per_second() == 600.0


def test_images_are_noise_that_repeats() -> None:
    pixels = Rehearsal("cpu", 32, 50, 2)._pixels
    images = pixels.data.reshape(100, -1)
    assert (images[0] == images[64]).all()
    assert (images[0] != images[1]).mean() > 0.9


def test_a_step_is_the_difference_of_a_long_and_a_short_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """The launches of the beginning, the end and the validation are in both."""
    monkeypatch.setattr(
        Rehearsal, "_profile", lambda self: Launches(1000 + 270 * self.steps, 7 + 2 * self.steps, 5 + self.steps / 20)
    )
    assert Rehearsal("cuda:0", 32, 8, 20).count_launches() == Launches(270, 2, 0.05)


def test_nothing_is_counted_on_a_cpu_or_without_a_profiling_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rehearsal, "_profile", lambda self: Launches(0, 0, 0))
    assert Rehearsal("cpu", 32, 8, 20).count_launches() is None
    assert Rehearsal("cuda:0", 32, 8, 20).count_launches() is None


def test_kernels_and_copies_are_distinguished() -> None:
    names = [
        *("sm90_xmma_fprop", "void at::native::vectorized_elementwise_kernel", "Memset (Device)"),
        *("Memcpy HtoD (Pageable -> Device)", "Memcpy HtoD (Pinned -> Device)", "Memcpy DtoH (Device -> Pageable)"),
        "Memcpy DtoD (Device -> Device)",
    ]
    gpu = DeviceType(DeviceType.CUDA.value)  # equal to DeviceType.CUDA and another object, as a profiler's are
    events = [SimpleNamespace(name=name, device_type=gpu, is_user_annotation=False) for name in names]
    events.append(SimpleNamespace(name="Optimizer.step#SGD.step", device_type=gpu, is_user_annotation=True))
    events.append(SimpleNamespace(name="aten::mm", device_type=DeviceType.CPU, is_user_annotation=False))
    assert Launches.among(events) == Launches(kernels=2, sent=2, read=1)


@pytest.mark.gpu
@pytest.mark.parametrize("how", ["live", "stored"])
def test_a_step_on_a_gpu_launches_few_kernels_sends_little_and_reads_nothing_back(how: str) -> None:
    launches = Rehearsal("cuda:0", 64, 16, 20, live=how == "live").count_launches()
    assert launches is not None, "CUDA's profiling interface shows nothing"
    assert 0 < launches.kernels <= MOST_KERNELS[how]
    assert launches.sent <= 2.1
    assert launches.read <= 0.2, "the sums of 20 steps are read at once"
