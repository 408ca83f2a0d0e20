"""A hook for timm's exponential moving average of the weights: the average is evaluated and saved."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.engine.hooks import HookBase
from timm.utils import ModelEmaV3
from torch import nn

from sirfp.hooks import HOOKS, session, unwrapped


@HOOKS.register()
class AverageWeights(HookBase):
    """Averages the weights; each pruning also cuts the averaged network.

    Before an evaluation and at the end of training, the averaged weights are swapped into the network. Thus evaluation,
    the best checkpoint and the final file use the average. This hook must be the last one in SIRFP.HOOKS.
    """

    def __init__(self, cfg):
        self.decay, self.period = cfg.SOLVER.AVERAGE_DECAY, cfg.TEST.EVAL_PERIOD
        self.average: ModelEmaV3 | None = None
        self.swapped = False

    def before_train(self) -> None:
        self._start()
        session(self.trainer).followers.append(self.average.module)

    def before_step(self) -> None:
        if self.swapped:
            self._swap()

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        self.average.update(unwrapped(self.trainer.model), done)
        if done == self.trainer.max_iter or (self.period and done % self.period == 0):
            self._swap()

    def state_dict(self) -> dict[str, Any]:
        self._start()
        return {"average": self.average.module.state_dict(), "swapped": self.swapped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._start()  # the network has already been cut to its plan
        self.average.module.load_state_dict(state["average"])
        self.swapped = state["swapped"]

    def _start(self) -> None:
        if self.average is None:
            model: nn.Module = unwrapped(self.trainer.model)
            self.average = ModelEmaV3(model, decay=self.decay, use_warmup=True)

    @torch.no_grad()
    def _swap(self) -> None:
        model = unwrapped(self.trainer.model)
        for own, other in zip(model.state_dict().values(), self.average.module.state_dict().values(), strict=True):
            kept = own.clone()
            own.copy_(other)
            other.copy_(kept)
        self.swapped = not self.swapped
