"""Optimiser, learning-rate schedule and averaged weights, all torch's own, from the recipe's settings."""

import math

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from toolkit.recipe import TrainingRecipe

MOMENTUM = 0.9


def make_optimizer(network: nn.Module, section: TrainingRecipe) -> torch.optim.Optimizer:
    """AdamW, or SGD with Nesterov's momentum, in torch's fused form, over all parameters of `network`.

    The momentum, and AdamW's β1, is 0.9 but under `one-cycle`, which moves it too: see make_scheduler.
    """
    parameters, rate, decay = network.parameters(), section.learning_rate, section.weight_decay
    if section.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=True)
    return torch.optim.SGD(parameters, lr=rate, momentum=MOMENTUM, nesterov=True, weight_decay=decay, fused=True)


def make_scheduler(optimizer: torch.optim.Optimizer, section: TrainingRecipe, steps: int) -> LRScheduler:
    """A schedule over `steps` optimiser steps, stepped after each.

    `one-cycle` climbs to the peak in the first `warm_up` share and falls by a cosine to nearly 0 (Smith & Topin 2018,
    arXiv:1708.07120); `cosine` and `constant` climb in a straight line, then fall by a cosine to 0 or stay.

    `one-cycle` moves the momentum, or AdamW's β1, against the learning rate, as the paper and torch's OneCycleLR have
    it: from 0.95 to 0.85 at the peak and back. Both are Python numbers in the optimiser's groups, set anew after each
    step: a CUDA graph of a step would keep those that it was captured with.
    """
    if section.schedule == "one-cycle":
        steps = max(steps, 2)
        # torch divides by zero where exactly one step climbs
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


def make_average(network: nn.Module, section: TrainingRecipe) -> AveragedModel | None:
    """The exponential moving average of weights and batch statistics, None where the recipe asks for none."""
    if section.ema == 0:
        return None
    average_of = get_ema_multi_avg_fn(section.ema)  # type: ignore[no-untyped-call]
    average = AveragedModel(network, multi_avg_fn=average_of, use_buffers=True)
    return average.requires_grad_(False)
