"""Compensation: what a removed channel gave is made up for where it was read.

By reconstruction from the channels that stay, where moments of what layers read are at hand
(`sirfp.surgery.reconstruction`); else by the constants it still emitted. A channel whose norm is emptied emits
`act(beta)` with beta the norm's shift (docs/method.md, section 3; the paper's reference code). The pass carries these
constants along (through activations, sums, pooling and concatenation), so for each layer that reads removed channels
the lost amount is `sum_i sum_k W[:, i, k] c_i`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from ..structure.groups import ChannelGroups, Emission
from .cut import give_bias
from .reconstruction import Moments, take_up


def compensate(
    model: nn.Module,
    found: ChannelGroups,
    keep: np.ndarray,
    optimizer: torch.optim.Optimizer | None = None,
    moments: Moments | None = None,
) -> tuple[str, ...]:
    """Corrects the dense model, in place and before the cut, for what removed channels gave.

    The running mean of the norm that follows takes what is constant; where none does, or where the norm or another
    operation reads something else too, the layer's bias. A layer that is called more than once reads the same constants
    each time or has a norm for each call; else it is left as it is.

    Args:
        model: the dense model.
        found: its groups.
        keep: which atoms stay, (atoms,) of bool.
        optimizer: learns of biases that are added.
        moments: of what layers read; those it has none of are corrected for constants alone.

    Returns:
        Modules that were given a bias since they had none.
    """
    given = []
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    calls: dict[str, list[Emission]] = {}
    for emission in found.emissions:
        calls.setdefault(emission.weight, []).append(emission)
    for name, emissions in calls.items():
        gone = _gone(emissions[0], keep)
        if moments and name in moments and gone.any() and not gone.all():
            weight, shift = take_up(state[name].detach(), moments[name], gone)
            if _place(model, state, emissions, [shift] * len(emissions), True, given, optimizer):
                with torch.no_grad():
                    state[name].copy_(weight)
                continue
        constants = [_constants(emission, keep) for emission in emissions]
        shifts = [_shift(state[name], c, e.groups) for c, e in zip(constants, emissions, strict=True)]
        if not any(bool(shift.any()) for shift in shifts) or not all(bool(s.isfinite().all()) for s in shifts):
            continue
        agreed = all(torch.allclose(c, constants[0], equal_nan=True) for c in constants)
        _place(model, state, emissions, shifts, agreed, given, optimizer)
    return tuple(given)


def _place(
    model: nn.Module,
    state: dict[str, torch.Tensor],
    emissions: list[Emission],
    shifts: list[torch.Tensor],
    agreed: bool,
    given: list[str],
    optimizer: torch.optim.Optimizer | None,
) -> bool:
    """Adds a layer's constants, of each call, where they have a place; says whether they have one."""
    norms = {e.norm_mean: shift for e, shift in zip(emissions, shifts, strict=True)}
    if None not in norms and (agreed or len(norms) == len(shifts)):
        with torch.no_grad():
            for norm, shift in norms.items():
                state[norm].sub_(shift)
        return True
    if not agreed:
        return False
    added = _add_to_bias(model, emissions[0].weight, shifts[0], optimizer)
    if added == "given":
        given.append(emissions[0].weight.rpartition(".")[0])
    return bool(added)


def _gone(emission: Emission, keep: np.ndarray) -> np.ndarray:
    """Which of a layer's input channels are removed, (I,) of bool."""
    return (emission.atoms >= 0) & ~np.append(keep, True)[emission.atoms]


def _constants(emission: Emission, keep: np.ndarray) -> torch.Tensor:
    """What the removed ones of a layer's input channels emit, NaN where that is not known, (I,)."""
    gone = _gone(emission, keep)
    return torch.where(torch.as_tensor(gone, device=emission.emitted.device), emission.emitted, 0)


def _shift(weight: torch.Tensor, constants: torch.Tensor, groups: int) -> torch.Tensor:
    """What a layer makes of those constants that are known, (O,)."""
    kernel = weight.detach().reshape(groups, -1, weight.shape[1], *weight.shape[2:])
    kernel = kernel.flatten(3).sum(3) if kernel.dim() > 3 else kernel
    known = constants.to(weight).nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf)
    return torch.einsum("goi,gi->go", kernel, known.reshape(groups, -1)).reshape(-1)


def _add_to_bias(model: nn.Module, weight: str, shift: torch.Tensor, optimizer: torch.optim.Optimizer | None) -> str:
    """Adds to a layer's bias, if it is one that has or can be given one.

    Returns:
        "given" where it had none, "added" where it had one, "" where it can have none.
    """
    module = model.get_submodule(weight.rpartition(".")[0])
    layer = isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)) and weight.endswith("weight")
    bias = getattr(module, "bias", None)
    missing = layer and bias is None
    if missing:
        give_bias(module, optimizer)
    if not missing and not (isinstance(bias, nn.Parameter) and bias.shape == shift.shape):
        return ""
    with torch.no_grad():
        module.bias.add_(shift)
    return "given" if missing else "added"
