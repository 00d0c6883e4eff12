"""Channels that were constant in training. A dead ReLU leaves such channels, above all at high learning rates.

Their variance is 0, so batch norm multiplies any difference from the running mean by 1/√ε (316). In training nothing
differs. But a constant that bfloat16 rounded, by up to 0.4 %, is another one in float32, fp16 or int8. One student lost
3.7 points of accuracy between the arithmetic that it was trained in and the one that it ships in.
"""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from toolkit.distill.precision import Arithmetic

RESOLUTION: dict[Arithmetic, float] = {
    "fp32": torch.finfo(torch.float32).eps,
    "bf16": torch.finfo(torch.bfloat16).eps,
}
"""Distance of neighbouring numbers as a fraction of them; a value that varies less is constant in this arithmetic."""


@torch.no_grad()
def keep_constant(network: nn.Module, precision: Arithmetic) -> None:
    """Let every channel that was constant in training, in `precision`, stay so: its running variance becomes 1.

    Then a small difference from its running mean makes a small one in the answer. Further training measures the
    variance again. Other channels stay as they are.
    """
    for module in network.modules():
        if isinstance(module, _BatchNorm) and module.running_var is not None and module.running_mean is not None:
            constant = module.running_var.sqrt() <= RESOLUTION[precision] * module.running_mean.abs()
            module.running_var.masked_fill_(constant, 1.0)
