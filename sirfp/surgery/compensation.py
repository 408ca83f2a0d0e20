"""Compensation: corrects the layers that read removed channels.

If the moments of a layer's input are known, the layer is reconstructed from the kept channels
(`sirfp.surgery.reconstruction`). Otherwise it is corrected for the mean c of what the removed channels emitted, which
norms tell (`sirfp.tracing.emissions`; docs/method.md, section 3; the paper's reference code has `act(beta)`, with beta
the norm's shift, which is the same where the norm's scale is zero). The trace follows it through activations, sums,
pooling and concatenation. A layer that reads removed channels i at taps k of its kernel therefore
loses `sum_i sum_k W[:, i, k] s_k c_i`, where s_k is the share of output positions at which the tap lies inside the map
and not in zero padding.

Where a layer loses channels whose mean is not known, the layers after it read something else than before, and nobody
knows by how much. Corrections of other layers were then worse than none as often as better, so nothing is corrected.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from ..moments import Moments
from ..network.walk import walk_tensors
from ..structure.groups import ChannelGroups, Emission
from .cut import give_bias
from .reconstruction import TOLERANCE, Correction, take_up
from .upstream import norm_errors


def compensate(
    model: nn.Module,
    found: ChannelGroups,
    keep: np.ndarray,
    optimizer: torch.optim.Optimizer | None = None,
    moments: Moments | None = None,
    half: bool = False,
    tolerance: float = TOLERANCE,
    judged: dict[str, list[Correction]] | None = None,
) -> tuple[str, ...]:
    """Corrects the layers of the dense model that read removed channels, in place and before the cut.

    A layer's constant is subtracted from the running mean of the batch norm behind the layer, if this norm is the
    layer's only consumer and normalises no other layer. Otherwise the constant is added to the layer's bias. A layer
    that is called several times is corrected only if the constants of all calls are equal or each call has its own
    norm. Where equal constants are read by kernels that lie in the padding to different shares (maps of several sizes),
    the mean over the calls' positions is taken.

    Args:
        model: the dense model.
        found: its groups.
        keep: the atoms to keep, (atoms,) of bool.
        optimizer: new biases are added to its parameter groups.
        moments: the moments of layers' inputs; layers without moments are corrected for constants only.
        half: True to fit on the first half of the images only, so that the result can be checked on the second half.
        tolerance: of the choice of ridges (`sirfp.surgery.reconstruction.take_up`).
        judged: {weight: its judged corrections}, empty before the first of several calls for the same choice of atoms.

    Returns:
        The names of the modules that had no bias and were given one.
    """
    given: list[str] = []
    state = walk_tensors(model)
    calls: dict[str, list[Emission]] = {}
    for emission in found.emissions:
        calls.setdefault(emission.weight, []).append(emission)
    changed = norm_errors(found, keep)
    known = moments is not None or _is_known(found, keep, changed)
    for name, emissions in calls.items():
        gone = _gone(emissions[0], keep)
        if not gone.any() and not changed[emissions[0].atoms].any():
            continue  # the layer reads what it read before
        shifts, equal = _emitted(state[name], emissions, keep)
        noise = changed[emissions[0].atoms]
        if moments and name in moments and not gone.all() and np.isfinite(noise).all():
            emitted = shifts[0] if equal and shifts else None
            known_errors = None if judged is None else judged.setdefault(name, [])
            weight = state[name].detach()
            refit = take_up(weight, moments[name], gone, noise, emitted, half, tolerance, known_errors)
            if refit is not None and refit[0].kind == "none":
                continue
            if refit is not None and refit[0].kind != "emitted":
                _, weight, shift = refit
                if _place(model, state, emissions, [shift] * len(emissions), True, given, optimizer):
                    with torch.no_grad():
                        state[name].copy_(weight)
                    continue
        if shifts and known:
            _place(model, state, emissions, shifts, equal, given, optimizer)
    return tuple(given)


def _is_known(found: ChannelGroups, keep: np.ndarray, changed: np.ndarray) -> bool:
    """True if the means of all removed channels are known.

    They are not if the statistics of a norm over channels change.

    Args:
        found: the groups.
        keep: the atoms to keep, (atoms,) of bool.
        changed: the result of `norm_errors`.
    """
    for emission in found.emissions:
        unknown = _gone(emission, keep) & emission.emitted.isnan().any(1).cpu().numpy()
        if bool(unknown.any() or changed[emission.atoms].any()):
            return False
    return True


def _emitted(weight: torch.Tensor, emissions: list[Emission], keep: np.ndarray) -> tuple[list[torch.Tensor], bool]:
    """Returns a layer's mean outputs for what its removed inputs emit.

    Args:
        weight: the layer's weight.
        emissions: one for each call of the layer.
        keep: the atoms to keep, (atoms,) of bool.

    Returns:
        One output (O,) for each call, none if there is nothing to correct, and whether the removed inputs emit the same
        constants in all calls.
    """
    constants = [_constants(emission, keep) for emission in emissions]
    shifts = [_shift(weight, c, e.groups) for c, e in zip(constants, emissions, strict=True)]
    full = [_full(c) for c in constants]
    equal = all(torch.allclose(c, full[0], equal_nan=True) for c in full)
    if not any(bool(shift.any()) for shift in shifts) or not all(bool(s.isfinite().all()) for s in shifts):
        return [], equal
    if equal and len({e.norm_mean for e in emissions}) < len(emissions):  # calls differ in what lies in the padding
        positions = [e.positions for e in emissions]
        mean = torch.stack([s * n for s, n in zip(shifts, positions, strict=True)]).sum(0) / sum(positions)
        shifts = [mean] * len(emissions)
    return shifts, equal


def _place(
    model: nn.Module,
    state: dict[str, torch.Tensor],
    emissions: list[Emission],
    shifts: list[torch.Tensor],
    equal: bool,
    given: list[str],
    optimizer: torch.optim.Optimizer | None,
) -> bool:
    """Corrects a layer by constants, in the running means behind it or in its bias.

    Args:
        model: the model.
        state: its parameters and buffers by name.
        emissions: one for each call of the layer.
        shifts: the constant of each call, (O,).
        equal: True if the constants of all calls are equal.
        given: names of modules that were given a bias; the layer's name is appended if it is given one.
        optimizer: a new bias is added to its parameter groups.

    Returns:
        False if neither is possible.
    """
    norms = {e.norm_mean: shift for e, shift in zip(emissions, shifts, strict=True) if e.norm_mean is not None}
    has_norms = all(e.norm_mean is not None for e in emissions)
    if has_norms and (equal or len(norms) == len(shifts)):
        with torch.no_grad():
            for norm, shift in norms.items():
                state[norm].sub_(shift)
        return True
    if not equal or not _leaves_room(state, emissions[0].weight, shifts[0]):
        return False
    added = _add_to_bias(model, emissions[0].weight, shifts[0], optimizer)
    if added == "given":
        given.append(emissions[0].weight.rpartition(".")[0])
    return bool(added)


def _gone(emission: Emission, keep: np.ndarray) -> np.ndarray:
    """Returns which of a layer's input channels are removed, (I,) of bool."""
    return (emission.atoms >= 0) & ~np.append(keep, True)[emission.atoms]


