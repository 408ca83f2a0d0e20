"""L1 norm of a channel's filters (Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017)."""

from __future__ import annotations

import torch

from .parameters import mean_over_filters
from .registry import Criterion, register


@register("magnitude")
class Magnitude(Criterion):
    """The mean, over the layers that make a group's channels, of the L1 norm of each channel's filter.

    The filters are the slices along the first dimension of weights (the second of transposed
    convolutions), so a residual stream's score is the mean over all layers that add to it.
    """

    def scores(self) -> dict[str, torch.Tensor]:
        return {g.name: mean_over_filters(self.model, g, lambda w: w.abs().sum(1)) for g in self.groups}
