"""When a training run of another library looks and cuts: the part that all adapters share."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from ..budget.limits import check_count
from ..budget.target import KEEP_FLOPS, Target
from ..errors import InputError
from ..network.wrappers import plain
from ..pruner import Pruner
from ..training.schedule import Schedule

BUDGETS = ("keep_flops", "keep_params", "keep_latency")


class Steps:
    """Drives a `sirfp.Pruner` by the steps of a training run, which are counted from 0.

    Args:
        example_inputs: inputs of the model, on any device, on which FLOPs are counted.
        start: the number of training steps before the first cut.
        recover: the number of training steps between two cuts.
        accumulate: the number of training steps before the first cut that the pruner looks at; all by default. Between
            cuts it looks at all.
        steps: the number of cuts.
        **arguments: those of `sirfp.Pruner`, e.g. `keep_flops` and `criterion`.

    Attributes:
        pruner: the pruner; None until the run has begun.

    Raises:
        InputError: a value is out of range, or several budgets are given.
    """

    def __init__(
        self,
        example_inputs: Any,
        *,
        start: int,
        recover: int = 0,
        accumulate: int | None = None,
        steps: int = 3,
        **arguments: Any,
    ):
        accumulate = start if accumulate is None else accumulate
        check_count("start", start, 1)
        check_count("recover", recover, int(steps > 1))
        check_count("accumulate", accumulate, 0)
        if accumulate > start:
            raise InputError(f"accumulate must be at most start, {start} training steps, got {accumulate}")
        target = Target.of(KEEP_FLOPS, **{name: arguments.get(name) for name in BUDGETS})
        self.example_inputs, self.arguments = example_inputs, {**arguments, "steps": steps}
        self.schedule = Schedule(start, steps, accumulate, recover, target, start + (steps - 1) * recover)
        self.pruner: Pruner | None = None
        self._state: dict[str, Any] | None = None
        self._look = ExitStack()
        self._looks = False

    def begin(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        also: Iterable[nn.Module] = (),
    ) -> None:
        """Makes the pruner, unless there is one, with the state that was loaded; sets its optimizer.

        Args:
            model: the model, dense or as the state has it; wrapped or not.
            optimizer: its optimizer.
            also: models that lose the same channels.
        """
        if self.pruner is None:
            device = next(model.parameters()).device
            inputs = tree_map(lambda x: x.to(device) if isinstance(x, torch.Tensor) else x, self.example_inputs)
            self.pruner = Pruner(model, inputs, optimizer=optimizer, also=also, **self.arguments)
            if self._state:
                self.pruner.load_state_dict(self._state)
        if optimizer is not None:
            self.pruner.optimizer = optimizer

    def before_step(self, step: int) -> None:
        """Begins to look, before the first forward pass of a training step."""
        if self.pruner and not self.pruner.done and not self._looks and self.schedule.accumulates(step):
            self._looks = True
            self._look.enter_context(self.pruner.look())

    def after_backward(self) -> None:
        """Ends the look, when all gradients of the step are there and the optimizer has not stepped yet."""
        self._looks = False
        self._look.close()

    def stop(self) -> None:
        """Ends a look at a step that will not be complete, such as that of an error."""
        if self._looks:
            self._looks = False
            self._look.__exit__(RuntimeError, RuntimeError(), None)

    def after_step(self, done: int, wrapper: nn.Module | None = None) -> bool:
        """Cuts if a cut is due.

        Args:
            done: the number of training steps so far.
            wrapper: a distributed wrapper of the model, which goes on with the parameters that are left.

        Returns:
            True if the model was cut.
        """
        pruner = self.pruner
        if pruner is None or pruner.done or done != self.schedule.iterations[pruner.cuts]:
            return False
        self.stop()
        with plain(pruner.model if wrapper is None else wrapper):
            pruner.cut()
        return True

    def state_dict(self) -> dict[str, Any]:
        """Returns the pruner's state; that which was loaded, or an empty one, if the run has not begun."""
        return self.pruner.state_dict() if self.pruner else self._state or {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a state at once, or when the run begins."""
        self._state = state
        if self.pruner and state:
            self.pruner.load_state_dict(state)
