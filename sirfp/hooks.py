"""Trainer hooks that join pruning to a training run; the config names them (`SIRFP.HOOKS`).

Adding one is one class and one decorator. They share a `PruningSession`, which lives on the trainer as
`trainer.pruning`. Their order matters: statistics are taken before a pruning, and all come before the
checkpointer, so that a checkpoint never holds a model and a plan that do not belong together.
"""

from __future__ import annotations

import json
import logging
import os
import time
from itertools import islice
from typing import Any

import torch
from detectron2.engine.hooks import HookBase
from detectron2.utils import comm
from detectron2.utils.logger import log_first_n
from fvcore.common.registry import Registry
from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats
from torch import nn

from .budget.target import check_reach
from .checkpoint.pruned import read_safetensors, restore, save
from .checkpointer import BestCheckpoint
from .criteria import CRITERIA
from .files.whole import whole_file
from .finite import finite_norms
from .network.forward import training_branches
from .processes import agreed, average_norms
from .schedule import Schedule
from .session import PruningSession
from .surgery.reconstruction import Moments, take_moments

logger = logging.getLogger(__name__)

HOOKS = Registry("SIRFP_HOOKS")


def session(trainer) -> PruningSession:
    """The trainer's pruning session, made from its config when first asked for."""
    if getattr(trainer, "pruning", None) is None:
        node = trainer.cfg.SIRFP
        trainer.pruning = PruningSession(
            unwrapped(trainer.model),
            trainer.example_inputs(),
            trainer.optimizer,
            criterion=node.CRITERION,
            options=criterion_options(trainer.cfg),
            period=node.ACCUMULATE_PERIOD,
            ignore=node.IGNORE,
            partitions=node.PARTITIONS,
            min_keep=node.MIN_KEEP,
            round_to=node.ROUND_TO,
            bias_correction=node.BIAS_CORRECTION,
            seed=node.SEED,
        )
        trainer.pruning.plan = trainer.checkpointer.plan  # a run may start from a pruned network
    return trainer.pruning


def criterion_options(cfg) -> dict[str, Any]:
    """What the config says of the criterion, under the names of its constructor; only what it takes."""
    node = cfg.SIRFP
    given = {
        "ema": node.EMA,
        "edge_weight": node.EDGE_WEIGHT,
        "coupled": node.COUPLED,
        "self_similarity": node.SELF_SIMILARITY,
        "normalize": node.NORMALIZE,
        "per_position": node.PER_POSITION,
        "pooled": node.POOLED,
        "search": node.SEARCH,
        "stride": node.ACCUMULATE_STRIDE,
        "importance": node.IMPORTANCE,
        "importance_weight": node.IMPORTANCE_WEIGHT,
        "cost_exponent": node.COST_EXPONENT,
    }
    return {key: value for key, value in given.items() if key in CRITERIA[node.CRITERION].options()}


