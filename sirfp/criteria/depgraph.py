"""DepGraph: the norm of all weights that vanish with a channel (Fang et al., DepGraph: Towards Any Structural Pruning,
CVPR 2023, section 3.3 on group-level pruning)."""

from __future__ import annotations

import torch
from torch import nn

from ..structure.groups import Group, Slice
from .parameters import sums
from .registry import Criterion, register


@register("depgraph")
class DepGraph(Criterion):
    """The squared L2 norm of all coupled weights of a channel, relative to the mean of its group.

    Coupled are the filters that make a channel, the scales of its norm layers and the weights that read it; biases
    are not, as in the authors' code (Torch-Pruning, whose default is the mean too). The method trains with a penalty
    on these norms first: the hook `GroupRegularization`. Scales that are buffers (FrozenBN) do not count.
    """

    def scores(self) -> dict[str, torch.Tensor]:
        result = {}
        for group in self.groups:
            norms = group_norms(self.model, group)
            result[group.name] = norms / norms.mean().clamp(min=torch.finfo(norms.dtype).tiny)
        return result


def coupled_weights(model: nn.Module, group: Group) -> list[tuple[nn.Parameter, Slice]]:
    """The parameters whose slices vanish with a group's channels, biases left out unless there is nothing else."""
    tensors = dict(model.named_parameters())
    own = [(tensors[piece.tensor], piece) for piece in group.slices if piece.tensor in tensors]
    return [(tensor, piece) for tensor, piece in own if not piece.tensor.endswith("bias")] or own


def group_norms(model: nn.Module, group: Group) -> torch.Tensor:
    """The sum over a group's coupled weights of the squared L2 norm of each channel's part, `(size,)` in float32."""
    found = [sums(tensor.detach().float().square(), piece) for tensor, piece in coupled_weights(model, group)]
    return torch.stack(found).sum(0) if found else torch.zeros(group.size)
