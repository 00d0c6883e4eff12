"""Optimiser, learning-rate schedule and averaged weights, all torch's own, from the recipe's settings."""

import math
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from toolkit.distill.device_update import DeviceUpdate, Rates
from toolkit.distill.features import TappedNetwork
from toolkit.settings import StageRecipe

MOMENTUM = 0.9


@dataclass
class Optimization:
    """The use of a network's gradients: a step of the optimiser, of the schedule, and of the average if there is one.

    `network`, without projectors, is averaged. `steps` is the number of all steps.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler
    average: AveragedModel | None = None
    steps: int = 0
    on_device: DeviceUpdate | None = None
    """takes the optimiser's steps if CUDA graphs hold them"""

    @classmethod
    def of(cls, learner: TappedNetwork, section: StageRecipe, steps: int) -> Self:
        """The optimization of `learner` by the settings of `section`, for `steps` steps in all."""
        network = learner.classifier.network
        optimizer = make_optimizer(learner, section)
        return cls(network, optimizer, make_scheduler(optimizer, section, steps), make_average(network, section), steps)

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def shipped(self) -> nn.Module:
        """The network whose weights are kept: the average, or else what was trained."""
        shipped: nn.Module = self.average.module if self.average else self.network
        return shipped

    def tabulate(self, device: str, section: StageRecipe) -> None:
        """Before the first step: have all rates in a table on `device`, so that a CUDA graph can hold `update`."""
        self.on_device = DeviceUpdate(self.optimizer, make_rates(section, self.steps), device)

    def step(self) -> None:
        """Take one step by the gradients in the parameters."""
        self.update()
        self.count()

    def update(self) -> None:
        """The device's part of a step: weights, their average, and the optimiser's state."""
        (self.on_device or self.optimizer).step()
        if self.average is not None:
            update_average(self.average, self.network)

    def count(self) -> None:
        """The host's part of a step: the counts of the schedule and of the average."""
        if self.average is not None:
            self.average.n_averaged += 1
        self.scheduler.step()

    def restore(self, optimizer: dict[str, Any], scheduler: dict[str, Any], average: dict[str, Any] | None) -> None:
        """Go on from a checkpoint's states."""
        self.optimizer.load_state_dict(optimizer)
        self.scheduler.load_state_dict(scheduler)
        if self.average and average:
            self.average.load_state_dict(average)
        if self.on_device:
            self.on_device.seek(self.scheduler.last_epoch)


def make_optimizer(network: nn.Module, section: StageRecipe) -> torch.optim.Optimizer:
    """AdamW, or SGD with Nesterov's momentum, in torch's fused form, over all parameters of `network`.

    The momentum, and AdamW's β1, is 0.9, except under `one-cycle`, which moves it too: see make_scheduler.
    """
    parameters, rate, decay = network.parameters(), section.learning_rate, section.weight_decay
    if section.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=True)
    return torch.optim.SGD(parameters, lr=rate, momentum=MOMENTUM, nesterov=True, weight_decay=decay, fused=True)


def make_scheduler(optimizer: torch.optim.Optimizer, section: StageRecipe, steps: int) -> LRScheduler:
    """A schedule over `steps` optimiser steps, stepped after each.

    `one-cycle` climbs to the peak in the first `warm_up` share and falls by a cosine to nearly 0 (Smith & Topin 2018,
    arXiv:1708.07120); `cosine` and `constant` climb in a straight line, then fall by a cosine to 0 or stay.

    `one-cycle` moves the momentum, or AdamW's β1, against the learning rate, as the paper and torch's OneCycleLR have
    it: from 0.95 to 0.85 at the peak and back. Both are Python numbers in the optimiser's groups, set again after each
    step. A CUDA graph of a step would keep those that it was captured with, so it reads a table instead (make_rates).
    """
    if section.schedule == "one-cycle":
        steps = max(steps, 2)
        # torch divides by zero if exactly one step climbs
        share = 0.0 if math.isclose(section.warm_up * steps, 1) else section.warm_up
        return OneCycleLR(optimizer, max_lr=section.learning_rate, total_steps=steps, pct_start=share)
    warm_up = round(section.warm_up * steps)

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / (warm_up + 1)
        if section.schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(steps - warm_up, 1)))

    return LambdaLR(optimizer, factor)


def make_rates(section: StageRecipe, steps: int) -> Rates:
    """The values that the schedule sets at each of `steps` steps, all computed in advance."""
    optimizer = make_optimizer(nn.ParameterList([torch.zeros(1)]), section)  # draws nothing at random
    scheduler = make_scheduler(optimizer, section, steps)
    optimizer.step()  # without gradients; the schedule warns if it was never called
    group, rates = optimizer.param_groups[0], []
    for _ in range(steps):
        rates.append((group["lr"], group["betas"][0] if "betas" in group else group["momentum"]))
        scheduler.step()
    return rates


def make_average(network: nn.Module, section: StageRecipe) -> AveragedModel | None:
    """The exponential moving average of weights and batch statistics; None if the recipe asks for none."""
    if section.ema == 0:
        return None
    average_of = get_ema_multi_avg_fn(section.ema)  # type: ignore[no-untyped-call]
    average = AveragedModel(network, multi_avg_fn=average_of, use_buffers=True)
    return average.requires_grad_(False)


@torch.no_grad()
def update_average(average: AveragedModel, network: nn.Module) -> None:
    """`average.update_parameters(network)` but for its count, for which a GPU would wait at every step."""
    own, other = ([*module.parameters(), *module.buffers()] for module in (average.module, network))
    if not average.n_averaged:
        for values, new in zip(own, other, strict=True):
            values.copy_(new)
        return
    assert average.multi_avg_fn is not None
    for dtype in {values.dtype for values in own}:
        alike = [number for number, values in enumerate(own) if values.dtype == dtype]
        average.multi_avg_fn([own[i] for i in alike], [other[i].detach() for i in alike], average.n_averaged)
