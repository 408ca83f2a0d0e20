"""Prunes a model in several steps inside a training run, and keeps the state of the pruning in checkpoints.

Each step does the same as `sirfp.prune`: it finds groups, scores channels, decides and cuts. There are two differences:
the statistics come from the training batches, and all processes of the run have to cut the same channels.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from .budget.curves import measure_curves
from .budget.curves_for_budget import curves_for_budget
from .budget.decision import decide
from .budget.evidence import Evidence
from .budget.frozen import check_groups
from .budget.given_widths import with_given_widths
from .budget.limits import DEFAULT, Limits, check_count
from .budget.sensitivity import Sensitivity, sensitivities
from .budget.several_cuts import check_each, shares_of_cuts
from .budget.target import Latency, Target
from .channels.find import find_again, find_groups
from .criteria import CRITERIA, Criterion, build_criterion
from .criteria.calibration import default_criterion
from .criteria.observer import PERIOD, Observer
from .errors import InputError
from .moments import Moments
from .network.divergence import divergence_for
from .network.elsewhere import check_available
from .network.finite import check_weights
from .network.kept_memory import kept_memory
from .network.untouched import untouched
from .network.wrappers import check_same_structure, unwrapped
from .processes import average_norms, decide_once
from .reporting.progress import duration, stage
from .structure.groups import ChannelGroups
from .structure.plan import PruningPlan
from .surgery.earlier_cuts import earlier_plan, for_inputs, remember
from .surgery.plan_and_cut import cut_to

logger = logging.getLogger(__name__)
SEEDS = 1 << 31
"""Seeds are below this number: NumPy's legacy generator takes no seeds of more than 32 bits."""


