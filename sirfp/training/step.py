"""One training step of any task, in mixed precision if the CPU or GPU supports it."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import nn

from ..errors import InputError, one_line
from .depthwise import DepthwiseGradients
from .nonfinite import FiniteSteps


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Returns the 16-bit dtype that makes training faster on a device, or None if no 16-bit dtype does.

    bfloat16 is preferred, because it needs no loss scaling. GPUs without bfloat16 use float16. CPUs without bfloat16
    instructions only emulate it, which is slow, so the result is None for them.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return None
    if platform.machine() in ("x86_64", "AMD64"):
        units = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
        return torch.bfloat16 if units() else None
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else None


class MixedPrecisionTrainer(SimpleTrainer):
    """Detectron2's `SimpleTrainer` with autocast on any device.

    Detectron2's own `AMPTrainer` requires CUDA. This trainer differs from `AMPTrainer` and `SimpleTrainer` as follows:

    - Gradients are unscaled before `after_backward` is called.
    - `after_backward` is a method of the outer trainer, so that its hooks are called.
    - An iteration with a NaN or infinite loss or gradients is skipped instead of ending the run
      (`sirfp.training.nonfinite`).

    Args:
        model: a module that takes a batch and returns a dict of losses. Model and optimizer may be replaced between
            two steps.
        data_loader: an iterable of batches.
        optimizer: the optimizer of the model's parameters.
        precision: the dtype of autocast; None for float32.
        after_backward: a function that is called when the gradients are ready.
        losses: a function that computes the losses of a model on a batch; by default the model returns them.
        max_nonfinite: the number of non-finite iterations in a row after which the run stops; 0 for no limit.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader,
        optimizer: torch.optim.Optimizer,
        precision: torch.dtype | None,
        after_backward: Callable[[], None],
        losses: Callable[[nn.Module, Any], Any] = lambda model, data: model(data),
        max_nonfinite: int = 0,
    ):
        super().__init__(model, data_loader, optimizer)
        self.device = next(model.parameters()).device
        self.precision = precision
        self.after_backward, self.losses = after_backward, losses
        self.finite = FiniteSteps(max_nonfinite)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision is torch.float16)

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Returns the context of the forward pass: autocast, and float32 gradients of depthwise convolutions."""
        slow = self.device.type == "cpu" and self.precision is torch.bfloat16 and torch.is_grad_enabled()
        autocast = torch.autocast(self.device.type, self.precision, enabled=self.precision is not None)
        with autocast, DepthwiseGradients() if slow else nullcontext():  # every function pays for the mode
            yield

    def run_step(self) -> None:
        """Runs one iteration: reads a batch, computes losses and gradients, updates the weights."""
        assert self.model.training, "the model is in evaluation mode"
        if self.finite.read_counts(self.iter):
            get_event_storage().put_scalar("sirfp/nonfinite", self.finite.seen, smoothing_hint=False)
        self.finite.remember(self.model)
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        # TorchScript functions (in detectors' losses) are optimised after their second call, which changes the last
        # digits of results. Then a resumed run would differ from an uninterrupted run.
        with self.autocast(), torch.jit.optimized_execution(self.device.type != "cpu"):
            losses = self._finite_losses(data)
            total = sum(losses.values())
        self.optimizer.zero_grad()
        self.scaler.scale(total).backward(self.finite.seed(total))
        self.scaler.unscale_(self.optimizer)
        finite = self.finite.judge(self.optimizer)
        self.after_backward()
        self.finite.undo(self.optimizer, finite)
        self._write_metrics(losses, data_time)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _finite_losses(self, data: Any) -> dict[str, Any]:
        """Computes the losses; a forward pass that a model stops at NaN or infinite values counts as a NaN loss.

        Raises:
            InputError: the model stops its forward pass in a run of several processes, which wait for each other.
        """
        try:
            losses = self.losses(self.model, data)
        except FloatingPointError as error:  # Detectron2's region proposals
            if comm.get_world_size() > 1:
                raise InputError(
                    f"the model stops at values that are not finite, at iteration {self.iter} "
                    f"({one_line(error, 160)}); lower SOLVER.BASE_LR or clip gradients (SOLVER.CLIP_GRADIENTS), then "
                    "continue with --resume. In a run of one process such an iteration is skipped"
                ) from error
            trained = [p for p in self.model.parameters() if p.requires_grad]
            return {"total_loss": sum(p.flatten()[:1].sum() for p in trained) * math.nan}
        return {"total_loss": losses} if isinstance(losses, torch.Tensor) else losses

    def _write_metrics(self, loss_dict, data_time: float, prefix: str = "", iter: int | None = None) -> None:
        step = self.iter if iter is None else iter
        if (step + 1) % self.gather_metric_period == 0:
            with suppress(FloatingPointError):  # a NaN loss is not written; `finite` counts it
                self.write_metrics(loss_dict, data_time, step, prefix)

    def state_dict(self) -> dict:
        data = {"data": self.data_loader.state_dict()} if hasattr(self.data_loader, "state_dict") else {}
        return {**super().state_dict(), "scaler": self.scaler.state_dict(), **data}

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        if state_dict.get("scaler") and self.scaler.is_enabled():
            self.scaler.load_state_dict(state_dict["scaler"])
        if "data" in state_dict and hasattr(self.data_loader, "load_state_dict"):
            self.data_loader.load_state_dict(state_dict["data"])
