"""The registry of the trainer hooks for `SIRFP.HOOKS`, and functions that these hooks share."""

from __future__ import annotations

import os

from detectron2.engine import HookBase
from torch import nn

from ..budget.limits import Limits
from ..checkpoint.pruned import read_safetensors, restore
from ..config.options import criterion_options
from ..network.wrappers import unwrapped
from ..session import PruningSession
from ..tracing.registry import Registry

HOOKS: Registry[type[HookBase]] = Registry("hook")


def session(trainer) -> PruningSession:
    """Returns the trainer's pruning session; builds it from the config at the first call."""
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
            trial_device=node.TRIAL_DEVICE or None,
        )
        trainer.pruning.plan = trainer.checkpointer.plan  # a run may start from a pruned network
    return trainer.pruning


def rebuilt(trainer, path: str) -> nn.Module:
    """Builds the network that the run has written to a safetensors file."""
    model = trainer.build_model(trainer.cfg)
    plan, state = read_safetensors(path)
    restore(model, plan, state, os.path.basename(path))
    return model
