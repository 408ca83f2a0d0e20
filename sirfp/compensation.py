"""Bias compensation: what a removed channel still emitted is added where it was read.

A channel whose norm is emptied emits a constant, `act(beta)` with beta the norm's shift (METHOD section 3;
the paper's reference code). The pass carries these constants along (through activations, sums, pooling and
concatenation), so for each layer that reads removed channels the lost amount is `sum_i sum_k W[:, i, k] c_i`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from .groups import ChannelGroups, Emission
from .surgery import give_bias


def compensate(
    model: nn.Module, found: ChannelGroups, keep: np.ndarray, optimizer: torch.optim.Optimizer | None = None
) -> tuple[str, ...]:
    """Corrects the dense model, in place and before the cut, for the constants of removed channels.

    The running mean of the norm that follows takes it; where none does, or where the norm or another operation reads
    something else too, the layer's bias. A layer that is called more than once reads the same constants each time or
    has a norm for each call; else it is left as it is.

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
    calls: dict[str, list[Emission]] = {}
    for emission in found.emissions:
        calls.setdefault(emission.weight, []).append(emission)
    for name, emissions in calls.items():
        constants = [_constants(emission, keep) for emission in emissions]
        shifts = [_shift(state[name], c, e.groups) for c, e in zip(constants, emissions, strict=True)]
        if not any(bool(shift.any()) for shift in shifts) or not all(bool(s.isfinite().all()) for s in shifts):
            continue
        agreed = all(torch.allclose(c, constants[0], equal_nan=True) for c in constants)
        norms = {e.norm_mean: shift for e, shift in zip(emissions, shifts, strict=True)}
        if None not in norms and (agreed or len(norms) == len(shifts)):
            with torch.no_grad():
                for norm, shift in norms.items():
                    state[norm].sub_(shift)
        elif agreed and _add_to_bias(model, name, shifts[0], optimizer):
            given.append(name.rpartition(".")[0])
    return tuple(given)


def _constants(emission: Emission, keep: np.ndarray) -> torch.Tensor:
    """What the removed ones of a layer's input channels emit, NaN where that is not known, (I,)."""
    gone = (emission.atoms >= 0) & ~np.append(keep, True)[emission.atoms]
    return torch.where(torch.as_tensor(gone, device=emission.emitted.device), emission.emitted, 0)


def _shift(weight: torch.Tensor, constants: torch.Tensor, groups: int) -> torch.Tensor:
    """What a layer makes of those constants that are known, (O,)."""
    kernel = weight.detach().reshape(groups, -1, weight.shape[1], *weight.shape[2:])
    kernel = kernel.flatten(3).sum(3) if kernel.dim() > 3 else kernel
    known = constants.to(weight).nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf)
    return torch.einsum("goi,gi->go", kernel, known.reshape(groups, -1)).reshape(-1)


def _add_to_bias(model: nn.Module, weight: str, shift: torch.Tensor, optimizer: torch.optim.Optimizer | None) -> bool:
    """Adds to a layer's bias, if it is one that has or can be given one; says whether it was given one."""
    module = model.get_submodule(weight.rpartition(".")[0])
    layer = isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)) and weight.endswith("weight")
    bias = getattr(module, "bias", None)
    missing = layer and bias is None
    if missing:
        give_bias(module, optimizer)
    if missing or (isinstance(bias, nn.Parameter) and bias.shape == shift.shape):
        with torch.no_grad():
            module.bias.add_(shift)
    return missing
