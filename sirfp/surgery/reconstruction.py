"""Reconstruction: refits the layers that read removed channels, so that kept channels replace the removed ones.

Each removed channel `x_r` of a layer's input is predicted from the kept ones, `x_r ~ b_r + sum_k B_rk x_k` (ridge
regression on training images). The prediction is then folded into the layer's weights, `W_k += sum_r W_r B_rk`, and
`sum_r W_r b_r` is added to its bias. For kernels of several taps, a prediction of channels holds under every tap, but
the constants are read only where the tap lies inside the map; they are weighed by the share of these positions. Small
kernels are fitted with all their taps as inputs, which is exact also at the borders (`InputMoments.unfolded`).

It is the feature reconstruction of He et al., Channel Pruning for Accelerating Very Deep Neural Networks, ICCV 2017,
section 3.1, but all layers are solved together, on the dense network's features. A reconstructed layer needs no bias
compensation (docs/method.md, section 3).

How far to go is decided for each layer by cross-validation: a candidate is fitted on one half of the images, and its
error in the layer's output is computed on the other half, from this half's moments alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch

from ..moments import CentredSums, InputMoments, Moments, take_moments

__all__ = ["BATCHES", "RIDGE", "Moments", "fit", "take_moments", "take_up"]

BATCHES = 16
"""Default number of batches on which layers are fitted, in `sirfp.prune`, `sirfp prune` and training runs."""
RIDGES = (0.01, 0.1, 1.0, 10.0)
"""The ridges to choose from: this share of each variance is added to it. Removed channels are predicted from few
batches. Without a ridge, channels that are nearly linear combinations of one another would get large weights that fit
noise."""
RIDGE = RIDGES[0]
TOLERANCE, SLACK = 2.5, 0.02
"""The smallest ridge is taken whose error on unseen images is at most this factor of the least error plus this share of
the output's variance. The check fits on half of the images, so it finds small ridges worse than they are on all. And a
larger ridge shrinks what removed channels added: such errors have the same sign in every layer and add up, while the
noise of a small ridge averages out. The best ridge of each layer alone gave a worse network (docs/choices.md)."""
FLOOR, ROUNDING = 1e-4, 1e-10
"""These shares of the mean variance and of the mean square are added to each variance, so that variances of zero, and
those that are mere rounding, predict nothing."""


def fit(
    mean: torch.Tensor, covariance: torch.Tensor, gone: np.ndarray | torch.Tensor, ridge: float | torch.Tensor = RIDGE
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fits the removed channels as linear functions of the kept ones.

    Args:
        mean: the mean of each channel, (I,) in float64.
        covariance: their covariance, (I, I) in float64.
        gone: the removed channels, (I,) of bool.
        ridge: this share of each variance is added to it; one for all channels or one for each kept channel, (kept,).

    Returns:
        Factors (kept, removed) and constants (removed,), in float64.
    """
    return _Regression(mean, covariance, torch.as_tensor(gone, device=mean.device)).fit(ridge)