class PruningSession:
    """Prunes one model step by step; every step accumulates new statistics on the current model.

    Args:
        model: the model, without a distributed wrapper; changed in place.
        example_inputs: the inputs on which FLOPs are counted.
        optimizer: the model's optimizer, whose state is cut together with the parameters; or None.
        criterion: a name in the registry of criteria; by default that of `default_criterion`.
        options: arguments of the criterion.
        period: the interval, in iterations, at which statistics are taken.
        limits: the constraints on every plan: partitions, the smallest share to keep, rounding, ignored modules, widths
            of single layers.
        bias_correction, seed, trial_device: as in `sirfp.prune`.

    Attributes:
        plan: the plan of all prunings so far, or None before the first.
        steps: the number of prunings so far.
        followers: models of the same structure that lose the same channels, e.g. a moving average of the weights.
        observer: the hooks that take statistics; None while they are not attached.
        found: the groups of the current model; None until they are needed.
        measured: the sensitivities of the groups (`sirfp.budget.sensitivity`) before each cut of the last pruning;
            empty before, or if a ranking decided the widths.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        criterion: str | None = None,
        options: dict[str, Any] | None = None,
        period: int = PERIOD,
        limits: Limits = DEFAULT,
        bias_correction: bool = True,
        seed: int = 0,
        trial_device: str | torch.device | None = None,
    ):
        self.model, self.example_inputs, self.optimizer = model, example_inputs, optimizer
        self.criterion = default_criterion() if criterion is None else criterion
        self.options, self.period = dict(options or {}), period
        self.limits, self.bias_correction, self.seed = limits, bias_correction, seed
        check_available(trial_device, "trial_device")
        check_count("seed", seed, 0)
        if seed >= SEEDS:
            raise InputError(f"seed must be below 2^31, got {seed}")
        if bias_correction not in (True, False):
            raise InputError(f"bias_correction must be True or False, got {bias_correction!r:.80}")
        self.trial_device = trial_device
        self.plan: PruningPlan | None = None
        self.steps = 0
        self.followers: list[nn.Module] = []
        self.observer: Observer | None = None
        self.found: ChannelGroups | None = None
        self.measured: list[tuple[Sensitivity, ...]] = []
        self._statistics: dict[str, Any] | None = None

    def go_on(self) -> None:
        """Continues the earlier plan of a model that was cut before, by this or another session or from a file.

        Budgets are then shares of the dense model. Where the example inputs are of another size than those of the
        earlier plan, its FLOPs are those of these inputs.
        """
        self.plan = earlier_plan(self.model)
        if self.plan is None:
            return
        scaled = for_inputs(self.plan, self.find().flops())
        if scaled is not self.plan:
            self.plan = scaled
            remember(self.model, scaled)

    def follow(self, models: Iterable[nn.Module]) -> None:
        """Cuts further models together with this one: moving averages of its weights, teachers.

        Raises:
            InputError: a model has other tensors than this one.
        """
        for number, other in enumerate(models):
            check_same_structure(self.model, other, f"model {number} of also=")
            self.followers.append(other)

    def find(self) -> ChannelGroups:
        """Returns the groups of the current model; finds them at the first call and again after each pruning."""
        if self.found is None:
            device = self.trial_device
            self.found = find_groups(self.model, self.example_inputs, self.limits.ignore, device=device)
        return self.found

    def bounds(self) -> Limits:
        """Returns the limits, with the dense sizes of the current model's groups and the widths that `keep` gives them.

        Raises:
            InputError: see `sirfp.budget.given_widths.with_given_widths`.
        """
        limits = self.limits
        if self.plan is not None:
            sizes = tuple((g.name, self.plan.dense_size(g.name, g.size)) for g in self.find())
            limits = replace(limits, dense=sizes)
        return with_given_widths(limits, self.model, self.find(), self.plan) if limits.keep else limits

    def _narrows(self) -> bool:
        """True if the limits give a group of the current model a smaller width."""
        return any(width < self.find()[name].size for name, width in self.bounds().given)

    def check_reach(self, targets: Sequence[Target]) -> None:
        """Raises an error early if a budget is out of reach of the widths that the limits leave.

        Args:
            targets: the budgets of the prunings to come, in their order, shares of the dense model as in `prune`.

        Raises:
            InputError: a budget cannot be reached, or the limits' `keep` gives widths that the model cannot have.
        """
        model, inputs, limits, plan = self.model, self.example_inputs, self.bounds(), self.plan
        check = lambda target: decide_once(partial(target.check_reach, model, inputs, self.find(), limits, plan))  # noqa: E731
        check_each(targets, self.steps, plan, check)

    def attach(self) -> Observer:
        """Attaches the criterion to the model, if it is not attached; restores the statistics of a resumed run.

        An observer that was only detached goes on with its statistics.
        """
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
        """Combines, over all processes, the statistics of the criterion and the running statistics of the norms."""
        for model in (self.model, *self.followers):
            average_norms(unwrapped(model))
        if self.observer is not None:
            self.observer.criterion.reduce()

    def prune(
        self, target: Target, evidence: Evidence | None = None, refit: bool = True, steps: int | None = 1
    ) -> PruningPlan:
        """Prunes to a budget, using the statistics taken since the last pruning.

        In a distributed run the first process decides on the combined statistics; all processes cut the same channels.

        Args:
            target: the budget, a share of the FLOPs, parameters or latency of the *dense* model.
            evidence: batches for orders, loss curves and refits; None to use the statistics of training alone.
            refit: refit the layers that read removed channels to read only the remaining ones, on the batches of
                `evidence`.
            steps: the number of cuts in which the budget is reached, each with orders, moments and curves of the model
                that the cut before left. None: as many as keep each cut above `sirfp.budget.several_cuts.GENTLE`
                where curves are measured. A criterion whose statistics come from training iterations needs 1.

        Returns:
            The plan of all prunings together; its indices refer to the dense model.

        Raises:
            InputError: the budget is out of reach, or the criterion needs batches and `evidence` is None.
        """
        evidence, self.measured = evidence or Evidence((), (), divergence_for(self.model)), []
        present = target.kept(self.plan) if self.plan else 1.0
        if self.plan and present <= target.share and not self._narrows():
            return self._left_as_it_is(self.plan, present, target)
        shares = shares_of_cuts(present, target.share, steps, bool(evidence.held), self._repeatable(evidence))
        if len(shares) > 1 or not isinstance(target, Latency):  # a single cut would time the smallest plan itself
            self.check_reach([target])
        begun = time.monotonic()
        for number, share in enumerate(shares, 1):
            if len(shares) > 1:
                took = f"; cut {number - 1} took {duration(time.monotonic() - begun)}" if number > 1 else ""
                stage(f"cut {number} of {len(shares)}, to {share:.1%} of the {target.words}{took}")
                begun = time.monotonic()
            with kept_memory(self.model):
                plan = self._cut(replace(target, share=share), evidence, refit, number == len(shares))
        self.steps += 1
        return plan

    def _left_as_it_is(self, plan: PruningPlan, present: float, target: Target) -> PruningPlan:
        """Ends a pruning whose budget an earlier plan meets; returns this plan."""
        if target.share < 1:
            logger.warning(
                "Nothing is cut: after its earlier cuts the model keeps %.4f of the %s of the dense model, of which "
                "budgets are shares, and the budget is %.4g",
                present, target.words, target.share,
            )  # fmt: skip
        if self.observer is not None:
            self.observer.detach()
        self.observer = None
        self.steps += 1
        return plan

    def _repeatable(self, evidence: Evidence) -> bool:
        """True if a criterion can be built again for a cut model, without training iterations in between."""
        return evidence.statistics is not None or CRITERIA.find(self.criterion).needs in ("weights", "moments")

    def measure(self, evidence: Evidence, refit: bool = True) -> tuple[Sensitivity, ...]:
        """Measures what the model loses if single groups keep fewer of their channels. The model is not changed.

        Args:
            evidence: batches, of which some are held out.
            refit: as in `prune`.

        Returns:
            The sensitivity of each group, in the order of the model.

        Raises:
            InputError: the criterion needs batches and there are none, or nothing in the model can be cut.
        """
        check_groups(self.find())
        with kept_memory(self.model):
            return self._measure(evidence, refit)

    def _measure(self, evidence: Evidence, refit: bool) -> tuple[Sensitivity, ...]:
        criterion, moments = self._look(evidence, refit)
        self.observer = None
        with untouched(self.model):
            meter = evidence.meter(self.model, self.find(), criterion, moments)
            if meter is None:
                raise InputError("loss curves need images that are held out: decide widths by curves")
            curves = measure_curves(meter, self.bounds(), evidence.levels)
        self.measured.append(sensitivities(self.find(), curves))
        return self.measured[-1]

    def _look(self, evidence: Evidence, refit: bool) -> tuple[Criterion, Moments | None]:
        """Returns the criterion with all statistics, and the moments for a refit."""
        check_weights(self.model)
        found, observer = self.find(), self.attach()
        observer.detach()
        criterion = observer.criterion
        if evidence.statistics is None and found.groups:  # weights were trained since the groups were found
            found = self.found = find_again(self.model, self.example_inputs, self.limits.ignore, found)
        with untouched(self.model):
            moments = evidence.moments(self.model, found) if refit or criterion.needs == "moments" else None
            evidence.learn(self.model, found, criterion, moments)
        if criterion.left_out:
            logger.warning(
                "%d images had NaN or infinite features; they are left out of the statistics", criterion.left_out
            )
        self.agree()
        return criterion, moments if refit else None

    def _cut(self, target: Target, evidence: Evidence, refit: bool, last: bool) -> PruningPlan:
        """Cuts once; returns the plan of all cuts so far.

        Images that are held out take part in the refits of the last cut only: before it, loss curves of further cuts
        are to be measured on them.
        """
        found = self.find()
        if target.share < 1 or self.limits.keep:
            check_groups(found)
        limits = self.bounds()  # before batches are looked at: it may raise an error
        criterion, moments = self._look(evidence, refit)
        found, curves = self.find(), None
        with untouched(self.model):
            meter = evidence.meter(self.model, found, criterion, moments) if target.share < 1 else None
            if meter is not None:
                curves = curves_for_budget(
                    self.model, self.example_inputs, target, meter, evidence.levels, limits, self.plan
                )
                self.measured.append(sensitivities(found, curves))
            choice = decide_once(
                lambda: decide(self.model, self.example_inputs, found, criterion, target, limits, self.plan, curves)
            )
            del meter  # its recorded feature maps are large
            if last and moments is not None and evidence.held:
                moments = evidence.moments(self.model, found, held=True)
        stage("refitting and cutting")
        plan = cut_to(
            self.model, found, choice, self.criterion,
            bias_correction=self.bias_correction, optimizer=self.optimizer, moments=moments,
        )  # fmt: skip
        for other in self.followers:
            same = find_again(other, self.example_inputs, self.limits.ignore, found)
            cut_to(other, same, choice, self.criterion, bias_correction=self.bias_correction, moments=moments)
        self.plan = self.plan.then(plan) if self.plan else plan
        self.observer = self.found = None
        return self.plan

    def state_dict(self) -> dict[str, Any]:
        """Returns the state for resuming: the plan as text, the number of steps, the statistics so far."""
        plan = self.plan.to_json() if self.plan else ""
        state: dict[str, Any] = {"steps": self.steps, "plan": plan, "criterion": self.criterion}
        if self.observer is not None:
            state["statistics"] = {
                "criterion": self.observer.criterion.state_dict(),
                "iteration": self.observer.iteration,
            }
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a state that `state_dict` returned; the model must already be cut by the plan in it.

        Raises:
            InputError: the state is that of another criterion, and has cuts or statistics.
        """
        before = state.get("criterion", self.criterion)  # older states do not name it
        if before != self.criterion and (state["steps"] or "statistics" in state):
            raise InputError(
                f"the state has cuts or statistics of criterion {before!r}, not of {self.criterion!r}; resume with the "
                "run's own criterion"
            )
        self.steps = state["steps"]
        self.plan = PruningPlan.from_json(state["plan"]) if state["plan"] else None
        self._statistics = state.get("statistics")
        self.observer = self.found = None
