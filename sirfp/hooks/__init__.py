"""Trainer hooks that add pruning to a training run; the config names them in `SIRFP.HOOKS`.

To add a hook: subclass Detectron2's `HookBase`, with a constructor that takes the config, register the class with
`@HOOKS.register()`, and import its file here. A file outside sirfp is imported by `--import FILE` instead.
`sirfp.config.register_config` adds config keys for the hook. docs/extending.md has an example.

All hooks share one `PruningSession`, the attribute `trainer.pruning` (`session` returns it). Their order matters:
statistics are taken before a pruning. All hooks run before the checkpointer, so that the model and the plan in a
checkpoint always match.
"""

from . import pruning, redundancies, report, sparsity  # noqa: F401  (these modules register hooks)
from .checkpoints import BestCheckpoint, PeriodicCheckpoint
from .memory import KeptMemory
from .registry import HOOKS, session, unwrapped
from .teacher import teachers

__all__ = ["HOOKS", "BestCheckpoint", "KeptMemory", "PeriodicCheckpoint", "session", "teachers", "unwrapped"]
