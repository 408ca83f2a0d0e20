"""A pruning in several steps inside a training run: what is known, what was decided, and what can be saved."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from .budget.target import Choice, Target, choose
from .channels.find import find_again, find_groups
from .criteria import build_criterion
from .criteria.observer import Observer
from .processes import agreed, average_norms
from .prune import cut, cut_to, refined
from .structure.groups import ChannelGroups
from .structure.plan import PruningPlan
from .surgery.reconstruction import Moments

logger = logging.getLogger(__name__)


class PruningSession:
    """Prunes one model step by step; every step accumulates its own statistics on the model as it is then.

    Args:
        model: the model, without a distributed wrapper; changed in place.
        example_inputs: what FLOPs are counted on.
        optimizer: its state is cut along.
        criterion: a name in the registry.
        options: the criterion's own options.
        period: look at every `period`-th iteration only.
        ignore, partitions, min_keep, round_to, bias_correction, seed: as in `sirfp.prune`.

    Attributes:
        plan: of all prunings so far.
        steps: how many they were.
        followers: models of the same structure that are cut along, e.g. an average of the weights.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        criterion: str = "sirfp",
        options: dict[str, Any] | None = None,
        period: int = 1,
        ignore: Iterable[str] = (),
        partitions: Iterable[str] = (),
        min_keep: float = 0.02,
        round_to: int = 1,
        bias_correction: bool = True,
        seed: int = 0,
    ):
        self.model, self.example_inputs, self.optimizer = model, example_inputs, optimizer
        self.criterion, self.options, self.period = criterion, dict(options or {}), period
        self.ignore, self.partitions = tuple(ignore), tuple(partitions)
        self.min_keep, self.round_to, self.bias_correction, self.seed = min_keep, round_to, bias_correction, seed
        self.plan: PruningPlan | None = None
        self.steps = 0
        self.followers: list[nn.Module] = []
        self.observer: Observer | None = None
        self.found: ChannelGroups | None = None
        self._statistics: dict[str, Any] | None = None

    def find(self) -> ChannelGroups:
        """The groups of the model as it is, found once between two prunings."""
        if self.found is None:
            self.found = find_groups(self.model, self.example_inputs, self.ignore)
        return self.found

    def look(self) -> Observer:
        """Attaches the criterion to the model, with the statistics of a resumed run if there are any."""
        if self.observer is None:
            scorer = build_criterion(self.criterion, self.model, self.find().groups, seed=self.seed, **self.options)
            self.observer = Observer(self.model, scorer, self.period, training=True)
            if self._statistics:
                scorer.load_state_dict(self._statistics["criterion"])
                self.observer.iteration = self._statistics["iteration"]
                self._statistics = None
            self.observer.attach()
        return self.observer

    def agree(self) -> None:
        """Gives every process what all of them have seen: the statistics so far, and those of the norms."""
        for model in (self.model, *self.followers):
            average_norms(model)
        if self.observer is not None:
            self.observer.criterion.reduce()

    def prune(self, target: Target, moments: Moments | None = None) -> PruningPlan:
        """Prunes to a budget, a share of the *dense* model's, on what was seen since the last pruning.

        Every process of a distributed run sees the same statistics and cuts the same channels.

        Args:
            target: the budget.
            moments: of what the model's layers read, for the reconstruction of what they lose.

        Returns:
            The plan of all steps together, in terms of the dense model.
        """
        observer, found = self.look(), self.find()
        observer.detach()
        if observer.criterion.left_out:
            logger.warning(
                "%d images had features that are not finite; the statistics are without them",
                observer.criterion.left_out,
            )
        self.agree()

        def decide() -> Choice:
            choice = choose(
                self.model, self.example_inputs, found, observer.criterion.scores(), target, self.plan,
                partitions=self.partitions, min_keep=self.min_keep, round_to=self.round_to,
                cost_exponent=observer.criterion.cost_exponent,
            )  # fmt: skip
            return replace(choice, keep=refined(found, choice.keep, observer.criterion))

        choice = agreed(decide)
        found = find_again(self.model, self.example_inputs, self.ignore, found)
        making_up = {"bias_correction": self.bias_correction, "moments": moments}
        plan = cut_to(self.model, found, choice, self.criterion, optimizer=self.optimizer, **making_up)
        for other in self.followers:
            same = find_again(other, self.example_inputs, self.ignore, found)
            cut(other, same, choice.keep, self.criterion, **making_up)
        self.plan = self.plan.then(plan) if self.plan else plan
        self.steps += 1
        self.observer = self.found = None
        return self.plan

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on: the plan as text, the step, the statistics so far."""
        state: dict[str, Any] = {"steps": self.steps, "plan": self.plan.to_json() if self.plan else ""}
        if self.observer is not None:
            state["statistics"] = {
                "criterion": self.observer.criterion.state_dict(),
                "iteration": self.observer.iteration,
            }
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a state into a session whose model was cut by its plan already."""
        self.steps = state["steps"]
        self.plan = PruningPlan.from_json(state["plan"]) if state["plan"] else None
        self._statistics = state.get("statistics")
        self.found = None
