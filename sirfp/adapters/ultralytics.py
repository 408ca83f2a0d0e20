"""Callbacks of ultralytics that prune a YOLO model while it trains.

    model = YOLO("yolov8n.yaml")
    PruneCallback(torch.zeros(1, 3, 640, 640), keep_flops=0.5, start=1000, recover=500).add_to(model)
    model.train(data="coco8.yaml", epochs=100)

The moving average of the weights is cut too. Files of weights hold the pruned model. To go on with an interrupted
run, add the callback to `YOLO("last.pt")` and call `train(resume=True)`: the state of the pruning lies beside the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from ..surgery.cut import apply
from ..surgery.earlier_cuts import whole_plan
from .steps import Steps

try:
    from ultralytics.utils import callbacks as _callbacks  # noqa: F401
except ModuleNotFoundError as error:
    raise InputError("ultralytics is not installed: pip install 'sirfp[adapters]'") from error

FILE = "pruner.pt"
"""Name of the file with the pruning's state, in the folder of the run's weights."""
EVENTS = (
    "on_pretrain_routine_start",
    "on_train_start",
    "on_train_batch_start",
    "on_train_batch_end",
    "on_model_save",
)
"""The events of ultralytics' trainer that the callback answers."""


class PruneCallback:
    """Prunes while ultralytics trains on one device. For several, it starts processes, which do not have the callback.

    Args:
        example_inputs: images (N, 3, H, W), on which FLOPs are counted.
        **arguments: those of `sirfp.adapters.steps.Steps`; steps are those of the optimizer, of one batch or several.
    """

    def __init__(self, example_inputs: Any, **arguments: Any):
        self.steps = Steps(example_inputs, **arguments)
        self._done, self._stepped = 0, False

    def add_to(self, model: Any) -> None:
        """Adds the callbacks to a model, `ultralytics.YOLO`, before it trains."""
        for event in EVENTS:
            model.add_callback(event, getattr(self, event))

    def on_pretrain_routine_start(self, trainer: Any) -> None:
        """Lets the trainer build a model as its file of weights has it, pruned; its own way is to build a dense one."""
        build = trainer.get_model

        def get_model(cfg: Any = None, weights: Any = None, verbose: bool = True) -> Any:
            plan = whole_plan(weights) if isinstance(weights, torch.nn.Module) else None
            if plan is None:
                return build(cfg=cfg, weights=weights, verbose=verbose)
            model = build(cfg=cfg, weights=None, verbose=verbose)
            apply(model, plan)
            model.load(weights)
            return model

        trainer.get_model = get_model

    def on_train_start(self, trainer: Any) -> None:
        file = Path(trainer.wdir) / FILE
        if trainer.resume and file.is_file():
            saved = torch.load(file, weights_only=True)
            self._done = saved.pop("done")
            self.steps.load_state_dict(saved)
        also = [trainer.ema.ema] if trainer.ema else []
        self.steps.begin(trainer.model, trainer.optimizer, also)
        step = trainer.optimizer_step

        def optimizer_step() -> None:
            self.steps.after_backward()
            step()
            self._done, self._stepped = self._done + 1, True

        trainer.optimizer_step = optimizer_step

    def on_train_batch_start(self, trainer: Any) -> None:
        self.steps.before_step(self._done)

    def on_train_batch_end(self, trainer: Any) -> None:
        if self._stepped:  # else gradients are pending
            self._stepped = False
            self.steps.after_step(self._done)

    def on_model_save(self, trainer: Any) -> None:
        torch.save({**self.steps.state_dict(), "done": self._done}, Path(trainer.wdir) / FILE)
