"""The base class of criteria, and their registry."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from inspect import signature
from typing import Any

import torch
from torch import nn

from ..errors import InputError, near
from ..structure.groups import Feature, Group
from ..tracing.registry import Registry
from .options import Option, options_of

NEEDS = ("weights", "features", "gradients", "moments")
"""Values of `Criterion.needs`."""


class Criteria(Registry[type["Criterion"]]):
    """The registry of criteria. Iterating gives the names, so that scripts can write `sorted(CRITERIA)`."""

    def __init__(self) -> None:
        super().__init__("criterion")

    def _do_register(self, name: str, obj: Any) -> None:
        if not (isinstance(obj, type) and issubclass(obj, Criterion)):
            raise InputError(f"criterion {name!r} must be a subclass of sirfp.criteria.Criterion, got {obj!r}")
        if obj.needs not in NEEDS:
            known, hint = ", ".join(NEEDS), near(obj.needs, NEEDS)
            raise InputError(f"criterion {name!r}: needs must be one of {known}, got {obj.needs!r}{hint}")
        super()._do_register(name, obj)
        obj.name = name

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())


CRITERIA = Criteria()


def register(name: str) -> Callable[[type], type]:
    """Registers a subclass of `Criterion` under a name, as `CRITERIA.register` does."""
    return CRITERIA.register(name)


class Criterion:
    """Scores the channels of a model's groups; channels with the lowest scores are removed first.

    A criterion that uses features lists them (`features`) and receives each module's output (`observe`) while the model
    runs. A criterion that uses gradients reads them from the model's parameters in `step`. `sirfp.criteria.observer`
    connects a criterion to the model.

    Options are keyword-only parameters of a subclass's constructor (`sirfp.criteria.options`); their values are checked
    before the constructor runs.

    Args:
        model: the model.
        groups: its channel groups.
        seed: the seed of random numbers.

    Attributes:
        needs: the data that scores need: only "weights", "features" of forward passes, "gradients" of losses, or
            "moments" of layers' inputs, which are taken right before a cut.
        cost_exponent: channels are ranked by their score divided by their cost to this power: 0 ranks by score alone, 1
            by score per multiply-add (`sirfp.budget.allocation.worth_for_cost`).
        widths: how the number of channels that each group keeps is decided if the user does not say: "ranking" by
            scores, or "curves" of the measured loss (`sirfp.budget.curves`).
    """

    name: str = ""
    needs: str = "weights"
    cost_exponent: float = 0.0
    widths: str = "ranking"

    def __new__(cls, *args: Any, **options: Any) -> Criterion:
        cls.check_options({name: value for name, value in options.items() if name in cls.options()})
        return super().__new__(cls)

    def __init__(self, model: nn.Module, groups: Iterable[Group], *, seed: int = 0):
        self.model, self.groups, self.seed = model, tuple(groups), seed

    def features(self) -> tuple[Feature, ...]:
        """Returns the features that the criterion observes, each module once."""
        return features_of(self.groups) if self.needs == "features" else ()

    def observe(self, feature: Feature, x: torch.Tensor) -> None:
        """Receives one output of a feature's module, (N, C, ...), before the activation and detached."""

    def step(self) -> None:
        """Ends an iteration. It is called after `backward`, if there is one."""

    def scores(self) -> dict[str, torch.Tensor]:
        """Returns the worth of each channel, {group name: (size,)}, comparable between groups; subclasses must."""
        self.check_complete()
        raise NotImplementedError

    def orders(self) -> dict[str, torch.Tensor]:
        """Returns each group's channels from first to last removed, {group name: (size,) of int64}."""
        return {name: score.argsort(stable=True).cpu() for name, score in self.scores().items()}

    def refine(self, group: Group, kept: torch.Tensor) -> torch.Tensor:
        """Returns a better choice of equally many channels of a group, if the criterion knows one.

        Args:
            group: one of the criterion's groups.
            kept: the channels chosen by `scores`, (k,) int64, ascending.

        Returns:
            The channels to keep, (k,) int64, ascending.
        """
        return kept

    @property
    def left_out(self) -> int:
        """Number of images of this process that were skipped because their features were not finite."""
        return 0

    def state_dict(self) -> dict[str, Any]:
        """Returns the statistics so far: tensors and plain numbers only."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the statistics that `state_dict` returned."""

    def reduce(self) -> None:
        """Combines the statistics of all processes; does nothing on a single process."""

    @classmethod
    def options(cls) -> Mapping[str, Option]:
        """Returns the options by name, in the order of the constructor.

        If the constructor takes `**options`, the options of the base class follow.
        """
        kind: Any = cls
        return options_of(kind)

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Returns the default of each option, {name: value}."""
        return {name: option.default for name, option in cls.options().items()}

    @classmethod
    def check_complete(cls) -> None:
        """Raises InputError if the criterion lacks the method `scores`; a run calls it before it begins."""
        if cls.scores is Criterion.scores:
            hint = near("scores", [name for name in vars(cls) if not name.startswith("_")])
            raise InputError(
                f"criterion {cls.name!r} has no method scores, which returns {{group name: (channels,)}}{hint}"
            )

    @classmethod
    def check_options(cls, options: Mapping[str, Any], called: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Checks options, before there is a model. A subclass may add checks that concern several options.

        Args:
            options: values by name.
            called: names of options in messages, e.g. {"ema": "SIRFP.OPTIONS.EMA"}; the option's own name by default.

        Returns:
            The values as the constructor takes them.

        Raises:
            InputError: the criterion has no such option (the message names the nearest), or the value is not allowed.
        """
        called = called or {}
        for name in options:
            if name not in cls.options():
                takes, hint = ", ".join(cls.options()) or "none", near(name, cls.options())
                key = f"{called[name]}: " if name in called else ""
                raise InputError(f"{key}criterion {cls.name!r} takes no option {name!r}; it takes {takes}{hint}")
        return {name: cls.options()[name].checked(value, called.get(name, "")) for name, value in options.items()}


def refuse_misspelt(criterion: str, options: Iterable[str], function: Callable[..., Any], called: str) -> None:
    """Raises InputError for an option that is a misspelt argument of a function, which passes options to a criterion.

    Args:
        criterion: name of the criterion.
        options: names of the options given.
        function: the function.
        called: its name in messages.
    """
    arguments = signature(function).parameters
    for name in options:
        if name not in CRITERIA.find(criterion).options() and near(name, arguments):
            raise InputError(f"{called} has no argument {name!r}{near(name, arguments)}")


def features_of(groups: Iterable[Group]) -> tuple[Feature, ...]:
    """Returns the features whose channels the groups hold, each module once."""
    return tuple({f.module: f for group in groups for f in group.features}.values())


def described() -> list[tuple[str, str, str, str, str]]:
    """Returns every option of every criterion, for tables and help.

    Returns:
        (name, criteria, default, values, meaning) of each option. Criteria that share an option share a row.
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
        InputError: no criterion has this name (the message lists the names), or an option or its value is not allowed.
    """
    cls = CRITERIA.find(name)
    return cls(model, groups, seed=seed, **cls.check_options(options))
