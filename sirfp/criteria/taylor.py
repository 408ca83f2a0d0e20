"""Taylor-FO: the change of the loss without a channel, to first order.

Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019, section 3. The gate is after batch
normalisation, which their experiments favour.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from ..structure.groups import Group, Slice
from .gradients import GradientCriterion
from .parameters import biases, filters, sums, trained_norm_layers
from .registry import register


@register("taylor")
class Taylor(GradientCriterion):
    """The mean over iterations of (the sum over a channel's weights of gradient * weight)^2.

    The weights are gamma and beta of the norm layers that a group runs through. Gradient times weight, summed over
    both, is the derivative with respect to a gate on the layer's output. In a group without a trainable gamma
    (FrozenBN, or no norm) the weights are its filters and their biases.

    If several layers share channels, their sums are added before they are squared, as the paper does for weights that
    are removed together. So are the sums of an atom's channels; the square is then divided by their number, because a
    ranking compares channels. A group without gradients (layers frozen in training) is pruned last.
    """

    def __init__(self, model: nn.Module, groups: Iterable[Group], *, seed: int = 0):
        super().__init__(model, groups, seed=seed)
        tensors = dict(model.named_parameters())
        self._parts: dict[str, list[tuple[nn.Parameter, Slice]]] = {}
        for group in self.groups:
            layers = trained_norm_layers(model, group)
            pieces = [
                Slice(f"{layer.module}.{name}", 0, layer.index) for layer in layers for name in ("weight", "bias")
            ] or filters(model, group) + biases(model, group)
            self._parts[group.name] = [(tensors[p.tensor], p) for p in pieces if p.tensor in tensors]
            self._start(group.name, group.size)

    @torch.no_grad()
    def step(self) -> None:
        for group in self.groups:
            parts = [(w.grad, w, piece) for w, piece in self._parts[group.name] if w.grad is not None]
            if parts:
                square = torch.stack([_carried(grad, w, piece) for grad, w, piece in parts]).sum(0).square()
                finite = self._count(group.name, square)
                self.sums[group.name] += torch.where(finite, square, 0)

    def scores(self) -> dict[str, torch.Tensor]:
        return self._whole({n: s / self.counts[n] if self.counts[n] else None for n, s in self.sums.items()})


def _carried(gradient: torch.Tensor, weight: torch.Tensor, piece: Slice) -> torch.Tensor:
    """Returns the sum of gradient * weight of each atom, divided by the root of its number of channels, (size,)."""
    return sums(gradient.float() * weight.float(), piece) / piece.index.shape[1] ** 0.5
