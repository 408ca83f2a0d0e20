"""FPGM: the distance of a filter from the geometric median of its layer.

He et al., Filter Pruning via Geometric Median for Deep Convolutional Neural Networks Acceleration, CVPR 2019, section
3.3.
"""

from __future__ import annotations

import torch

from .parameters import mean_over_atoms
from .registry import Criterion, register


@register("fpgm")
class FPGM(Criterion):
    """The sum of the Euclidean distances of a channel's filter to the other filters of its group.

    The other filters can best replace the filter nearest to the geometric median. If several layers make a group's
    channels, the score is the mean over them. The distance of two atoms of several channels is the root mean square of
    their channels' distances. Norm layers are ignored.
    """

    def scores(self) -> dict[str, torch.Tensor]:
        return {g.name: mean_over_atoms(self.model, g, _distances) for g in self.groups}


def _distances(filters: torch.Tensor) -> torch.Tensor:
    channels = filters.shape[1]
    wide = filters.flatten(1).double()  # cdist subtracts products: in float32, small distances would be rounding errors
    return torch.cdist(wide, wide).fill_diagonal_(0).sum(1).div(channels**0.5).float()
