"""Trainer hooks for pruning in a run: accumulate statistics, cut the model, and re-estimate batch norm statistics."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from itertools import islice
from math import ceil
from typing import Any

from detectron2.engine.hooks import HookBase
from detectron2.utils.logger import log_first_n
from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats

from ..budget.evidence import CURVES, Evidence, call_pixels
from ..budget.target import Latency
from ..criteria import CRITERIA
from ..errors import InputError
from ..exporting.clock import clock_named
from ..network.divergence_loss import divergence_on
from ..network.forward import training_branches
from ..network.held_out import count_images, regrouped
from ..processes import average_norms, world_size
from ..structure.plan import PruningPlan
from ..surgery.reconstruction import BATCHES
from ..training.nonfinite import finite_norms
from ..training.schedule import Schedule
from .checkpoints import BestCheckpoint
from .curves import curve_store, write_curves
from .registry import HOOKS, session, unwrapped

logger = logging.getLogger(__name__)

SLACK = 1e-6
"""Relative rounding of the share that a plan keeps."""
LESS = 0.1
"""A plan that keeps less than its budget by a larger share was probably made for another one."""


@HOOKS.register()
class Accumulate(HookBase):
    """Updates the criterion's statistics with the features and gradients of the iterations before each pruning.

    The hook acts after the backward pass, when gradients are unscaled and averaged over processes, but not yet clipped.
    In SIRFP.HOOKS it comes before hooks that add a penalty to the gradients (`sirfp.hooks.sparsity`).
    """

    def __init__(self, cfg):
        self.schedule = Schedule.from_config(cfg)

    def before_step(self) -> None:
        if self.schedule.accumulates(self.trainer.iter):
            session(self.trainer).attach()

    def after_backward(self) -> None:
        if self.schedule.accumulates(self.trainer.iter):
            session(self.trainer).attach().step()

    def after_train(self) -> None:
        observer = session(self.trainer).observer
        if observer is not None:
            observer.detach()

    def state_dict(self) -> dict[str, Any]:
        return session(self.trainer).state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        session(self.trainer).load_state_dict(state)


@HOOKS.register()
class PruneSteps(HookBase):
    """Cuts the model at the scheduled iterations; the run continues with the smaller model.

    The state of the optimizer is cut together with the parameters, and the distributed wrapper is created again.
    """

    def __init__(self, cfg):
        self.schedule = timed_in(Schedule.from_config(cfg), cfg.SIRFP.LATENCY_RUNTIME)
        self.reconstruction = cfg.SIRFP.RECONSTRUCTION_ITERS
        self.criterion = CRITERIA.find(cfg.SIRFP.CRITERION, "SIRFP.CRITERION")
        self.curves = (cfg.SIRFP.WIDTHS or self.criterion.widths) == CURVES
        self.images = cfg.SIRFP.CURVE_IMAGES
        self.store = curve_store(cfg.OUTPUT_DIR) if self.curves else None

    def before_train(self) -> None:
        """Raises an error at the start of the run if a pruning cannot meet its budget, or will not take place."""
        pruning = session(self.trainer)
        check_resumed(self.schedule, pruning.steps, pruning.plan, self.trainer.start_iter)
        if pruning.steps < self.schedule.steps:
            pruning.check_reach([self.schedule.target(step) for step in range(pruning.steps, self.schedule.steps)])

    def after_step(self) -> None:
        pruning, done = session(self.trainer), self.trainer.iter + 1
        if pruning.steps >= self.schedule.steps or done != self.schedule.iterations[pruning.steps]:
            return
        step, target, start = pruning.steps, self.schedule.target(pruning.steps), time.perf_counter()
        average_norms(pruning.model)
        plan = pruning.prune(target, self._evidence(), self.reconstruction > 0, steps=None)
        write_curves(self.trainer, step + 1)
        self.trainer.checkpointer.plan = plan
        self.trainer.rewrap()
        for hook in self.trainer._hooks:
            if isinstance(hook, BestCheckpoint):  # the best network so far had more channels
                hook.forget()
        seconds = time.perf_counter() - start
        logger.info(
            "Pruned, step %d of %d, in %.1f s: target %s, kept %.4f; %.4f of the FLOPs, %.4f of the parameters",
            step + 1,
            self.schedule.steps,
            seconds,
            target,
            target.kept(plan),
            plan.flops[1] / plan.flops[0],
            plan.params[1] / plan.params[0],
        )
        for name, indices in plan.kept.items():
            logger.info("  %-60s %5d of %5d channels", name, len(indices), plan.channels[name])

    def _evidence(self) -> Evidence | None:
        """Returns the next training batches for orders, loss curves and refits; None if the config needs none.

        Curves are measured on other batches than those that are fitted on.
        """
        if not (self.reconstruction or self.curves or self.criterion.needs == "moments"):
            return None
        batches, model = self.trainer.batches(), unwrapped(self.trainer.model)
        fit, held = list(islice(batches, self.reconstruction or BATCHES)), []
        with self.trainer.autocast():
            divergence = divergence_on(model, fit[0])
        if self.curves:
            each = max(1, count_images(fit[0]) * world_size())
            images = self.images or divergence.curve_images
            held = regrouped(list(islice(batches, ceil(images / each))), pixels=call_pixels(model))
        evidence = Evidence(fit, held, divergence, mode=training_branches, context=self.trainer.autocast)
        evidence.store = self.store
        return evidence

    def before_step(self) -> None:
        plan, storage = session(self.trainer).plan, self.trainer.storage
        storage.put_scalar("sirfp/keep_flops", plan.flops[1] / plan.flops[0] if plan else 1.0, smoothing_hint=False)
        if plan:
            for name, indices in plan.kept.items():
                storage.put_scalar(f"sirfp_channels/{name}", len(indices), smoothing_hint=False)


def check_resumed(schedule: Schedule, steps: int, plan: PruningPlan | None, start: int) -> None:
    """Checks that the cuts which a resumed run has made are those of its schedule, which may have been changed since.

    Args:
        schedule: the schedule.
        steps: the number of cuts so far.
        plan: the plan of all cuts so far.
        start: the number of iterations so far.

    Raises:
        InputError: the time of the next cut has passed, or all cuts are made and keep more than the budget.
    """
    if steps < schedule.steps:
        if schedule.prunes and start and schedule.iterations[steps] <= start:
            raise InputError(
                f"cut {steps + 1} of {schedule.steps} comes after {schedule.iterations[steps]} iterations, but the "
                f"checkpoint has done {start} with {steps} cuts: resume with the SIRFP.START_ITER, STEPS and "
                "RECOVER_ITERS of the run, or start a new one from its network (MODEL.WEIGHTS)"
            )
    elif steps and plan is not None and not isinstance(schedule.keep, Latency):
        kept, asked = schedule.keep.kept(plan), schedule.keep.share
        if kept > asked * (1 + SLACK):
            raise InputError(
                f"the run has made its cuts, which keep {kept:.4f}, but {schedule.keep} is asked for: resume with the "
                "budget of the run, or start a new one from its network (MODEL.WEIGHTS)"
            )
        if kept < asked * (1 - LESS):
            logger.warning("The run has made its cuts, which keep %.4f: a budget of %s changes nothing", kept, asked)


def timed_in(schedule: Schedule, runtime: str) -> Schedule:
    """Returns a schedule whose budget of latency is measured in a runtime, named as in SIRFP.LATENCY_RUNTIME."""
    clock = clock_named(runtime, "SIRFP.LATENCY_RUNTIME")
    if clock is None or not isinstance(schedule.keep, Latency):
        return schedule
    return replace(schedule, keep=Latency(schedule.keep.share, clock))


@HOOKS.register()
class Recover(HookBase):
    """Re-estimates the batch norms' running statistics after each pruning, before training continues.

    Uses SIRFP.RECOVER_NORM_ITERS training batches, without gradients (fvcore's precise batch norm); 0 disables it.
    """

    def __init__(self, cfg):
        self.iterations = cfg.SIRFP.RECOVER_NORM_ITERS
        self.steps = 0

    def before_train(self) -> None:
        self.steps = session(self.trainer).steps

    def after_step(self) -> None:
        pruning = session(self.trainer)
        if pruning.steps == self.steps:
            return
        self.steps = pruning.steps
        model = unwrapped(self.trainer.model)
        if self.iterations and model.training and get_bn_modules(model):
            log_first_n(logging.INFO, f"Re-estimating batch norm statistics on {self.iterations} batches", n=1)
            with self.trainer.autocast(), finite_norms(model):
                update_bn_stats(model, self.trainer.batches(), self.iterations)
            average_norms(model)
