"""Bias compensation: what a removed channel still emitted is added where it was read.

A channel whose norm is emptied emits a constant, `act(beta)` with beta the norm's shift (METHOD section 3;
the paper's reference code). The pass carries these constants along (through activations, sums, pooling and
concatenation), so for each layer that reads removed channels the lost amount is `sum_i sum_k W[:, i, k] c_i`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from .groups import ChannelGroups
from .surgery import give_bias


def compensate(
    model: nn.Module, found: ChannelGroups, keep: np.ndarray, optimizer: torch.optim.Optimizer | None = None
) -> tuple[str, ...]:
    """Corrects the dense model, in place and before the cut, for the constants of removed channels.

    The next norm's running mean takes it, or, where no norm follows, the layer's bias.

    Args:
        model: the dense model.
        found: its groups.
        keep: which atoms stay, (atoms,) of bool.
        optimizer: learns of biases that are added.

    Returns:
        Modules that were given a bias since they had none.
    """
    given = []
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for emission in found.emissions:
        gone = (emission.atoms >= 0) & ~np.append(keep, True)[emission.atoms]
        if not gone.any():
            continue
        weight = state[emission.weight]
        mask = torch.as_tensor(gone, device=weight.device)
        constants = (emission.emitted.to(weight) * mask).reshape(emission.groups, -1)
        kernel = weight.detach().reshape(emission.groups, -1, weight.shape[1], *weight.shape[2:])
        kernel = kernel.flatten(3).sum(3) if kernel.dim() > 3 else kernel
        shift = torch.einsum("goi,gi->go", kernel, constants).reshape(-1)
        if not torch.isfinite(shift).all():
            continue
        with torch.no_grad():
            if emission.norm_mean is not None:
                state[emission.norm_mean].sub_(shift)
                continue
            name = emission.weight.rpartition(".")[0]
            module = model.get_submodule(name)
            if not hasattr(module, "bias"):
                continue
            if module.bias is None:
                give_bias(module, optimizer)
                state[f"{name}.bias"] = module.bias
                given.append(name)
            module.bias.add_(shift)
    return tuple(given)
