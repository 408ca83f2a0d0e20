"""The hook that keeps the memory of feature maps in the process while a model trains on a CPU."""

from __future__ import annotations

from contextlib import ExitStack

from detectron2.engine import HookBase

from ..network.kept_memory import give_back_if_scarce, kept_memory

PERIOD = 20
"""Iterations between two looks at the memory of the machine."""


class KeptMemory(HookBase):
    """Keeps memory that a step frees for the next one, until the machine is short of memory (`kept_memory`)."""

    def __init__(self) -> None:
        self._kept = ExitStack()

    def before_train(self) -> None:
        self._kept.enter_context(kept_memory(self.trainer.model))

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % PERIOD == 0:
            give_back_if_scarce()

    def after_train(self) -> None:
        self._kept.close()
