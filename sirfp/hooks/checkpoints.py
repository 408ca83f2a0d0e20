"""Hooks that write checkpoints: every few iterations, at the end, and of the best network so far."""

from __future__ import annotations

from typing import Any

from detectron2.engine.hooks import BestCheckpointer, HookBase

from ..training.checkpointer import BEST, FINAL, Checkpointer


class PeriodicCheckpoint(HookBase):
    """Writes a checkpoint every few iterations and at the end, of what all processes have seen; each of them has one.

    Args:
        checkpointer: what writes, on the first process.
        period: iterations between two.
    """

    def __init__(self, checkpointer: Checkpointer, period: int):
        self.checkpointer, self.period = checkpointer, period

    def after_step(self) -> None:
        iteration = self.trainer.iter
        names = [f"model_{iteration:07d}"] if (iteration + 1) % self.period == 0 else []
        names += [FINAL] if iteration + 1 >= self.trainer.max_iter else []
        if names:
            self.trainer.agree()
        for name in names:
            self.checkpointer.save(name, iteration=iteration)


class BestCheckpoint(BestCheckpointer):
    """Keeps the best network as `model_best.pth`, and remembers how good it was when a run is resumed."""

    def __init__(self, period: int, checkpointer: Checkpointer, metric: str):
        super().__init__(period, checkpointer, metric, file_prefix=BEST)

    def forget(self) -> None:
        """What was best counts no longer, as the network is another one now."""
        self.best_metric = self.best_iter = None

    def state_dict(self) -> dict[str, Any]:
        return {"metric": self.best_metric, "iter": self.best_iter}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best_metric, self.best_iter = state["metric"], state["iter"]
