"""A callback of Lightning that prunes the network of a `LightningModule` while it trains.

    trainer = lightning.Trainer(callbacks=[PruneCallback(example_inputs, keep_flops=0.4, start=1000, recover=500)])
    trainer.fit(module, loader)

The module has automatic optimisation and one optimizer. Checkpoints of the trainer hold the state of the pruning, and
`trainer.fit(module, loader, ckpt_path=...)` goes on with a module that is dense.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ..errors import InputError
from .steps import Steps

try:
    from lightning.pytorch import Callback
except ModuleNotFoundError as error:
    raise InputError("Lightning is not installed: pip install 'sirfp[adapters]'") from error


class PruneCallback(Callback):
    """Prunes while Lightning trains.

    Args:
        example_inputs: inputs of the network, on which FLOPs are counted.
        network: returns the network of a module, e.g. `lambda module: module.backbone`. By default the only child of
            the module that has parameters, or the module itself.
        **arguments: those of `sirfp.adapters.steps.Steps`; steps are counted as `trainer.global_step`.
    """

    def __init__(
        self, example_inputs: Any, *, network: Callable[[Any], nn.Module] = lambda module: module, **arguments: Any
    ):
        self.steps, self.network = Steps(example_inputs, **arguments), network

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Lets the module be cut as a checkpoint has it, before its weights are loaded."""
        own = type(pl_module).on_load_checkpoint

        def on_load_checkpoint(checkpoint: dict[str, Any]) -> None:
            state = checkpoint.get("callbacks", {}).get(self.state_key)
            if state:
                self.steps.load_state_dict(state)
                self.steps.begin(self.network(pl_module))
            own(pl_module, checkpoint)

        if stage == "fit":
            pl_module.on_load_checkpoint = on_load_checkpoint

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        vars(pl_module).pop("on_load_checkpoint", None)
        if len(trainer.optimizers) != 1 or not pl_module.automatic_optimization:
            raise InputError(
                f"PruneCallback needs automatic optimisation and one optimizer, got {len(trainer.optimizers)}; call "
                "sirfp.Pruner in training_step instead"
            )
        self.steps.begin(self.network(pl_module), trainer.optimizers[0])

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.steps.before_step(trainer.global_step)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.steps.after_backward()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.steps.after_step(trainer.global_step, trainer.strategy.model)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.steps.stop()

    def state_dict(self) -> dict[str, Any]:
        return self.steps.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.steps.load_state_dict(state_dict)
