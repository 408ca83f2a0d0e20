"""Sparsity training: hooks that push channels towards zero before pruning, as some compared methods require.

Each hook adds the gradient of a penalty to the weights' gradients, in every step until the last pruning. Only channels
that may be cut are penalised; they are found again after each pruning. Hooks that read gradients, such as Accumulate,
must come before these hooks. Gradients are clipped afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from detectron2.engine.hooks import HookBase
from torch import nn

from ..criteria.depgraph import coupled_weights, group_norms
from ..criteria.parameters import trained_norm_layers
from ..structure.groups import Group
from ..training.schedule import Schedule
from .registry import HOOKS, session, unwrapped


class _Penalty(HookBase):
    def __init__(self, cfg):
        self.weight, self.schedule = cfg.SIRFP.SPARSITY.WEIGHT, Schedule.from_config(cfg)
        self.last = self.schedule.iterations[-1] if self.schedule.prunes else self.schedule.end

    def before_step(self) -> None:
        if self.trainer.iter < self.last:
            session(self.trainer).find()

    def after_backward(self) -> None:
        if self.trainer.iter < self.last:
            self.add(unwrapped(self.trainer.model), session(self.trainer).find().groups)

    def add(self, model: nn.Module, groups: Iterable[Group]) -> None:
        raise NotImplementedError


@HOOKS.register()
class SlimmingPenalty(_Penalty):
    """L1 penalty on the scales of norm layers (Network Slimming, Liu et al. 2017, section 3), for `slimming`.

    SIRFP.SPARSITY.WEIGHT is the paper's lambda (1e-4 or 1e-5 in the paper).
    """

    def add(self, model: nn.Module, groups: Iterable[Group]) -> None:
        add_slimming_penalty(model, groups, self.weight)


@HOOKS.register()
class GroupRegularization(_Penalty):
    """Group penalty, stronger for smaller channels (DepGraph, Fang et al. 2023, section 3.3), for `depgraph`.

    SIRFP.SPARSITY.GROWTH is the paper's alpha (4 in the paper).
    """

    def __init__(self, cfg):
        super().__init__(cfg)
        self.growth = cfg.SIRFP.SPARSITY.GROWTH

    def add(self, model: nn.Module, groups: Iterable[Group]) -> None:
        add_group_penalty(model, groups, self.weight, self.growth)


@torch.no_grad()
def add_slimming_penalty(model: nn.Module, groups: Iterable[Group], weight: float) -> None:
    """Adds `weight * sign(gamma)` to the gradients of the scales gamma of each group's norm layers.

    If several groups share a norm layer, each group penalises its own channels. Frozen scales, which have no gradient,
    are skipped.
    """
    for group in groups:
        for layer in trained_norm_layers(model, group):
            gamma = model.get_parameter(f"{layer.module}.weight")
            if gamma.grad is not None:
                index = torch.as_tensor(layer.index, device=gamma.device).flatten()
                gamma.grad[index] += weight * gamma[index].sign()


@torch.no_grad()
def add_group_penalty(model: nn.Module, groups: Iterable[Group], weight: float, growth: float) -> None:
    """Adds `weight * strength * w` to the gradient of each coupled weight w of a channel.

    This is the gradient of the penalty `weight * strength * I / 2`. I is the squared norm of all coupled weights of the
    channel. `strength = 2 ** (growth * (max I - I) / (max I - min I))` is 1 for the group's largest channel and
    `2 ** growth` for its smallest; it is treated as a constant.
    """
    for group in groups:
        norms = group_norms(model, group)
        spread = norms.max() - norms.min()
        strength = torch.exp2(growth * (norms.max() - norms) / spread.clamp(min=torch.finfo(norms.dtype).tiny))
        for tensor, piece in coupled_weights(model, group):
            if tensor.grad is None:
                continue
            index = torch.as_tensor(piece.index, device=tensor.device)
            along = tensor.new_zeros(tensor.shape[piece.dim])
            along[index] = strength.to(along)[:, None].expand(index.shape)
            shape = [-1 if d == piece.dim else 1 for d in range(tensor.dim())]
            tensor.grad.addcmul_(tensor, along.view(shape), value=weight)