def unwrapped(model: nn.Module) -> nn.Module:
    """The model without its distributed wrapper."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def rebuilt(trainer, path: str) -> nn.Module:
    """The network of a safetensors file that the run has written."""
    model = trainer.build_model(trainer.cfg)
    plan, state = read_safetensors(path)
    restore(model, plan, state, os.path.basename(path))
    return model


@HOOKS.register()
class Accumulate(HookBase):
    """Shows the criterion the features and the gradients of the iterations before each pruning.

    An iteration is looked at when its gradients are ready: unscaled, averaged over processes, neither clipped nor
    applied. What adds a penalty to them (`sirfp.sparsity`) stands after this hook.
    """

    def __init__(self, cfg):
        self.schedule = Schedule.from_config(cfg)

    def before_step(self) -> None:
        if self.schedule.accumulates(self.trainer.iter):
            session(self.trainer).look()

    def after_backward(self) -> None:
        if self.schedule.accumulates(self.trainer.iter):
            session(self.trainer).look().step()

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
    """Cuts the model when its time comes; optimizer state, schedule and wrapper go on with the smaller one."""

    def __init__(self, cfg):
        self.schedule = Schedule.from_config(cfg)
        self.reconstruction = cfg.SIRFP.RECONSTRUCTION_ITERS

    def before_train(self) -> None:
        """A budget that the next pruning cannot meet should not wait for it."""
        pruning = session(self.trainer)
        if pruning.steps >= self.schedule.steps:
            return
        target = self.schedule.target(pruning.steps)
        if target.share < 1:
            limits = {"min_keep": pruning.min_keep, "round_to": pruning.round_to}
            model, inputs, found = pruning.model, pruning.example_inputs, pruning.find()
            agreed(lambda: check_reach(model, inputs, found, target, pruning.plan, **limits))

    def after_step(self) -> None:
        pruning, done = session(self.trainer), self.trainer.iter + 1
        if pruning.steps >= self.schedule.steps or done != self.schedule.iterations[pruning.steps]:
            return
        step, target, start = pruning.steps, self.schedule.target(pruning.steps), time.perf_counter()
        average_norms(pruning.model)
        plan = pruning.prune(target, self._moments())
        self.trainer.checkpointer.plan = plan
        self.trainer.rewrap()
        for hook in self.trainer._hooks:
            if isinstance(hook, BestCheckpoint):  # the best network so far was another one
                hook.forget()
        seconds = time.perf_counter() - start
        logger.info(
            "Pruned, step %d of %d, in %.1f s: asked for %s, kept %.4f; %.4f of the FLOPs, %.4f of the parameters",
            step + 1,
            self.schedule.steps,
            seconds,
            target.words,
            target.kept(plan),
            plan.flops[1] / plan.flops[0],
            plan.params[1] / plan.params[0],
        )
        for name, indices in plan.kept.items():
            logger.info("  %-60s %5d of %5d channels", name, len(indices), plan.channels[name])

    def _moments(self) -> Moments | None:
        """Of what layers read in the training batches that come next, for what a cut takes from them."""
        if not self.reconstruction:
            return None
        model = unwrapped(self.trainer.model)
        batches = islice(self.trainer.batches(), self.reconstruction)
        with training_branches(model), self.trainer.autocast():
            return take_moments(model, session(self.trainer).find(), batches)

    def before_step(self) -> None:
        plan, storage = session(self.trainer).plan, self.trainer.storage
        storage.put_scalar("sirfp/keep_flops", plan.flops[1] / plan.flops[0] if plan else 1.0, smoothing_hint=False)
        if plan:
            for name, indices in plan.kept.items():
                storage.put_scalar(f"sirfp_channels/{name}", len(indices), smoothing_hint=False)


@HOOKS.register()
class Recover(HookBase):
    """Sets a freshly cut model on its feet: its batch norms' statistics are taken anew before training goes on.

    The statistics of SIRFP.RECOVER_NORM_ITERS training batches, without gradients (fvcore's precise batch norm).
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
            log_first_n(logging.INFO, f"Taking norm statistics anew from {self.iterations} batches", n=1)
            with self.trainer.autocast(), finite_norms(model):
                update_bn_stats(model, self.trainer.batches(), self.iterations)
            average_norms(model)


@HOOKS.register()
class Report(HookBase):
    """Evaluates around the prunings and, at the end, writes the pruned model, its plan, a table and a figure.

    Rows of the table: `dense` (just before the first pruning; `start` in a run that began with a pruned network),
    `pruned` (just after the last), `fine-tuned` (at the end). Written to the output folder: `dense.safetensors`,
    `pruned.safetensors`, `plan.json`, `pruning.json` (the numbers), `pruning.md` (the table), `metrics.md` (every
    metric), `kept_channels.png` and, where the task draws them, `predictions.png`.
    It stands before PruneSteps in SIRFP.HOOKS.
    """

    def __init__(self, cfg):
        self.schedule = Schedule.from_config(cfg)
        self.folder = cfg.OUTPUT_DIR
        self.rows: dict[str, dict[str, Any]] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"rows": json.dumps(self.rows)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows = json.loads(state["rows"])

    def after_step(self) -> None:  # comes before PruneSteps
        if self.trainer.iter + 1 == self.schedule.iterations[0] and session(self.trainer).steps == 0:
            self._row("start" if session(self.trainer).plan else "dense")

    def before_step(self) -> None:
        if self.trainer.iter == self.schedule.iterations[-1] and "pruned" not in self.rows:
            self._row("pruned")

    def after_train(self) -> None:
        plan = session(self.trainer).plan
        if plan is None or self.trainer.iter < self.trainer.max_iter:
            return
        self._row("fine-tuned")
        if comm.is_main_process():
            self._write(plan)

    def _row(self, name: str) -> None:
        found = session(self.trainer).find()
        results = self.trainer.evaluate()
        self.rows[name] = {"metrics": _flat(results), "flops": found.flops(), "params": found.params()}
        if name in ("dense", "start") and comm.is_main_process():
            plan = session(self.trainer).plan
            save(self._path(f"{name}.safetensors"), unwrapped(self.trainer.model), plan)

    def _write(self, plan) -> None:
        from . import plots, report
        from .network.latency import measure

        model, inputs = unwrapped(self.trainer.model), self.trainer.example_inputs()
        save(self._path("pruned.safetensors"), model, plan)
        first = next(iter(self.rows))
        before = rebuilt(self.trainer, self._path(f"{first}.safetensors"))
        latency = measure({first: (before, inputs), "pruned": (model, inputs)})
        for name, row in self.rows.items():
            row["latency"] = latency[first if name == first else "pruned"].median
        table = report.stages(self.rows, self.trainer.cfg.SIRFP.METRICS)
        every = report.metrics(self.rows).markdown()
        texts = {
            "plan.json": plan.to_json(),
            "pruning.json": json.dumps(self.rows, indent=1),
            "pruning.md": "\n\n".join([table, *report.asked(report.summary(plan))]),
            "metrics.md": every,
        }
        for name, text in texts.items():
            with whole_file(self._path(name)) as beside:
                beside.write_text(text + "\n")
        plots.kept_channels(plan, self._path("kept_channels.png"))
        if self.trainer.cfg.DATASETS.TEST:
            self.trainer.draw({first: before, "fine-tuned": model}, self._path("predictions.png"))
        logger.info("What the run did:\n%s", table)

    def _path(self, name: str) -> str:
        return os.path.join(self.folder, name)


def _flat(results: Any, prefix: str = "") -> dict[str, float]:
    """Nested evaluation results as {"sem_seg/mIoU": value}."""
    flat: dict[str, float] = {}
    for key, value in (results or {}).items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}/"))
        elif isinstance(value, (int, float, torch.Tensor)):
            flat[f"{prefix}{key}"] = float(value)
    return flat
