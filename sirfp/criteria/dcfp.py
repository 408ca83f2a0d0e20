"""DCFP: the equalization importance criterion (EIC), as its authors' code computes it.

Wang et al., Distribution Calibrated Filter Pruning for Semantic Segmentation, IEEE TCSVT 2024.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import torch
from torch import nn

from ..structure.groups import Group, Slice
from .gradients import GradientCriterion
from .options import Within
from .parameters import filters, rows, trained_norm_layers
from .registry import register


@register("dcfp")
class DCFP(GradientCriterion):
    """The moving average of |dL/dgamma|, updated only by gradients that have the sign of gamma.

    Such a gradient makes |gamma| smaller. Gradients of the opposite sign, mostly of classes with many pixels, are left
    out. The average starts at 0, as in the authors' code, so it stays low for a channel that seldom has such gradients.
    If a group runs through several norm layers, the score is the mean over them, and over the channels of an atom.

    A group may have no trainable gamma (FrozenBN, or no norm). Then a gate of value 1, multiplied with each filter, is
    used in place of gamma; its gradient is the sum of gradient * weight over the filter. A group without gradients is
    pruned last.

    Args:
        model: the model.
        groups: its channel groups.
        seed: not used.
        ema: decay of the moving average over iterations.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Iterable[Group],
        *,
        seed: int = 0,
        ema: Annotated[float, Within(0, 1, "[)")] = 0.99,
    ):
        super().__init__(model, groups, seed=seed)
        self.ema = ema
        tensors = dict(model.named_parameters())
        self._gates: dict[str, tuple[nn.Parameter, int]] = {}
        self._places: dict[tuple[str, int], str] = {}  # {(tensor, dimension): name of the gates}
        self._members: dict[str, list[Slice]] = {}
        for group in self.groups:
            layers = trained_norm_layers(model, group)
            members = [Slice(f"{layer.module}.weight", 0, layer.index) for layer in layers] or filters(model, group)
            self._members[group.name] = [p for p in members if p.tensor in tensors]
            for piece in self._members[group.name]:
                tensor, place = tensors[piece.tensor], (piece.tensor, piece.dim)
                # One tensor may have gates in two dimensions, for two groups.
                free = piece.tensor if piece.tensor not in self._gates else f"{piece.tensor} {piece.dim}"
                name = self._places.setdefault(place, free)
                self._gates[name] = tensor, piece.dim
                self._start(name, tensor.shape[piece.dim])

    @torch.no_grad()
    def step(self) -> None:
        for name, (weight, dim) in self._gates.items():
            if weight.grad is None:
                continue
            gradient, gate = weight.grad.float(), weight.float()
            if weight.dim() > 1:
                others = [d for d in range(weight.dim()) if d != dim]
                gradient, gate = (gradient * gate).sum(others), gate.new_ones(())
            moves = self._count(name, gradient) & (gradient * gate > 0)
            average = self.sums[name]
            average += torch.where(moves, (gradient.abs() - average) * (1 - self.ema), 0)

    def scores(self) -> dict[str, torch.Tensor]:
        result = {}
        for name, members in self._members.items():
            gates = [(self._places[p.tensor, p.dim], p.index) for p in members]
            pieces = [Slice(place, 0, index) for place, index in gates if self.counts[place]]
            seen = [rows(self.sums[piece.tensor], piece).mean((1, 2)) for piece in pieces]
            result[name] = torch.stack(seen).mean(0) if seen else None
        return self._whole(result)
