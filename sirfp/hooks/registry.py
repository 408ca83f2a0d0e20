"""The registry of trainer hooks (`SIRFP.HOOKS` names them), and what hooks share: the run's pruning session."""

from __future__ import annotations

import os
from typing import Any

from detectron2.engine import HookBase
from torch import nn

from ..budget.limits import Limits
from ..checkpoint.pruned import read_safetensors, restore
from ..criteria import CRITERIA
from ..session import PruningSession
from ..tracing.registry import Registry

HOOKS: Registry[type[HookBase]] = Registry("hook")


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
            limits=Limits.from_config(trainer.cfg),
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
