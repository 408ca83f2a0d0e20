"""The registry of criteria and what a criterion is."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from ..structure.groups import Feature, Group
from ..tracing.registry import Registry


class Criteria(Registry[type["Criterion"]]):
    """The registry of criteria. Iterating gives names, as scripts have `sorted(CRITERIA)`."""

    def __init__(self) -> None:
        super().__init__("criterion")

    def _do_register(self, name: str, obj: type[Criterion]) -> None:
        super()._do_register(name, obj)
        obj.name = name

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())


CRITERIA = Criteria()


def register(name: str) -> Callable[[type], type]:
    """Registers a subclass of `Criterion` under a name, as `CRITERIA.register` does."""
    return CRITERIA.register(name)


class Criterion:
    """Scores the channels of a model's groups; the lowest go first.

    One that looks at features names them (`features`) and is shown them (`observe`) while the model runs;
    one that looks at gradients reads them off the model's parameters in `step`. `sirfp.criteria.observer` does the
    watching.

    Args:
        model: the model.
        groups: its channel groups.
        seed: of what is random.

    Attributes:
        needs: what it takes to score: "weights" alone, "features" of forward passes, or "gradients" of losses.
        cost_exponent: channels are ranked by their score over what they cost to the power of this: 0, by score alone;
            1, by score for each multiply-add (`sirfp.budget.allocation.worth_for_cost`).
    """

    name: str = ""
    needs: str = "weights"
    cost_exponent: float = 0.0

    def __init__(self, model: nn.Module, groups: Iterable[Group], *, seed: int = 0):
        self.model, self.groups, self.seed = model, tuple(groups), seed

    def features(self) -> tuple[Feature, ...]:
        """The features it wants to see, each module once."""
        return features_of(self.groups) if self.needs == "features" else ()

    def observe(self, feature: Feature, x: torch.Tensor) -> None:
        """Is shown one output of a feature's module, (N, C, ...) before the activation, detached."""

    def step(self) -> None:
        """An iteration ends (after `backward`, where there is one)."""

    def scores(self) -> dict[str, torch.Tensor]:
        """The worth of each channel, {group name: (size,)}; comparable between groups."""
        raise NotImplementedError

    def refine(self, group: Group, kept: torch.Tensor) -> torch.Tensor:
        """A better choice of as many channels of a group than its best-scored, where the criterion knows one.

        Args:
            group: one of its groups.
            kept: (k,) int64, the channels that stay by `scores`, ascending.

        Returns:
            (k,) int64, ascending.
        """
        return kept

    @property
    def left_out(self) -> int:
        """Images of this process that were left out of the statistics, as they gave features that are not finite."""
        return 0

    def state_dict(self) -> dict[str, Any]:
        """Statistics so far: tensors and plain numbers only."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores statistics."""

    def reduce(self) -> None:
        """Joins the statistics of all processes; a no-op on one."""

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """The options of its constructor beside those of every criterion, and of its base's where it passes them on."""
        parameters = inspect.signature(cls.__init__).parameters.values()
        own = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "seed"}
        passes = any(p.kind is p.VAR_KEYWORD for p in parameters)
        return own | (cls.__base__.defaults() if passes else {})

    @classmethod
    def options(cls) -> tuple[str, ...]:
        """Names of `defaults`."""
        return tuple(cls.defaults())


def features_of(groups: Iterable[Group]) -> tuple[Feature, ...]:
    """The features that show the groups' channels, each module once."""
    return tuple({f.module: f for group in groups for f in group.features}.values())


def build_criterion(
    name: str, model: nn.Module, groups: Iterable[Group], *, seed: int = 0, **options: Any
) -> Criterion:
    """Builds a criterion by name.

    Raises:
        InputError: if there is none of that name (the known are listed) or it takes no such option.
    """
    cls = CRITERIA.find(name)
    unknown = sorted(set(options) - set(cls.options()))
    if unknown:
        takes = ", ".join(cls.options()) or "none"
        raise InputError(f"criterion {name!r} takes no option {unknown[0]!r}; it takes {takes}")
    return cls(model, groups, seed=seed, **options)
