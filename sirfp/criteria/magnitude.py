"""L1 norm of a channel's filters (Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017)."""

from __future__ import annotations

import torch

from .parameters import mean_over_filters
from .registry import Criterion, register


@register("magnitude")
class Magnitude(Criterion):
    """The L1 norm of each channel's filter, averaged over an atom's channels and the layers that make them.

    The filters are the slices along the first dimension of weights (the second for transposed convolutions). The score
    of a residual stream is therefore the mean over all layers that add to it.
    """

    def scores(self) -> dict[str, torch.Tensor]:
        return {g.name: mean_over_filters(self.model, g, lambda w: w.abs().sum(1)) for g in self.groups}
