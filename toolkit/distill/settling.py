"""Running statistics of batch norms that settle within the first epoch, as the validation after it uses them.

They begin at mean 0 and variance 1, and each step replaces a share of them, the momentum. Most networks have 0.1.
MNASNet has 0.0003, for a training of millions of steps: after 1,000 steps its statistics would still be mostly the
initial ones. Through 50 layers its answers would then be off by dozens of orders of magnitude, or not finite.
"""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

LEFT = 0.01
"""of the initial statistics after the first epoch, if a momentum has to be raised"""
LARGEST = 0.1
"""torch's own momentum; a larger one would leave too few images in the statistics"""


def settle_in_time(network: nn.Module, steps: int) -> None:
    """Raise each momentum with which the initial statistics would outweigh all batches of an epoch of `steps` steps."""
    enough = min(LARGEST, 1 - LEFT ** (1 / steps))
    for module in network.modules():
        if isinstance(module, _BatchNorm) and module.momentum is not None and (1 - module.momentum) ** steps > 0.5:
            module.momentum = max(module.momentum, enough)


def has_statistics(network: nn.Module) -> bool:
    """Whether its answers in evaluation depend on running statistics."""
    return any(isinstance(module, _BatchNorm) and module.running_var is not None for module in network.modules())
