"""Reconstruction: refits the layers that read removed channels, so that kept channels replace the removed ones.

Each removed channel `x_r` of a layer's input is predicted from the kept ones, `x_r ~ b_r + sum_k B_rk x_k` (ridge
regression on training images). The prediction is then folded into the layer's weights, `W_k += sum_r W_r B_rk`, and
`sum_r W_r b_r` is added to its bias. This is valid for kernels of any size, because the sum over channels and the
convolution over space commute.

It is the feature reconstruction of He et al., Channel Pruning for Accelerating Very Deep Neural Networks, ICCV 2017,
section 3.1, but all layers are solved together, on the dense network's features. A reconstructed layer needs no bias
compensation (docs/method.md, section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from ..network.forward import call
from ..structure.groups import ChannelGroups

BATCHES = 16
"""Default number of batches on which layers are fitted, in `sirfp.prune`, `sirfp prune` and training runs."""
ROWS = 4096
"""Maximum number of positions of one call that are used. It bounds the time of a call's product. Neighbouring positions
of a map are similar."""
WIDEST = 4096
"""Maximum number of input channels of a layer that is reconstructed. The moments are a matrix with this many rows: 32
MiB for the lower half in float32, 128 MiB for the whole matrix in float64 when it is solved. Wider layers are only
corrected for constants."""
RIDGE = 0.01
"""The ridge: this share of each variance is added to it. Removed channels are predicted from few batches. Without a
ridge, channels that are nearly linear combinations of one another would get large weights that fit noise."""
_PLAIN = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)

Moments = dict[str, torch.Tensor]
"""{weight's name: second moments of its input}; see `take_moments`."""


@torch.no_grad()
def take_moments(
    model: nn.Module, found: ChannelGroups, batches: Iterable[Any], run: Callable[[nn.Module, Any], Any] = call
) -> Moments:
    """Runs batches through a model and sums up the second moments of the inputs of layers that read prunable channels.

    Args:
        model: the model; it runs in its present mode.
        found: its groups.
        batches: the inputs of each call.
        run: calls the model with a batch.

    Returns:
        {weight's name: moments} for ungrouped convolutions and linear layers of at most `WIDEST` input channels I. The
        moments are those of the input's channels with a constant 1 appended. They are stored as the lower half of a
        symmetric matrix, row by row, ((I + 1) * (I + 2) / 2,) in float32, summed over the processes of a run.
    """
    sums: Moments = {}
    with ExitStack() as handles:
        for name in dict.fromkeys(emission.weight for emission in found.emissions):
            module: Any = model.get_submodule(name.rpartition(".")[0])
            if name.endswith("weight") and _is_plain(module) and module.weight.shape[1] <= WIDEST:
                width = module.weight.shape[1] + 1
                sums[name] = torch.zeros(width * (width + 1) // 2, device=module.weight.device)
                dim = -1 if isinstance(module, nn.Linear) else 1
                handle = module.register_forward_pre_hook(_adder(sums[name], dim))
                handles.callback(handle.remove)
        for batch in batches:
            run(model, batch)
    if dist.is_available() and dist.is_initialized():
        for total in sums.values():
            dist.all_reduce(total)
    return {name: total for name, total in sums.items() if 0 < float(total[-1]) < torch.inf}


def _is_plain(module: nn.Module) -> bool:
    """True for an ungrouped convolution or linear layer applied directly to its input.

    Subclasses outside PyTorch, timm and Detectron2 count only if they do not override `forward`.
    """
    base = next((kind for kind in _PLAIN if isinstance(module, kind)), None)
    known = type(module).__module__.partition(".")[0] in ("torch", "timm", "detectron2")
    return base is not None and (known or type(module).forward is base.forward) and getattr(module, "groups", 1) == 1


def _adder(total: torch.Tensor, dim: int) -> Callable:
    """Returns a pre-hook that adds the second moments of a layer's input to `total`.

    Args:
        total: the packed sum, changed in place.
        dim: the channel dimension of the input.
    """
    calls = 0

    def add(module: nn.Module, inputs: tuple) -> None:
        nonlocal calls
        with torch.autocast(total.device.type, enabled=False):
            rows = inputs[0].detach().movedim(dim, -1).flatten(0, -2)
            step = -(-len(rows) // ROWS) or 1
            rows = rows[calls % step :: step].float()
            rows = torch.cat([rows, rows.new_ones(len(rows), 1)], 1)
            product = packed(rows.T @ rows)
            total.add_(torch.where(product.isfinite().all(), product, 0))
        calls += 1

    return add


def packed(matrix: torch.Tensor) -> torch.Tensor:
    """Returns the lower half of a symmetric matrix (n, n), row by row: (n * (n + 1) / 2,)."""
    return matrix[torch.ones_like(matrix, dtype=torch.bool).tril()]


def unpacked(half: torch.Tensor) -> torch.Tensor:
    """Returns the symmetric matrix (n, n), in float64, from its packed lower half."""
    size = int((2 * len(half)) ** 0.5)
    matrix = torch.zeros(size, size, dtype=torch.float64, device=half.device)
    matrix[torch.ones_like(matrix, dtype=torch.bool).tril()] = half.double()
    return matrix + matrix.tril(-1).T


def fit(moments: torch.Tensor, gone: np.ndarray, ridge: float = RIDGE) -> tuple[torch.Tensor, torch.Tensor]:
    """Fits the removed channels as linear functions of the kept ones.

    Args:
        moments: the packed moments of the input, see `take_moments`.
        gone: the removed channels, (I,) of bool.
        ridge: this share of each variance is added to it.

    Returns:
        Factors (kept, removed) and constants (removed,), in float64.
    """
    moments = unpacked(moments) / float(moments[-1])
    mean = moments[-1, :-1]
    covariance = moments[:-1, :-1] - torch.outer(mean, mean)
    out = torch.as_tensor(gone, device=moments.device)
    kept, removed = (~out).nonzero().flatten(), out.nonzero().flatten()
    inner, cross = covariance[kept][:, kept], covariance[kept][:, removed]
    floor = covariance.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny) * 1e-4
    inner = inner + torch.diag(ridge * inner.diagonal().clamp_min(0) + floor)
    factors = torch.linalg.solve(inner, cross)
    return factors, mean[removed] - mean[kept] @ factors


@torch.no_grad()
def take_up(weight: torch.Tensor, moments: torch.Tensor, gone: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Folds the fit of the removed channels into a layer's weight.

    Args:
        weight: the layer's weight, (O, I, ...).
        moments: the packed moments of its input, see `take_moments`.
        gone: the removed input channels, (I,) of bool.

    Returns:
        The new weight, with the weights of removed inputs unchanged, and the constant to add to each output, (O,).
    """
    factors, constants = fit(moments, gone)
    out = torch.as_tensor(gone, device=weight.device)
    lost = weight[:, out].double()
    new = weight.clone()
    new[:, ~out] += torch.einsum("or...,kr->ok...", lost, factors).to(weight)
    shift = torch.einsum("or...,r->o...", lost, constants)
    return new, shift.flatten(1).sum(1).to(weight) if shift.dim() > 1 else shift.to(weight)
