"""A callback of Hugging Face's `Trainer` that prunes its model while it trains.

    trainer = Trainer(model, arguments, train_dataset=data)
    callback = PruneCallback({"pixel_values": images}, keep_flops=0.4, start=1000, recover=500)
    callback.add_to(trainer)
    trainer.train()

A checkpoint of the trainer has the pruning's state beside the weights. To go on, cut the dense model before:

    callback.rebuild(model, "output/checkpoint-1500")
    trainer.train(resume_from_checkpoint="output/checkpoint-1500")
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from .steps import Steps

try:
    from transformers import TrainerCallback
except ModuleNotFoundError as error:
    raise InputError("transformers is not installed: pip install 'sirfp[adapters]'") from error

FILE = "pruner.pt"
"""Name of the file with the pruning's state in a checkpoint's folder."""


class PruneCallback(TrainerCallback):
    """Prunes while Hugging Face's `Trainer` trains, in one process or, with `DistributedDataParallel`, in several.

    Args:
        example_inputs: inputs of the model, on which FLOPs are counted: a mapping of the arguments of its `forward`.
        **arguments: those of `sirfp.adapters.steps.Steps`; steps are counted as `state.global_step`.
    """

    def __init__(self, example_inputs: Any, **arguments: Any):
        self.steps = Steps(example_inputs, **arguments)
        self.trainer: Any = None

    def add_to(self, trainer: Any) -> None:
        """Adds the callback to a trainer, whose distributed model it then reaches; `callbacks=[...]` hides it."""
        self.trainer = trainer
        trainer.add_callback(self)

    def rebuild(self, model: nn.Module, checkpoint: str | os.PathLike) -> None:
        """Cuts a dense model as a checkpoint has it; call it before the trainer loads the checkpoint.

        Args:
            model: the dense model.
            checkpoint: the folder of the checkpoint.

        Raises:
            InputError: the folder has no state of a pruning.
        """
        file = Path(checkpoint) / FILE
        if not file.is_file():
            raise InputError(f"{checkpoint} has no {FILE}: it was not written by a run with PruneCallback")
        self.steps.load_state_dict(torch.load(file, weights_only=True))
        self.steps.begin(model)

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if args.world_size > 1 and self.trainer is None:
            raise InputError("with several processes, add PruneCallback by callback.add_to(trainer)")
        if args.n_gpu > 1:
            raise InputError(f"PruneCallback needs a process for each GPU, not one for {args.n_gpu}: use torchrun")
        self.steps.begin(given["model"], given["optimizer"])

    def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self.steps.before_step(state.global_step)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self.steps.after_backward()

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self.steps.after_step(state.global_step, getattr(self.trainer, "model_wrapped", None))

    def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Writes the pruning's state beside the weights of a checkpoint."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            torch.save(self.steps.state_dict(), folder / FILE)
