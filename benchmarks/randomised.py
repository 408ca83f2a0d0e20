"""Random weights that make every channel different, for comparisons with a masked network."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def randomised(model: nn.Module) -> nn.Module:
    """Randomises statistics, scales and shifts of norms, and weights that are initialised with zeros; in place."""
    for module in model.modules():
        if getattr(module, "running_mean", None) is not None:
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
        if type(module).__name__ == "FrozenBatchNorm2d":  # its scale and shift are buffers
            for vector in (module.weight, module.bias):
                vector.add_(torch.empty_like(vector).uniform_(-0.1, 0.1))
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.add_(torch.empty_like(parameter).uniform_(-0.1, 0.1))
        elif not parameter.any():
            parameter.normal_(0, 0.05)
    return model
