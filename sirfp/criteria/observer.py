"""Passes features from a running model to a criterion."""

from __future__ import annotations

import torch
from torch import nn

from ..network.features import watch
from ..structure.groups import Feature
from . import Criterion

PERIOD = 5
"""A training run takes statistics in every PERIOD-th iteration. This saves time. Consecutive iterations give nearly the
same statistics, because the weights change little between them."""


class Observer:
    """Connects a criterion to a model's forward passes. Use it as a context manager, or call `attach` and `detach`.

    Args:
        model: the model.
        criterion: receives the features (`observe`) and the end of each iteration (`step`).
        period: only every `period`-th iteration is used, for 1 / period of the cost.
        training: True to use only passes in training mode, so that an evaluation between two steps does not count.
    """

    def __init__(self, model: nn.Module, criterion: Criterion, period: int = 1, training: bool = False):
        self.model, self.criterion, self.period, self.training = model, criterion, period, training
        self.iteration = 0
        self._handles: list = []

    @property
    def looking(self) -> bool:
        """True if this iteration is used."""
        return self.iteration % self.period == 0

    def attach(self) -> None:
        """Begins to observe; does nothing if it is attached."""
        if self._handles:
            return
        for feature in self.criterion.features():
            self._handles.append(watch(self.model.get_submodule(feature.module), self._see(feature)))

    def _see(self, feature: Feature):
        def see(x: torch.Tensor) -> None:
            if self.looking and (self.model.training or not self.training):
                x = x.detach()
                if x.dim() == 1:  # of one vector, such as the input of a network that makes weights
                    x = x[None]
                self.criterion.observe(feature, x if feature.dim == 1 else x.movedim(feature.dim, 1))

        return see

    def step(self) -> None:
        """Ends an iteration."""
        if self.looking:
            self.criterion.step()
        self.iteration += 1

    def detach(self) -> None:
        while self._handles:
            self._handles.pop().remove()

    def __enter__(self) -> Observer:
        self.attach()
        return self

    def __exit__(self, *exc) -> None:
        self.detach()
