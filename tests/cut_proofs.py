"""Proves a cut of a small network: equal to the masked network, through a plan as text, and trainable."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import nn

from sirfp.channels import find_groups
from sirfp.network.forward import call, tensors
from sirfp.prune import plan_for
from sirfp.structure.groups import ChannelGroups, Group
from sirfp.structure.plan import PruningPlan
from sirfp.surgery import apply
from sirfp.verify import compare, mask


def half_of(found: ChannelGroups, seed: int, groups: list[Group]) -> np.ndarray:
    """Returns the atoms to keep: about half of each of the given groups, all of the others."""
    keep, generator = np.ones(found.atoms, dtype=bool), np.random.default_rng(seed)
    for group in groups:
        keep[found.spans[group.name]][generator.permutation(group.size)[: group.size // 2]] = False
    return keep


def prove(model: nn.Module, inputs: Any, *, exact: bool = True) -> ChannelGroups:
    """Cuts half of every group and asserts what a right cut must do.

    - The cut network equals the masked one, in float64, at two choices of channels; only groups without a statistic
      over their channels are cut for this, unless `exact` is False, when nothing is compared.
    - A plan as text cuts a dense copy to the same network.
    - Its number of parameters is the one that was said.
    - It takes a training step, on another number of inputs.
    - Cut again, both plans joined cut the dense network to the same.

    Returns:
        The groups of the dense network.
    """
    model.eval()
    with torch.no_grad():
        for parameter in model.parameters():  # zeros at the start of training would hide errors
            parameter.add_(0.1 * torch.randn_like(parameter))
    found = find_groups(model, inputs)
    assert found.groups
    wide = torch.utils._pytree.tree_map(lambda t: t.double() if t.is_floating_point() else t, inputs)
    dense = copy.deepcopy(model)
    for seed in (0, 1) if exact else ():
        plan = plan_for(found, half_of(found, seed, [g for g in found if not g.inexact]))
        cut, masked = copy.deepcopy(dense).double(), copy.deepcopy(dense).double()
        apply(cut, plan)
        mask(masked, plan)
        difference = compare(masked, cut, wide)
        assert not difference.problem and difference.relative < 1e-10, difference
    plan = plan_for(found, half_of(found, 2, list(found)))
    cut, loaded = copy.deepcopy(dense), copy.deepcopy(dense)
    apply(cut, plan)
    apply(loaded, PruningPlan.from_json(plan.to_json()))
    assert compare(cut, loaded, inputs).relative == 0
    assert sum(p.numel() for p in cut.parameters()) == plan.params[1] < plan.params[0]
    again = find_groups(loaded, inputs)
    if again.groups:
        later = plan_for(again, half_of(again, 3, list(again)))
        both = copy.deepcopy(dense)
        apply(loaded, later)
        apply(both, plan.then(later))
        assert compare(loaded, both, inputs).relative == 0
    train(cut, inputs)
    return found


def train(model: nn.Module, inputs: Any) -> None:
    """Takes the gradients of a loss on twice the inputs, and asserts that each parameter has one of its own shape."""
    twice = torch.utils._pytree.tree_map(lambda t: torch.cat([t, t]), inputs)
    sum(t.square().mean() for _, t in tensors(call(model.train(), twice)) if t.requires_grad).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.shape == parameter.shape, name
