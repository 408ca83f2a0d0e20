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

import numpy as np
import torch

from ..moments import InputMoments, Moments, take_moments

__all__ = ["BATCHES", "RIDGE", "Moments", "fit", "take_moments", "take_up"]

BATCHES = 16
"""Default number of batches on which layers are fitted, in `sirfp.prune`, `sirfp prune` and training runs."""
RIDGE = 0.01
"""The ridge: this share of each variance is added to it. Removed channels are predicted from few batches. Without a
ridge, channels that are nearly linear combinations of one another would get large weights that fit noise."""
FLOOR, ROUNDING = 1e-4, 1e-10
"""These shares of the mean variance and of the mean square are added to each variance, so that variances of zero, and
those that are mere rounding, predict nothing."""


def fit(
    mean: torch.Tensor, covariance: torch.Tensor, gone: np.ndarray, ridge: float = RIDGE
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fits the removed channels as linear functions of the kept ones.

    Args:
        mean: the mean of each channel, (I,) in float64.
        covariance: their covariance, (I, I) in float64.
        gone: the removed channels, (I,) of bool.
        ridge: this share of each variance is added to it.

    Returns:
        Factors (kept, removed) and constants (removed,), in float64.
    """
    out = torch.as_tensor(gone, device=mean.device)
    kept, removed = (~out).nonzero().flatten(), out.nonzero().flatten()
    inner, cross = covariance[kept][:, kept], covariance[kept][:, removed]
    variance = covariance.diagonal().mean()
    floor = FLOOR * variance + ROUNDING * (variance + mean.square().mean()) + torch.finfo(torch.float32).tiny
    inner = inner + torch.diag(ridge * inner.diagonal().clamp_min(0) + floor)
    factors = torch.linalg.solve(inner, cross)
    return factors, mean[removed] - mean[kept] @ factors


@torch.no_grad()
def take_up(weight: torch.Tensor, moments: InputMoments, gone: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Folds the fit of the removed channels into a layer's weight.

    Args:
        weight: the layer's weight, (O, I, ...).
        moments: the moments of its input, see `take_moments`.
        gone: the removed input channels, (I,) of bool.

    Returns:
        The new weight, with the weights of removed inputs unchanged, and the constant to add to each output, (O,).
    """
    mean, covariance, _ = moments.statistics()
    factors, constants = fit(mean, covariance, gone)
    out = torch.as_tensor(gone, device=weight.device)
    lost = weight[:, out].double()
    new = weight.clone()
    new[:, ~out] += torch.einsum("or...,kr->ok...", lost, factors).to(weight)
    shift = torch.einsum("or...,r->o...", lost, constants)
    return new, shift.flatten(1).sum(1).to(weight) if shift.dim() > 1 else shift.to(weight)
