"""The optimiser's step as a function of tensors: its learning rate and momentum come from a table on the GPU.

torch's fused optimisers take the momentum, and AdamW's β1, as numbers of the host, and a CUDA graph would keep those
that it was captured with. `one-cycle` moves them with every step. So what they compute is written here once more, in
torch's operations over all parameters at once. State and groups stay those of torch's optimiser.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Rates = Sequence[tuple[float, float]]
"""Learning rate, and momentum or AdamW's β1, of every step of a training."""


class DeviceUpdate:
    """Steps of `optimizer`, SGD with Nesterov's momentum or AdamW with one group, by `rates`; the host takes no part.

    All steps of a training must be taken here: which one comes next is counted on `device`.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, rates: Rates, device: str) -> None:
        self._optimizer = optimizer
        self._is_adamw = isinstance(optimizer, torch.optim.AdamW)
        factors = _adamw_factors(optimizer.param_groups[0], rates) if self._is_adamw else rates
        self._table = torch.tensor(factors, dtype=torch.float32, device=device)
        self._taken = torch.zeros(1, dtype=torch.int64, device=device)
        # without gradients it does nothing, but torch's schedules warn if it was never called
        optimizer.zero_grad()
        optimizer.step()

    def seek(self, taken: int) -> None:
        """Go on after so many steps."""
        self._taken.fill_(taken)

    @torch.no_grad()
    def step(self) -> None:
        """Update the parameters by their gradients and drop these: a graph's memory is then free for the next ones."""
        factors = self._table.index_select(0, self._taken)[0].unbind()
        self._taken.add_(1)
        parameters = [values for values in self._optimizer.param_groups[0]["params"] if values.grad is not None]
        gradients = [values.grad for values in parameters]
        (self._step_adamw if self._is_adamw else self._step_sgd)(parameters, gradients, factors)
        self._optimizer.zero_grad()

    def _step_sgd(self, parameters: list[Tensor], gradients: list[Tensor], factors: Sequence[Tensor]) -> None:
        rate, momentum = factors
        buffers = self._state(parameters, "momentum_buffer")
        if decay := self._optimizer.param_groups[0]["weight_decay"]:
            gradients = list(torch._foreach_add(gradients, parameters, alpha=decay))
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, gradients)
        changes = torch._foreach_mul(buffers, momentum)
        torch._foreach_add_(changes, gradients)
        torch._foreach_mul_(changes, rate)
        torch._foreach_sub_(parameters, changes)

    def _step_adamw(self, parameters: list[Tensor], gradients: list[Tensor], factors: Sequence[Tensor]) -> None:
        kept, beta1, rest1, rate, root = factors
        group = self._optimizer.param_groups[0]
        beta2 = group["betas"][1]
        steps, means, squares = (self._state(parameters, name) for name in ("step", "exp_avg", "exp_avg_sq"))
        torch._foreach_add_(steps, 1)
        torch._foreach_mul_(parameters, kept)
        torch._foreach_mul_(means, beta1)
        torch._foreach_add_(means, torch._foreach_mul(gradients, rest1))
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        divisors = torch._foreach_sqrt(squares)
        torch._foreach_div_(divisors, root)
        torch._foreach_add_(divisors, group["eps"])
        changes = torch._foreach_div(means, divisors)
        torch._foreach_mul_(changes, rate)
        torch._foreach_sub_(parameters, changes)

    def _state(self, parameters: list[Tensor], name: str) -> list[Tensor]:
        """The state that torch's optimiser keeps of each parameter under `name`; zeros before the first step."""
        states = [self._optimizer.state[values] for values in parameters]
        for state, values in zip(states, parameters, strict=True):
            if name not in state:
                state[name] = torch.zeros((), device=values.device) if name == "step" else torch.zeros_like(values)
        return [state[name] for state in states]


def _adamw_factors(group: dict[str, Any], rates: Rates) -> list[tuple[float, ...]]:
    """The factors and divisors of AdamW at every step: they follow from the rates and the step's number."""
    decay, (_, beta2) = group["weight_decay"], group["betas"]
    return [
        (1 - rate * decay, beta1, 1 - beta1, rate / (1 - beta1**step), math.sqrt(1 - beta2**step))
        for step, (rate, beta1) in enumerate(rates, start=1)
    ]
