"""Renormalisation: sets the running statistics of batch norms anew after a cut and its refits.

A refitted layer predicts the dense layer's output from fewer inputs. Its output therefore has a smaller variance than
the dense one's, by the share that it cannot predict. The loss of variance adds up from layer to layer and flattens the
network's outputs. Each batch norm's running statistics are set such that its normalised output has, on the calibration
images and in each channel, the mean and the variance that it has in the dense network. The norms are set in the order
in which they run, so each one sees the outputs of those that were set before it.

Jordan et al., REPAIR: REnormalizing Permuted Activations for Interpolation Repair, ICLR 2023, section 4, do this for
averages of networks; Li et al., EagleEye, ECCV 2020, section 3.3, take new statistics of pruned networks. New
statistics alone would also move what the dense network's statistics differ by from those of the calibration images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from ..moments import Moments
from ..network.forward import first_tensor
from ..network.untouched import untouched
from ..processes import average_norms, running_norms
from ..structure.plan import Cut

FARTHEST = 4.0
"""Standard deviations change by at most this factor."""
UNCHANGED = 1e-4
"""A norm whose input has changed by less than this share of its deviation is left as it is."""
FLAT = 1e-6
"""Channels with a smaller normalised variance than this in the dense network say nothing about scales."""


@dataclass
class ChannelStatistics:
    """The number of values, their mean and their variance (divided by the number), of each channel: (C,) in float64."""

    count: float
    mean: torch.Tensor
    variance: torch.Tensor

    @staticmethod
    def of(x: torch.Tensor) -> ChannelStatistics:
        """Takes the statistics of a map (N, C, ...)."""
        mean, variance = torch.batch_norm_update_stats(x.detach().float(), None, None, 0.0)
        return ChannelStatistics(x.numel() // x.shape[1], mean.double(), variance.double())

    def __add__(self, other: ChannelStatistics) -> ChannelStatistics:
        count = self.count + other.count
        share, step = other.count / count, other.mean - self.mean
        variance = (1 - share) * self.variance + share * other.variance + share * (1 - share) * step.square()
        return ChannelStatistics(count, self.mean + share * step, variance)

    def at(self, kept: torch.Tensor | None) -> ChannelStatistics:
        """Returns the statistics of some channels, or of all."""
        if kept is None:
            return self
        kept = kept.to(self.mean.device)
        return ChannelStatistics(self.count, self.mean[kept], self.variance[kept])

    def normalised(self, mean: torch.Tensor, deviation: torch.Tensor) -> ChannelStatistics:
        """Returns the statistics of the values less a mean, divided by a deviation, (C,) each."""
        return ChannelStatistics(self.count, (self.mean - mean) / deviation, self.variance / deviation.square())


NormStatistics = list[dict[str, ChannelStatistics]]
"""For each batch, the normalised inputs of each batch norm, before its scale and shift."""


@torch.no_grad()
def take_norms(model: nn.Module, moments: Moments, half: bool = False) -> NormStatistics:
    """Takes the statistics of the normalised inputs of a model's batch norms.

    Args:
        model: the model before a cut. It is not changed. Norms use their running statistics.
        moments: they hold the batches, and how to run them.
        half: True for the first half of the images only.
    """
    taken: NormStatistics = []
    with untouched(model), moments.as_taken(model), _norms(model) as norms, ExitStack() as handles:
        for name, norm in norms.items():
            handles.callback(norm.register_forward_pre_hook(partial(_take, taken, name), with_kwargs=True).remove)
        for batch in moments.part(half):
            taken.append({})
            moments.run(model, batch)
    return taken


def _take(taken: NormStatistics, name: str, norm: Any, args: tuple, kwargs: dict[str, Any]) -> None:
    """Adds the statistics of a norm's normalised input to those of the present batch."""
    deviation = (norm.running_var.double() + norm.eps).sqrt()
    _add(taken[-1], name, _statistics(args, kwargs).normalised(norm.running_mean.double(), deviation))


