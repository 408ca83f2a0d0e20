"""Trainer hooks that join pruning to a training run; the config names them (`SIRFP.HOOKS`).

To add one: subclass Detectron2's `HookBase`, with a constructor that takes the config, register the class with
`@HOOKS.register()`, and import its file here. A file outside sirfp is imported by `--import FILE` instead.
`sirfp.config.register_config` adds config keys for it. docs/extending.md has an example.

Hooks share a `PruningSession`, which lives on the trainer as `trainer.pruning` (`session` returns it). Their order
matters: statistics are taken before a pruning, and all come before the checkpointer, so that a checkpoint never holds a
model and a plan that do not belong together.
"""

from . import pruning, redundancies, report, sparsity  # noqa: F401  (they fill the registry)
from .checkpoints import BestCheckpoint, PeriodicCheckpoint
from .registry import HOOKS, session, unwrapped

__all__ = ["HOOKS", "BestCheckpoint", "PeriodicCheckpoint", "session", "unwrapped"]
