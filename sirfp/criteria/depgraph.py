"""DepGraph: the norm of all weights that are removed with a channel.

Fang et al., DepGraph: Towards Any Structural Pruning, CVPR 2023, section 3.3 on group-level pruning.
"""

from __future__ import annotations

import torch
from torch import nn

from ..structure.groups import Group, Slice
from .parameters import sums
from .registry import Criterion, register


@register("depgraph")
class DepGraph(Criterion):
    """The squared L2 norm of all coupled weights of a channel, relative to the mean of its group.

    Coupled weights are the filters that make a channel, the scales of its norm layers and the weights that read it.
    Biases are not counted, as in the authors' code (Torch-Pruning, which also divides by the mean by default). The
    method first trains with a penalty on these norms: the hook `GroupRegularization`. Scales that are buffers
    (FrozenBN) are not counted.
    """

    def scores(self) -> dict[str, torch.Tensor]:
        result = {}
        for group in self.groups:
            norms = group_norms(self.model, group)
            result[group.name] = norms / norms.mean().clamp(min=torch.finfo(norms.dtype).tiny)
        return result


def coupled_weights(model: nn.Module, group: Group) -> list[tuple[nn.Parameter, Slice]]:
    """Returns the parameters with slices of a group's channels; biases only if there are no other parameters."""
    tensors = dict(model.named_parameters())
    own = [(tensors[piece.tensor], piece) for piece in group.slices if piece.tensor in tensors]
    return [(tensor, piece) for tensor, piece in own if not piece.tensor.endswith("bias")] or own


def group_norms(model: nn.Module, group: Group) -> torch.Tensor:
    """Returns the squared L2 norm of each channel's part of the coupled weights, summed, `(size,)` in float32."""
    found = [sums(tensor.detach().float().square(), piece) for tensor, piece in coupled_weights(model, group)]
    return torch.stack(found).sum(0) if found else torch.zeros(group.size)