class _Regression:
    """The removed channels as functions of the kept ones, to be fitted with several ridges; see `fit`."""

    def __init__(self, mean: torch.Tensor, covariance: torch.Tensor, gone: torch.Tensor):
        kept, removed = (~gone).nonzero().flatten(), gone.nonzero().flatten()
        rows, variance = covariance[kept], covariance.diagonal().mean()
        self.inner, self.cross = rows[:, kept], rows[:, removed]
        self.means = mean[kept], mean[removed]
        self.variances = self.inner.diagonal().clamp_min(0)
        self.floor = FLOOR * variance + ROUNDING * (variance + mean.square().mean()) + torch.finfo(torch.float32).tiny

    def fit(self, ridge: float | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        factors = torch.linalg.solve(self.inner + torch.diag(ridge * self.variances + self.floor), self.cross)
        return factors, self.means[1] - self.means[0] @ factors


@dataclass(frozen=True)
class Correction:
    """How a layer is corrected for its removed inputs.

    Attributes:
        kind: "refit", "constants" (those of the calibration), "emitted" (those of emptied channels) or "none".
        error: the squared error of the layer's output on images that the fit did not see, as a share of the output's
            variance.
        ridge: of a refit.
    """

    kind: str
    error: float
    ridge: float = 0.0


@torch.no_grad()
def take_up(
    weight: torch.Tensor,
    moments: InputMoments,
    gone: np.ndarray,
    noise: np.ndarray,
    emitted: torch.Tensor | None = None,
    half: bool = False,
    tolerance: float = TOLERANCE,
    judged: list[Correction] | None = None,
) -> tuple[Correction, torch.Tensor, torch.Tensor] | None:
    """Corrects a layer for its removed inputs, in the way that does best on images that the correction has not seen.

    Args:
        weight: the layer's weight, (O, I, ...).
        moments: the moments of its input, see `take_moments`.
        gone: the removed input channels, (I,) of bool.
        noise: the squared error of each input channel in the pruned network, as a share of its variance, (I,).
        emitted: the layer's mean output for what its removed inputs emit when emptied, (O,), as another candidate.
        half: True to fit on the first half of the images only.
        tolerance: the smallest ridge is taken whose error is at most this factor of the least; 1 takes the best ridge.
        judged: all corrections with their errors, for several calls that differ in `half` and `tolerance` only: an
            empty list is filled, a filled one is used. The errors take most of the time.

    Returns:
        The correction, the new weight, with the weights of removed inputs unchanged, and the constant to add to each
        output, (O,). None if all images are in one half, so that nothing can be checked.
    """
    reader = _Reader(weight, moments, gone, noise)
    if not all(float(half.rows) for half in reader.halves):
        return None
    best = _choose(reader, emitted, tolerance, judged)
    sums = reader.halves[0] if half else reader.whole
    new, shift = weight.clone(), weight.new_zeros(weight.shape[0])
    if best.kind == "emitted" and emitted is not None:
        shift = emitted.to(weight)
    elif best.kind == "constants":
        shift = (reader.read @ sums.mean[reader.removed]).to(weight)
    elif best.kind == "refit":
        factors, constants = fit(sums.mean, sums.covariance(), reader.gone, best.ridge + reader.noise)
        new = reader.folded(factors)
        shift = (reader.read @ constants).to(weight)
    return best, new, shift


class _Reader:
    """A layer that reads removed channels, as a regression over its inputs: channels, or channels and taps.

    Attributes:
        halves: the sums over each half of the images.
        gone: the removed inputs, (inputs,) of bool.
        kept, removed: their indices.
        read: what the layer's mean output reads of the removed inputs' means, (O, removed) in float64.
        taps: the layer's weights, (O * taps, inputs) in float64. Their products, summed over outputs, times the
            covariance of the inputs' errors are the error of the layer's output. Where the inputs are channels, errors
            under several taps count as independent.
        whole: the sums over all images.
        noise: the squared error of the kept inputs in the pruned network, as a share of their variance, (kept,). It
            counts as independent of the inputs and of one another.
    """

    def __init__(self, weight: torch.Tensor, moments: InputMoments, gone: np.ndarray, noise: np.ndarray):
        self.weight, out = weight, torch.as_tensor(gone, device=weight.device)
        self.unfolded = moments.unfolded is not None
        self.halves = moments.unfolded or moments.halves
        self.gone = out.repeat_interleave(moments.taps) if self.unfolded else out
        self.kept, self.removed = (~self.gone).nonzero().flatten(), self.gone.nonzero().flatten()
        count = 1 if self.unfolded else moments.taps
        share = moments.shares.new_ones(1) if self.unfolded else moments.shares
        taps = weight.reshape(len(weight), -1, count).double()
        self.read = taps[:, self.removed] @ share
        self.taps = (taps * share.sqrt()).movedim(2, 1).flatten(0, 1)
        self.whole = moments.widest
        each = torch.as_tensor(noise, dtype=torch.float64, device=weight.device)
        self.noise = (each.repeat_interleave(moments.taps) if self.unfolded else each)[self.kept]

    @cached_property
    def variance(self) -> torch.Tensor:
        """The variance of the dense layer's output, summed over outputs."""
        return (self.taps @ self.whole.covariance() * self.taps).sum()

    def gram(self, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Returns the products of the weights of some inputs with those of others, (rows, columns)."""
        return self.taps[:, rows].T @ self.taps[:, columns]

    def folded(self, factors: torch.Tensor) -> torch.Tensor:
        """Returns the weight with the predictions of removed inputs, (kept, removed), added to the kept ones."""
        new = (self.weight.flatten(1) if self.unfolded else self.weight).clone()
        lost = new[:, self.removed].double()
        new[:, self.kept] += torch.einsum("or...,kr->ok...", lost, factors).to(new)
        return new.reshape(self.weight.shape)


class _Check:
    """Judges corrections that were fitted on one half of the images on the other half."""

    def __init__(self, reader: _Reader, seen: CentredSums, unseen: CentredSums):
        self.reader, self.regression = reader, _Regression(seen.mean, seen.covariance(), reader.gone)
        kept, removed, covariance = reader.kept, reader.removed, unseen.covariance()
        rows = covariance[kept]
        self.inner, self.cross = rows[:, kept], rows[:, removed]
        self.means = unseen.mean[kept], unseen.mean[removed]
        self.share = unseen.rows
        self.gram = reader.gram(removed, removed)
        self.noise = reader.noise * self.inner.diagonal()
        self.plain = (self.gram * covariance[removed][:, removed]).sum()
        self.mixed = None
        if bool(reader.noise.any()):
            self.mixed = reader.gram(kept, removed)
            self.plain += (reader.taps[:, kept].square().sum(0) * self.noise).sum()

    def constant(self, shift: torch.Tensor | None) -> torch.Tensor:
        """Returns the error, times the rows, of adding constants (O,) to the output; None: those of the seen half."""
        reader = self.reader
        shift = reader.read @ self.regression.means[1] if shift is None else shift
        return self.share * (self.plain + (reader.read @ self.means[1] - shift).square().sum())

    def refit(self, ridge: float) -> torch.Tensor:
        """Returns the error, times the rows, of a refit."""
        factors, constants = self.regression.fit(ridge + self.reader.noise)
        weighed = factors @ self.gram
        error = self.plain - 2 * (self.cross * weighed).sum() + (self.inner @ factors * weighed).sum()
        if self.mixed is not None:
            error += (self.noise[:, None] * factors * (2 * self.mixed + weighed)).sum()
        left = self.reader.read @ (self.means[1] - self.means[0] @ factors - constants)
        return self.share * (error + left.square().sum())


def _choose(
    reader: _Reader, emitted: torch.Tensor | None, tolerance: float, judged: list[Correction] | None
) -> Correction:
    """Returns the correction that does best on unseen images; of refits, the first that is near the best one.

    A refit is taken if one of the ridges does better than the constants of the calibration, those of emptied channels,
    and no correction.
    """
    if judged is not None and not judged:
        judged.extend(_judge(reader, emitted))
    corrections = iter(judged) if judged else _judge(reader, emitted)
    others: list[Correction] = []
    for first in corrections:
        if first.kind == "refit":
            break
        others.append(first)
    else:
        return others[0]
    other = min(others, key=lambda correction: correction.error)
    slack = SLACK if tolerance > 1 else 0.0
    if first.error <= min(slack, other.error):
        return first
    refits = [first, *corrections]
    least = min(refit.error for refit in refits)
    if least >= other.error:
        return other
    return next(refit for refit in refits if refit.error <= tolerance * least + slack)


def _judge(reader: _Reader, emitted: torch.Tensor | None) -> Iterator[Correction]:
    """Yields no correction, constants, then a refit for each of `RIDGES`; only the first if no inputs are removed."""
    first, second = reader.halves
    checks = _Check(reader, first, second), _Check(reader, second, first)
    scale = (first.rows + second.rows) * reader.variance.clamp_min(torch.finfo(torch.float32).tiny)

    def error(judge: Callable[[_Check], torch.Tensor]) -> float:
        return float(sum(judge(check) for check in checks) / scale)

    zero = reader.read.new_zeros(len(reader.read))
    yield Correction("none", error(lambda check: check.constant(zero)))
    if not len(reader.removed):
        return
    if emitted is not None:
        yield Correction("emitted", error(lambda check: check.constant(emitted.to(zero))))
    yield Correction("constants", error(lambda check: check.constant(None)))
    for ridge in RIDGES:
        yield Correction("refit", error(partial(_Check.refit, ridge=ridge)), ridge)
