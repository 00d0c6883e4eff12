"""A peak that is found in time, and copies that nothing holds up."""

from functools import partial

import pytest
import torch
from torch import Tensor

from toolkit.distill.precision import FloatArithmetic
from toolkit.doctor import ceilings
from toolkit.doctor.ceilings import bus_bytes_s, copy_bytes_s, launch_seconds, least_seconds, product_flop_s
from toolkit.machine.devices import fp32_products_in


class Products:
    """Stands for matrix products: notes type and side, and moves its clock on by what each takes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, flop_s: float) -> None:
        self.now, self.flop_s = 0.0, flop_s
        self.made: list[tuple[torch.dtype, int]] = []
        monkeypatch.setattr(Tensor, "__matmul__", self)

    def __call__(self, other: Tensor) -> None:
        self.made.append((other.dtype, len(other)))
        self.now += 2 * len(other) ** 3 / self.flop_s


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> Products:
    return Products(monkeypatch, flop_s=1e11)


def test_the_peak_is_of_the_largest_products_that_there_is_time_for(products: Products) -> None:
    assert product_flop_s("cpu", "fp32", lambda: products.now) == pytest.approx(1e11)
    assert sorted({side for _, side in products.made}) == [256, 512, 1024, 2048]


def test_a_slow_device_is_not_asked_for_larger_products_than_it_has_time_for(products: Products) -> None:
    products.flop_s = 1e9
    assert product_flop_s("cpu", "fp32", lambda: products.now) == pytest.approx(1e9)
    assert {side for _, side in products.made} == {256, 512}
    assert products.now < ceilings.PEAK_SECONDS


@pytest.mark.parametrize(
    ("precision", "has_bf16", "dtype"),
    [
        ("bf16", True, torch.bfloat16),
        ("bf16", False, torch.float32),
        ("fp32", True, torch.float32),
    ],
)
def test_the_peak_is_of_the_arithmetic_that_training_used_if_the_device_has_it(
    products: Products, monkeypatch: pytest.MonkeyPatch, precision: FloatArithmetic, has_bf16: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(ceilings, "has_fast_bf16", lambda device: has_bf16)
    product_flop_s("cpu", precision, lambda: products.now)
    assert {kind for kind, _ in products.made} == {dtype}


def test_tf32_is_on_for_as_long_as_it_is_asked_for() -> None:
    before = torch.backends.cuda.matmul.fp32_precision
    with fp32_products_in("tf32"):
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    assert torch.backends.cuda.matmul.fp32_precision == before


class Copies:
    """Stands for a GPU: meta tensors have no bytes; notes the sizes of copies, and when the clock was looked at."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[int | str] = []
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: self.events.append("waited"))
        monkeypatch.setattr(Tensor, "copy_", self.copy)

    def copy(self, source: Tensor, non_blocking: bool = False) -> None:
        self.events.append(source.nbytes)


def test_a_gpus_copies_are_large_and_follow_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    copies = Copies(monkeypatch)
    assert copy_bytes_s("meta") > 0
    assert copies.events == ([2**30] * ceilings.QUEUED + ["waited"]) * (ceilings.RUNS + 1)


def test_the_cpus_copy_is_as_it_was() -> None:
    assert copy_bytes_s("cpu") > 0
    assert ceilings.COPY_BYTES["cpu"] == 2**28


def test_small_kernels_are_timed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that moves by 2 µs for a kernel, and by 50 µs while a GPU is waited for."""
    now, waits = [0.0], []

    def add(tensor: Tensor, other: int) -> None:
        now[0] += 2e-6

    def wait(device: str) -> None:
        now[0] += 5e-5
        waits.append(device)

    assert launch_seconds("cpu") > 0
    monkeypatch.setattr(Tensor, "add_", add)
    monkeypatch.setattr(torch.cuda, "synchronize", wait)
    monkeypatch.setattr(ceilings, "least_seconds", partial(least_seconds, clock=lambda: now[0]))
    assert launch_seconds("cpu") == pytest.approx(2e-6)
    assert waits == []
    assert launch_seconds("meta") == pytest.approx(2e-6 + 5e-5 / 500)
    assert waits == ["meta"] * (ceilings.RUNS + 1)


def test_the_way_from_the_host_is_timed_as_copies_that_follow_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    copies = Copies(monkeypatch)
    assert bus_bytes_s("meta", pinned=False) > 0
    assert copies.events == ([2**26] * ceilings.QUEUED + ["waited"]) * (ceilings.RUNS + 1)


@pytest.mark.gpu
def test_a_gpu_is_faster_at_all_of_it_than_a_cpu_may_be() -> None:
    assert copy_bytes_s("cuda:0") > bus_bytes_s("cuda:0", pinned=True) > 0
    assert bus_bytes_s("cuda:0", pinned=False) > 0
    with fp32_products_in("tf32"):
        tf32 = product_flop_s("cuda:0", "fp32")
    assert min(tf32, product_flop_s("cuda:0", "bf16")) > 1e11
    assert launch_seconds("cuda:0") < 1e-3
