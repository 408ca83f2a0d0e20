"""L1 norm of a channel's filters (Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017)."""

from __future__ import annotations

import torch

from .registry import Criterion, register


@register("magnitude")
class Magnitude(Criterion):
    """The mean, over the layers that make a group's channels, of the L1 norm of each channel's filter.

    The filters are the slices along the first dimension of weights (the second of transposed
    convolutions), so a residual stream's score is the mean over all layers that add to it.
    """

    def scores(self) -> dict[str, torch.Tensor]:
        tensors = dict(self.model.named_parameters())
        result = {}
        for group in self.groups:
            norms = []
            for piece in group.slices:
                weight = tensors.get(piece.tensor)
                if weight is None or weight.dim() < 2 or piece.dim != self._made_along(piece.tensor):
                    continue
                index = torch.as_tensor(piece.index, device=weight.device)
                others = [d for d in range(weight.dim()) if d != piece.dim]
                norms.append(weight.detach().abs().sum(others)[index].sum(1))
            for piece in group.slices if not norms else ():  # a group of vectors only
                if piece.tensor in tensors and piece.dim == 0:
                    vector = tensors[piece.tensor].detach().abs().float()
                    norms.append(vector.reshape(len(vector), -1).sum(1)[torch.as_tensor(piece.index)].sum(1))
            result[group.name] = torch.stack(norms).mean(0).float() if norms else torch.zeros(group.size)
        return result

    def _made_along(self, name: str) -> int:
        module = self.model.get_submodule(name.rpartition(".")[0])
        return 1 if getattr(module, "transposed", False) else 0
