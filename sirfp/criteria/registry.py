"""The registry of criteria and what a criterion is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ..errors import InputError, near
from ..structure.groups import Feature, Group
from ..tracing.registry import Registry
from .options import Option, options_of


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

    One that looks at features names them (`features`) and gets each module's output (`observe`) while the model runs;
    one that looks at gradients reads them off the model's parameters in `step`. `sirfp.criteria.observer` attaches it.

    Options are keyword-only parameters of a subclass's constructor (`sirfp.criteria.options`); their values are checked
    before the constructor runs.

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

    def __new__(cls, *args: Any, **options: Any) -> Criterion:
        cls.check_options({name: value for name, value in options.items() if name in cls.options()})
        return super().__new__(cls)

    def __init__(self, model: nn.Module, groups: Iterable[Group], *, seed: int = 0):
        self.model, self.groups, self.seed = model, tuple(groups), seed

    def features(self) -> tuple[Feature, ...]:
        """The features it wants to see, each module once."""
        return features_of(self.groups) if self.needs == "features" else ()

    def observe(self, feature: Feature, x: torch.Tensor) -> None:
        """Takes in one output of a feature's module, (N, C, ...) before the activation, detached."""

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
    def options(cls) -> Mapping[str, Option]:
        """Its options by name, in the order of its constructor; the base's follow where `**options` passes them on."""
        kind: Any = cls
        return options_of(kind)

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """The default of each option."""
        return {name: option.default for name, option in cls.options().items()}

    @classmethod
    def check_options(cls, options: Mapping[str, Any], called: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Checks options, before there is a model; a subclass may add checks that concern several of them.

        Args:
            options: values by name.
            called: what the user knows an option by, e.g. {"ema": "SIRFP.OPTIONS.EMA"}; its name by default.

        Returns:
            The values as the constructor takes them.

        Raises:
            InputError: it has no such option (the nearest is named), or not with this value.
        """
        called = called or {}
        for name in options:
            if name not in cls.options():
                takes, hint = ", ".join(cls.options()) or "none", near(name, cls.options())
                key = f"{called[name]}: " if name in called else ""
                raise InputError(f"{key}criterion {cls.name!r} takes no option {name!r}; it takes {takes}{hint}")
        return {name: cls.options()[name].checked(value, called.get(name, "")) for name, value in options.items()}


def features_of(groups: Iterable[Group]) -> tuple[Feature, ...]:
    """The features whose channels the groups hold, each module once."""
    return tuple({f.module: f for group in groups for f in group.features}.values())


def described() -> list[tuple[str, str, str, str, str]]:
    """Every option of every criterion, for tables and help.

    Returns:
        (name, criteria, default, values, meaning); criteria that share an option share a row.
    """
    rows: dict[tuple[str, str, str, str], list[str]] = {}
    for criterion, cls in CRITERIA.items():
        for o in cls.options().values():
            rows.setdefault((o.name, _text(o.default), o.values, o.meaning), []).append(criterion)
    return [
        (name, ", ".join(criteria), default, values, meaning)
        for (name, default, values, meaning), criteria in rows.items()
    ]


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def build_criterion(
    name: str, model: nn.Module, groups: Iterable[Group], *, seed: int = 0, **options: Any
) -> Criterion:
    """Builds a criterion by name.

    Raises:
        InputError: there is none of that name (the known are listed), or it takes no such option or value.
    """
    cls = CRITERIA.find(name)
    return cls(model, groups, seed=seed, **cls.check_options(options))