def _constants(emission: Emission, keep: np.ndarray) -> torch.Tensor:
    """Returns what a layer's taps read of its removed input channels, NaN if unknown, 0 for kept ones, (I, taps)."""
    gone = torch.as_tensor(_gone(emission, keep), device=emission.emitted.device)
    return torch.where(gone[:, None], emission.emitted, 0)


def _full(constants: torch.Tensor) -> torch.Tensor:
    """Returns what the tap reads that lies inside the map most often, (I,), from what all taps read, (I, taps)."""
    return constants.gather(1, constants.abs().argmax(1, keepdim=True)).flatten()


def _shift(weight: torch.Tensor, constants: torch.Tensor, groups: int) -> torch.Tensor:
    """Returns the layer's mean output for the known constants (I, taps): (O,). Unknown constants count as 0."""
    kernel = weight.detach().reshape(groups, -1, weight.shape[1], weight[0, 0].numel())
    known = constants.to(weight).nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf)
    known = known.expand(-1, kernel.shape[3]).reshape(groups, *kernel.shape[2:])
    return torch.einsum("goit,git->go", kernel, known).reshape(-1)


def _leaves_room(state: dict[str, torch.Tensor], weight: str, shift: torch.Tensor) -> bool:
    """True if a layer's bias can still be trained after a constant (O,) is added to it.

    Running statistics of norms can be far off, for example after a few steps at a high learning rate. Refits on such
    features find constants whose rounding error exceeds the layer's weights and bias: the old bias would be lost, and
    no step of training would change the new one.
    """
    values = [state[name] for name in (weight, f"{weight.rpartition('.')[0]}.bias".lstrip(".")) if name in state]
    largest = max(float(value.detach().abs().max()) for value in values)
    return float(shift.abs().max()) * torch.finfo(torch.float32).eps <= largest


def _add_to_bias(model: nn.Module, weight: str, shift: torch.Tensor, optimizer: torch.optim.Optimizer | None) -> str:
    """Adds to the bias of a layer. A layer without a bias is given one.

    Returns:
        "given" if the layer had no bias, "added" if it had one, "" if it cannot have one.
    """
    module: Any = model.get_submodule(weight.rpartition(".")[0])
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
