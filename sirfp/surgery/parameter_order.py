"""Puts the biases that a cut has given to layers where an optimizer made of the cut model has them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


def in_order_of(model: nn.Module, optimizer: torch.optim.Optimizer, modules: Iterable[str]) -> None:
    """Moves new biases, within their groups, to their places in the order of the model's parameters.

    Optimizers number their parameters in the order of their groups. A state then loads into an optimizer that was made
    of the cut model. Groups whose other parameters are in another order stay as they are.

    Args:
        model: the cut model.
        optimizer: its optimizer.
        modules: names of the modules that were given a bias.
    """
    for inner in vars(optimizer).values():  # a wrapper holds another optimizer
        if isinstance(inner, torch.optim.Optimizer):
            in_order_of(model, inner, modules)
    places = {id(parameter): place for place, parameter in enumerate(model.parameters())}
    given = {id(model.get_submodule(name).bias) for name in modules if name in dict(model.named_modules())}
    for group in optimizer.param_groups:
        own = group["params"]
        if not all(id(parameter) in places for parameter in own):
            continue
        before = [places[id(parameter)] for parameter in own if id(parameter) not in given]
        if before == sorted(before):
            own.sort(key=lambda parameter: places[id(parameter)])
