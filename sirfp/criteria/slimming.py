"""Network Slimming: the scale of a channel's norm layer.

Liu et al., Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017, section 3.
"""

from __future__ import annotations

import torch

from .parameters import mean_over_filters, norm_layers, scale
from .registry import Criterion, register


@register("slimming")
class Slimming(Criterion):
    """The mean of |gamma| over the norm layers that a group runs through, and over the channels of an atom.

    The method first trains with an L1 penalty on gamma: the hook `SlimmingPenalty`. A gamma that is a buffer (FrozenBN)
    is used too, although the penalty does not change it.

    A group without norm layers that scale channels is scored by the L2 norm of its filters, averaged in the same way
    over the layers that make the channels. Like |gamma| after a norm, this is the standard deviation of the channel, if
    the inputs have unit variance.
    """

    def scores(self) -> dict[str, torch.Tensor]:
        result = {}
        for group in self.groups:
            scales = []
            for layer in norm_layers(self.model, group):
                gamma = scale(self.model, layer).detach().float().abs()
                scales.append(gamma[torch.as_tensor(layer.index, device=gamma.device)].mean(1))
            if scales:
                result[group.name] = torch.stack(scales).mean(0)
            else:
                result[group.name] = mean_over_filters(self.model, group, lambda w: w.norm(dim=1))
        return result
