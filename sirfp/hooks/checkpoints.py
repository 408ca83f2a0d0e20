"""Hooks that write checkpoints: every few iterations, at the end of a run, and after the best evaluation so far."""

from __future__ import annotations

from typing import Any

from detectron2.engine.hooks import BestCheckpointer, HookBase

from ..training.checkpointer import BEST, FINAL, Checkpointer


class PeriodicCheckpoint(HookBase):
    """Writes a checkpoint every few iterations and at the end, with statistics averaged over all processes.

    Every process needs this hook, since the averaging involves all of them.

    Args:
        checkpointer: the checkpointer, which writes files only on the first process.
        period: number of iterations from one checkpoint to the next.
        keep: number of periodic checkpoints that are kept; earlier ones are removed. 0: all.
    """

    def __init__(self, checkpointer: Checkpointer, period: int, keep: int = 0):
        self.checkpointer, self.period, self.keep = checkpointer, period, keep

    def after_step(self) -> None:
        iteration = self.trainer.iter
        names = [f"model_{iteration:07d}"] if (iteration + 1) % self.period == 0 else []
        names += [FINAL] if iteration + 1 >= self.trainer.max_iter else []
        if names:
            self.trainer.agree()
        for name in names:
            self.checkpointer.save(name, iteration=iteration)
        if names and self.keep:
            self.checkpointer.remove_earlier(iteration, self.keep)


class BestCheckpoint(BestCheckpointer):
    """Keeps the network with the best metric as `model_best.pth`; a resumed run remembers the best value so far."""

    def __init__(self, period: int, checkpointer: Checkpointer, metric: str):
        super().__init__(period, checkpointer, metric, file_prefix=BEST)

    def forget(self) -> None:
        """Discards the best value so far. Called after a pruning, since the value is that of a larger network."""
        self.best_metric = self.best_iter = None

    def state_dict(self) -> dict[str, Any]:
        return {"metric": self.best_metric, "iter": self.best_iter}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best_metric, self.best_iter = state["metric"], state["iter"]