@torch.no_grad()
def renormalise(
    model: nn.Module, taken: NormStatistics, cuts: Sequence[Cut], moments: Moments, half: bool = False
) -> None:
    """Sets the running statistics of a cut model's batch norms such that their outputs have those of the dense model.

    In a distributed run each process does so on its batches; then the mean over the processes is taken.

    Args:
        model: the cut model, changed in place.
        taken: what `take_norms` found in the model before the cut, on the same batches.
        cuts: what was cut, to know which channels of a norm are left.
        moments, half: as in `take_norms`.
    """
    kept = {name: torch.tensor(cut.keep) for cut in cuts for name, dim in cut.tensors if dim == 0}
    wanted: dict[str, ChannelStatistics] = {}
    found: dict[str, ChannelStatistics] = {}
    set_to: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    with untouched(model), moments.as_taken(model), _norms(model) as norms, ExitStack() as handles:
        pending: dict[str, ChannelStatistics] = {}
        first = {name: (norm.running_mean.clone(), norm.running_var.clone()) for name, norm in norms.items()}

        def adjust(name: str, norm: Any, args: tuple, kwargs: dict[str, Any]) -> None:
            if name in pending:  # the first call of the batch; the statistics are those of all calls
                left = kept.get(f"{name}.running_mean")
                _add(wanted, name, pending.pop(name).at(left))
            _add(found, name, _statistics(args, kwargs))
            if name in wanted and name in found:
                _set(norm, wanted[name], found[name], *first[name])

        for name, norm in norms.items():
            handles.callback(norm.register_forward_pre_hook(partial(adjust, name), with_kwargs=True).remove)
        for batch, dense in zip(moments.part(half), taken, strict=True):
            pending = dict(dense)
            moments.run(model, batch)
        set_to = {name: (norm.running_mean.clone(), norm.running_var.clone()) for name, norm in norms.items()}
    for name, norm in running_norms(model).items():
        for buffer, value in zip((norm.running_mean, norm.running_var), set_to[name], strict=True):
            buffer.copy_(value)
    average_norms(model)


def _statistics(args: tuple, kwargs: dict[str, Any]) -> ChannelStatistics:
    """Returns the statistics of what a norm is called with."""
    x = first_tensor(args, kwargs)
    if x is None:
        raise TypeError("a batch norm was called without a tensor")
    return ChannelStatistics.of(x)


def _add(known: dict[str, ChannelStatistics], name: str, more: ChannelStatistics) -> None:
    """Joins further statistics of a norm to the known ones; a call on an empty map adds nothing."""
    if more.count:
        known[name] = known[name] + more if name in known else more


def _set(
    norm: Any, wanted: ChannelStatistics, found: ChannelStatistics, mean: torch.Tensor, variance: torch.Tensor
) -> None:
    """Sets a norm's statistics such that what was found becomes what is wanted; leaves small changes out."""
    if wanted.mean.shape != mean.shape or found.mean.shape != mean.shape:
        return
    goal, spread, now, width = wanted.mean, wanted.variance, found.mean, found.variance
    before = (variance.double() + norm.eps).sqrt()
    scale = torch.where((spread > FLAT) & (width > 0), (width / spread.clamp_min(FLAT)).sqrt(), before)
    scale = scale.clamp(before / FARTHEST, before * FARTHEST).maximum(torch.full_like(scale, norm.eps).sqrt())
    middle = now - scale * goal
    moved = ((scale - before).abs() + (middle - mean).abs()) / before > UNCHANGED
    moved &= scale.isfinite() & middle.isfinite()
    norm.running_mean.copy_(torch.where(moved, middle, mean.double()))
    norm.running_var.copy_(torch.where(moved, scale.square() - norm.eps, variance.double()))


@contextmanager
def _norms(model: nn.Module) -> Iterator[Mapping[str, Any]]:
    """The batch norms with running statistics, by name, set to use these."""
    norms = running_norms(model)
    modes = {name: norm.training for name, norm in norms.items()}
    for norm in norms.values():
        norm.training = False
    try:
        yield norms
    finally:
        for name, norm in norms.items():
            norm.training = modes[name]
