"""Trainer hooks that join pruning to a training run; the config names them (`SIRFP.HOOKS`).

Adding one is one class and one decorator. They share a `PruningSession`, which lives on the trainer as
`trainer.pruning`. Their order matters: statistics are taken before a pruning, and all come before the
checkpointer, so that a checkpoint never holds a model and a plan that do not belong together.
"""

from . import pruning, redundancies, report, sparsity  # noqa: F401  (they fill the registry)
from .checkpoints import BestCheckpoint, PeriodicCheckpoint
from .registry import HOOKS, session, unwrapped

__all__ = ["HOOKS", "BestCheckpoint", "PeriodicCheckpoint", "session", "unwrapped"]
