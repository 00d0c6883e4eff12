"""Why a training stopped at a value that is not finite, as far as it can be known, and what to do about it."""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from toolkit.distill.plan import Plan
from toolkit.distill.settling import has_statistics
from toolkit.errors import TrainingError
from toolkit.settings import Optimizer

LOW: dict[Optimizer, float] = {"sgd": 0.01, "adamw": 3e-4}
"""learning rates below which a lower one alone hardly helps"""


@dataclass(frozen=True)
class Breakdown:
    """`what` is not finite after `step` of `epoch` (both from 1), which had that learning rate. `kept` says what is
    saved."""

    what: Literal["loss", "validation loss", "weight"]
    epoch: int
    step: int
    rate: float
    kept: str

    @property
    def is_first(self) -> bool:
        """Whether no weight had changed yet."""
        return self.what == "loss" and (self.epoch, self.step) == (1, 1)


def explain(found: Breakdown, network: nn.Module, plan: Plan) -> TrainingError:
    """The error for `found`, with the remedy that fits; `network` is the one in training."""
    section, highest = plan.section, plan.section.learning_rate
    rate = f"{found.rate:.3g}" if found.rate >= highest else f"{found.rate:.3g}, {highest:.3g} at its peak"
    problem = f"{plan.role}: the {found.what} is not finite at epoch {found.epoch}, step {found.step}"
    if found.is_first:
        return TrainingError(
            f"{problem}, before any weight has changed; {found.kept}",
            f"no learning rate mends that: {_without_smaller_steps(plan)}; and see data.mean and data.std",
        )
    unsettled = found.what == "validation loss" and _is_sound(network) and has_statistics(network)
    reason = ", though its weights are: the running statistics of its batch norms have not settled" if unsettled else ""
    lower = min(found.rate, highest / 3)
    if lower < LOW[section.optimizer]:
        remedy = f"start over with --force; a lower learning rate alone may not do: {_without_smaller_steps(plan)}"
    else:
        other = "" if plan.precision == "fp32" else " or training.precision=fp32"
        remedy = f"start over with --force and {plan.section_name}.learning_rate={lower:.2g}{other and ',' + other}"
    return TrainingError(f"{problem} (learning rate {rate}){reason}; {found.kept}", remedy)


def _without_smaller_steps(plan: Plan) -> str:
    """What is left to try, in the arithmetic of `plan`."""
    network = "teacher" if plan.role == "teacher" else "student"
    size = "teacher.image_size" if plan.role == "teacher" else "data.image_size"
    precise = "" if plan.precision == "fp32" else "use training.precision=fp32, "
    return (
        f"{precise or 'use '}another {network}.architecture, images larger than {plan.image_size} px ({size}) or"
        f" batches larger than {plan.section.batch_size} ({plan.section_name}.batch_size)"
    )


def _is_sound(network: nn.Module) -> bool:
    return all(bool(parameter.isfinite().all()) for parameter in network.parameters())
