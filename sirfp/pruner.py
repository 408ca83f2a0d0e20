"""Prunes a model in several cuts inside any training loop (docs/own_loop.md).

    pruner = sirfp.Pruner(model, example_inputs, keep_flops=0.4, steps=3, optimizer=optimizer)
    for step, (images, labels) in enumerate(loader):
        with pruner.look():
            loss = criterion(model(images), labels)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step in (500, 800, 1100):
            pruner.cut()

The training runs of Detectron2 prune with the same session (`sirfp.session`), by hooks and a config.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from .budget.evidence import CURVES, Evidence, check_compared, check_widths
from .budget.limits import Limits, check_count
from .budget.several_cuts import share_after
from .budget.target import KEEP_FLOPS, Target
from .criteria import CRITERIA
from .criteria.calibration import Loss, calibrate
from .criteria.registry import refuse_misspelt
from .errors import InputError
from .network.batches import Run, runner
from .network.clock import Clock
from .network.last_inputs import LastInputs
from .network.outputs import Outputs, only, with_everything
from .network.untouched import copied_inputs, leave_inference, outside_inference_mode
from .network.wrappers import as_models, compiled_code_as_python, plain, unwrapped
from .session import PruningSession
from .structure.plan import PruningPlan
from .surgery.cut import apply
from .surgery.earlier_cuts import earlier_plan
from .surgery.parameter_order import in_order_of
from .surgery.reconstruction import BATCHES
from .surgery.stale_optimizers import check_optimizer


class Pruner:
    """Prunes one model in several cuts, with the statistics of the training steps that it looks at.

    It belongs into any training loop: distributed, with autocast, with accumulated gradients. Every process of a
    distributed run has its own pruner and calls the same methods; all processes cut the same channels.

    Args:
        model: the model, wrapped or not (`sirfp.network.wrappers`); changed in place. A model that was pruned before is
            pruned further.
        example_inputs: inputs of the model, on which FLOPs are counted.
        criterion, keep_flops, keep_params, keep_latency, clock: as in `sirfp.prune`.
        steps: the number of cuts. Each removes an equal share of the dense model.
        optimizer: the optimizer, whose state is cut together with the parameters. It may be set later, as `optimizer`.
        also: models of the same structure that lose the same channels, such as a moving average of the weights.
        period: the interval, in training steps that the pruner looks at, at which features and gradients are used.
        loss, forward, bias_correction, reconstruction, widths, divergence, outputs: as in `sirfp.prune`.
        ignore, keep, round_to, seed, min_keep, partitions, trial_device: as in `sirfp.prune`.
        **options: arguments of the criterion.

    Raises:
        InputError: as in `sirfp.prune`; also if the budget is out of reach.
    """

    @outside_inference_mode()
    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        *,
        criterion: str | None = None,
        keep_flops: float | None = None,
        keep_params: float | None = None,
        keep_latency: float | None = None,
        clock: Clock | None = None,
        steps: int = 3,
        optimizer: torch.optim.Optimizer | None = None,
        also: Iterable[nn.Module] = (),
        period: int = 1,
        loss: Loss | None = None,
        forward: Run | None = None,
        bias_correction: bool = True,
        reconstruction: int = BATCHES,
        widths: str | None = None,
        divergence: Callable[[Any, Any], torch.Tensor] | None = None,
        outputs: Outputs | None = None,
        ignore: Iterable[str] = Limits.ignore,
        keep: Mapping[str, float] | None = None,
        round_to: int = Limits.round_to,
        seed: int = 0,
        min_keep: float = Limits.min_keep,
        partitions: Iterable[str] = Limits.partitions,
        trial_device: str | torch.device | None = None,
        **options: Any,
    ):
        whole = 1.0 if keep else KEEP_FLOPS
        budgets = {"keep_flops": keep_flops, "keep_params": keep_params, "keep_latency": keep_latency}
        self.target = Target.of(whole, clock, **budgets)
        for name, value, least in (("steps", steps, 1), ("period", period, 1), ("reconstruction", reconstruction, 0)):
            check_count(name, value, least)
        if widths is not None:
            check_widths(widths)
        self.model, self.steps, self.widths, self.reconstruction = model, steps, widths, reconstruction
        self.loss, self.forward, self.divergence = with_everything(loss), forward, divergence
        self.outputs = outputs
        limits = Limits(partitions, min_keep, round_to, ignore, keep or ())
        with plain(model) as network:
            leave_inference(network)
            check_optimizer(network, optimizer)
            self.session = PruningSession(
                network, copied_inputs(example_inputs), optimizer,
                criterion=criterion, options=options, period=period, limits=limits, bias_correction=bias_correction,
                seed=seed, trial_device=trial_device,
            )  # fmt: skip
            refuse_misspelt(self.session.criterion, options, Pruner, "Pruner")
            self.session.follow(as_models(also))
            with self._part():
                self.session.go_on()
            start = self.target.kept(self.plan) if self.plan else 1.0
            self.start = 1.0 if math.isnan(start) else start  # of a plan without latency, which check_reach refuses
            with self._part():
                self.session.check_reach([self._target(number) for number in range(1, steps + 1)])
        chosen = CRITERIA.find(self.session.criterion)
        if divergence is not None:
            check_compared(widths or chosen.widths, self.session.criterion)
        looks = chosen.needs == "moments" or widths == CURVES
        wanted = reconstruction or (BATCHES if looks else 0)
        self._inputs = LastInputs(network, wanted)

    @property
    def plan(self) -> PruningPlan | None:
        """The plan of all cuts so far, from the dense model to the present one; None before the first."""
        return self.session.plan

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """The optimizer whose state is cut together with the parameters."""
        return self.session.optimizer

    @optimizer.setter
    def optimizer(self, optimizer: torch.optim.Optimizer | None) -> None:
        with plain(self.model) as network:
            check_optimizer(network, optimizer)
        self.session.optimizer = optimizer

    @property
    def cuts(self) -> int:
        """The number of cuts so far."""
        return self.session.steps

    @property
    def done(self) -> bool:
        """True if all cuts are made."""
        return self.cuts >= self.steps

    def look(self, batch: Any = None, *, complete: bool = True) -> AbstractContextManager[None]:
        """Takes statistics for the next cut: of a training step, or of a batch.

        Without a batch, returns a context for the forward and backward passes of one training step, which sees the
        inputs, features and gradients of the model. With a `GradScaler`, unscale the gradients in it.

        With a batch, runs the model on it at once, without changing the model; the context then does nothing.

        Args:
            batch: inputs like the example inputs, alone or with labels.
            complete: False if a further `look` belongs to the same training step, because gradients are accumulated
                over several backward passes.
        """
        if batch is None:
            return self._looking(complete)
        self._look_at(batch)
        return nullcontext()

    @contextmanager
    def _looking(self, complete: bool) -> Iterator[None]:
        with self._part():
            observer = self.session.attach()
        try:
            with compiled_code_as_python(), self._inputs.watch():
                yield
        finally:
            observer.detach()
        if complete:
            observer.step()

    def _look_at(self, batch: Any) -> None:
        with self._part():
            criterion = self.session.attach().criterion
        self._detach()
        if self._inputs.batches.maxlen:
            self._inputs.batches.append(copied_inputs(batch))
        if criterion.needs in ("features", "gradients"):
            run = runner(self.session.example_inputs, self.forward, self.loss)
            calibrate(self.model, criterion, [batch], self.loss, run)

    @outside_inference_mode()
    def cut(self) -> PruningPlan:
        """Makes the next cut. Call it between two training steps, when no gradients are pending.

        Returns:
            The plan of all cuts so far.

        Raises:
            InputError: all cuts are made, or the criterion needs to look at training steps first.
        """
        if self.done:
            raise InputError(f"all {self.steps} cuts are made; make a Pruner with more steps, or call sirfp.prune")
        needs, batches = CRITERIA.find(self.session.criterion).needs, list(self._inputs.batches)
        if (needs in ("features", "gradients") and self.session.observer is None) or (
            needs == "moments" and not batches
        ):
            raise InputError(
                f"criterion {self.session.criterion!r} needs {needs}: look at training steps before each cut, "
                "with pruner.look(): ..."
            )
        target = self._target(self.cuts + 1)
        with plain(self.model) as network, self._part():
            evidence = Evidence.of_calibration(
                network, self.session.example_inputs, self.session.criterion, batches or None, self.widths,
                self.reconstruction or BATCHES, loss=self.loss, forward=self.forward, divergence=self.divergence,
            )  # fmt: skip
            evidence.statistics = None  # they come from the training steps
            plan = self.session.prune(target, evidence, self.reconstruction > 0, steps=None)
            self._order_optimizer(network)
        self._inputs.batches.clear()
        return plan

    def state_dict(self) -> dict[str, Any]:
        """Returns the state for resuming: the plan, the number of cuts, the statistics so far; tensors and plain data.

        The inputs of the steps looked at since the last cut are not in it. Save between a cut and the first look after
        it to resume with exactly the same plans.
        """
        return {**self.session.state_dict(), "start": self.start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a state; cuts the model, the optimizer and the models of `also` as they were, if they are dense.

        Load it before the weights and the optimizer's state, which fit only then.

        Args:
            state: what `state_dict` returned.

        Raises:
            InputError: the state is no pruner's, or that of another criterion, or the model is cut in another way.
        """
        if not isinstance(state, Mapping):
            raise InputError(f"this is no state of a pruner, which Pruner.state_dict gives, but {type(state).__name__}")
        missing = [key for key in ("criterion", "plan", "steps", "start") if key not in state]
        if missing:
            raise InputError(f"this is no state of a pruner, which Pruner.state_dict gives: it lacks {missing[0]!r}")
        if state["criterion"] != self.session.criterion:
            raise InputError(f"the state is of criterion {state['criterion']!r}, not of {self.session.criterion!r}")
        _check_state(state)
        plan = PruningPlan.from_json(state["plan"]) if state["plan"] else None
        with plain(self.model) as network:
            models = [(network, self.optimizer), *((model, None) for model in self.session.followers)]
            for model, optimizer in models:
                with plain(model) as one:
                    before = earlier_plan(one)
                    if plan is not None and before is None:
                        apply(one, plan, optimizer)
                    elif plan != before:
                        raise InputError("the model was cut in another way than in the state; give the dense model")
            self.session.load_state_dict(state)
            self._order_optimizer(network)
            self.start = state["start"]

    @contextmanager
    def _part(self) -> Iterator[None]:
        """Lets the models return only the outputs that count."""
        with ExitStack() as stack:
            for one in (self.session.model, *self.session.followers):
                stack.enter_context(only(unwrapped(one), self.outputs))
            yield

    def _detach(self) -> None:
        if self.session.observer is not None:
            self.session.observer.detach()

    def _order_optimizer(self, network: nn.Module) -> None:
        """Puts new biases where an optimizer that is made of the cut model has them, so that it takes this state."""
        if self.optimizer is not None and self.plan is not None:
            in_order_of(network, self.optimizer, self.plan.new_biases)

    def _target(self, number: int) -> Target:
        """Returns the budget of a cut, counted from 1."""
        return replace(self.target, share=share_after(number, self.steps, self.target.share, self.start))


def _check_state(state: Mapping[str, Any]) -> None:
    """Raises InputError if a part of a state, which may come from a damaged or edited file, has another kind."""
    check_count("the state's 'steps'", state["steps"], 0)
    start = state["start"]
    if not isinstance(start, (int, float)) or not 0 < start < math.inf:
        raise InputError(f"the state's 'start' must be a share of the dense model, got {start!r:.80}")
    statistics = state.get("statistics")
    if statistics is None:
        return
    if not isinstance(statistics, Mapping) or not isinstance(statistics.get("criterion"), Mapping):
        raise InputError("the state's 'statistics' must be those that Pruner.state_dict gives")
    check_count("the state's 'iteration'", statistics.get("iteration"), 0)
