"""Sparsity training: hooks that push channels towards zero before they are cut, as the rivals' methods ask for.

Each adds the gradient of a penalty once a step's gradients are ready, until the last pruning, on the channels that may
be cut: after a pruning these are found again. Hooks that look at gradients come before them, clipping after.
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
        self.last = self.schedule.iterations[-1] if self.schedule.keep.share < 1 else self.schedule.end

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
    """L1 on the scales of norm layers (Network Slimming, Liu et al. 2017, section 3), for `slimming`.

    SIRFP.SPARSITY.WEIGHT is the paper's lambda (1e-4 or 1e-5 there).
    """

    def add(self, model: nn.Module, groups: Iterable[Group]) -> None:
        add_slimming_penalty(model, groups, self.weight)


@HOOKS.register()
class GroupRegularization(_Penalty):
    """The group penalty that grows as a channel shrinks (DepGraph, Fang et al. 2023, section 3.3), for `depgraph`.

    SIRFP.SPARSITY.GROWTH is the paper's alpha (4).
    """

    def __init__(self, cfg):
        super().__init__(cfg)
        self.growth = cfg.SIRFP.SPARSITY.GROWTH

    def add(self, model: nn.Module, groups: Iterable[Group]) -> None:
        add_group_penalty(model, groups, self.weight, self.growth)


@torch.no_grad()
def add_slimming_penalty(model: nn.Module, groups: Iterable[Group], weight: float) -> None:
    """Adds `weight * sign(gamma)` to the gradients of the scales of norm layers that a group runs through.

    A layer that several groups share gets it on the channels of each; a scale without a gradient (frozen) gets none.
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

    It is the gradient of half of `weight * strength * I`, I being the channel's squared norm over all coupled weights
    and `strength = 2 ** (growth * (max I - I) / (max I - min I))`, taken as constant: from 1 for the group's largest
    channel to `2 ** growth` for its smallest.
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
