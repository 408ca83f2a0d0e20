"""Skips iterations with a NaN or infinite loss or gradients; stops after MAX_NONFINITE such iterations in a row.

Checks and counts are computed on the training device. The host reads the counts only now and then, so that it need not
wait for the device in every step.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ..errors import InputError
from ..network.forward import backward_seed

logger = logging.getLogger(__name__)

READ_EVERY = 20
"""Iterations between two reads of the counts from a GPU; on a CPU they are read in each iteration.

Reading makes the host wait for the GPU. The interval of 20 was chosen because one wait in 20 iterations costs hardly
any time, and a run that should stop wastes at most 20 iterations."""
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_NORMS = nn.modules.batchnorm._NormBase


class FiniteSteps:
    """Protects a model from NaN and infinite losses, gradients and features.

    Each training step calls `remember` before the forward pass, `seed` for the backward pass, `judge` after the
    backward pass, and `undo` before the update.

    In a non-finite iteration, gradients are set to zero, and the norms' running statistics are restored. Weights still
    move by their momentum. Running statistics are also restored if only they are not finite, e.g. because the square of
    a feature overflows. Processes that average their gradients make the same decision.

    Args:
        limit: the number of non-finite iterations in a row after which `read_counts` stops the run; 0 for no limit.

    Attributes:
        seen: the number of non-finite iterations at the last read.
        before_end: a function that `read_counts` calls before it stops the run.
    """

    def __init__(self, limit: int = 0):
        self.limit = limit
        self.seen = self._said = 0
        self.before_end: Callable[[], None] = lambda: None
        self._counts: torch.Tensor | None = None  # non-finite iterations: in all, currently in a row, most in a row
        self._model: nn.Module | None = None
        self._norms: list[nn.Module] = []
        self._kept: list[torch.Tensor] = []

    @torch.no_grad()
    def remember(self, model: nn.Module) -> None:
        """Copies the running statistics of a model's norms."""
        if model is not self._model:
            self._model = model
            self._norms = [module for module in model.modules() if isinstance(module, _NORMS)]
        now = self._statistics()
        if [t.shape for t in now] != [t.shape for t in self._kept]:
            self._kept = [torch.empty_like(t) for t in now]
        if now:
            torch._foreach_copy_(self._kept, now)

    @staticmethod
    def seed(loss: torch.Tensor) -> torch.Tensor:
        """Returns the seed of the backward pass: 1.0, or NaN if the loss is not finite; see `backward_seed`."""
        return backward_seed(loss)

    @torch.no_grad()
    def judge(self, optimizer: torch.optim.Optimizer) -> torch.Tensor:
        """Updates the counts; returns whether all gradients are finite, as a bool tensor () on their device."""
        gradients = list(_gradients(optimizer))
        if not gradients:
            return torch.tensor(True)
        finite = torch.stack(torch._foreach_norm(gradients)).sum().isfinite()
        if self._counts is None or self._counts.device != finite.device:
            self._counts = torch.zeros(3, dtype=torch.int64, device=finite.device)
        total, row, most = self._counts
        total += ~finite
        row.add_(1).mul_(~finite)
        most.copy_(torch.maximum(most, row))
        return finite

    @torch.no_grad()
    def undo(self, optimizer: torch.optim.Optimizer, finite: torch.Tensor) -> None:
        """Zeroes the gradients and restores the running statistics, unless the iteration was finite.

        On a CPU nothing is computed in a finite iteration. On a GPU everything is computed in each iteration, because
        reading `finite` would make the host wait.
        """
        readable = finite.device.type == "cpu"
        if not (readable and finite):
            clear(list(_gradients(optimizer)), finite)
        now = self._statistics()
        if now:
            finite = finite & torch.stack(torch._foreach_norm(now, 1)).sum().isfinite()
            if not (readable and finite):
                restore(now, self._kept, finite)

    def read_counts(self, iteration: int, every: int = READ_EVERY) -> bool:
        """Reads and logs the counts; call it before each iteration.

        Args:
            iteration: the number of the iteration.
            every: the interval, in iterations, at which counts are read from a GPU.

        Returns:
            True if the counts were read.

        Raises:
            InputError: `limit` iterations in a row were not finite.
        """
        if self._counts is None or (self._counts.device.type != "cpu" and iteration % every):
            return False
        total, row, most = self._counts.tolist()
        if total > self._said and (not self._said or iteration % every == 0 or most == self.limit):
            self._said = total
            logger.warning(
                "By iteration %d, %d iterations had a NaN or infinite loss or gradients; they were skipped",
                iteration,
                total,
            )
        self.seen = total
        if self.limit and most >= self.limit:
            self.before_end()
            raise InputError(
                f"the loss or its gradients were not finite in {most} iterations in a row, by iteration {iteration}; "
                "lower SOLVER.BASE_LR, clip gradients (SOLVER.CLIP_GRADIENTS) or look for damaged data, then continue "
                "with --resume (the limit is SIRFP.MAX_NONFINITE)"
            )
        return True

    def _statistics(self) -> list[torch.Tensor]:
        found = (getattr(norm, name) for norm in self._norms for name in ("running_mean", "running_var"))
        return [part for part in found if part is not None]


@contextmanager
def finite_norms(model: nn.Module) -> Iterator[None]:
    """While active, restores a norm's running statistics after each call that makes them NaN or infinite."""
    norms = [module for module in model.modules() if isinstance(module, _NORMS) and module.running_mean is not None]
    handles = [norm.register_forward_hook(_keeper(norm)) for norm in norms]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _keeper(norm: nn.Module) -> Callable[..., None]:
    names = [name for name in ("running_mean", "running_var") if getattr(norm, name) is not None]
    before = {name: getattr(norm, name).clone() for name in names}

    @torch.no_grad()
    def keep(module: nn.Module, *_) -> None:
        own = {name: getattr(module, name) for name in names}
        finite = torch.stack([tensor.isfinite().all() for tensor in own.values()]).all()
        for name, tensor in own.items():
            tensor.copy_(torch.where(finite, tensor, before[name]))
            before[name] = tensor.clone()

    return keep


def clear(tensors: list[torch.Tensor], keep: torch.Tensor) -> None:
    """Zeroes tensors in place unless `keep`, a bool tensor (), is True.

    The tensors' bits are multiplied as integers, because NaN times 0 is NaN.
    """
    for bits in _by_type(tensors):
        torch._foreach_mul_(bits, keep.to(bits[0].dtype))


def restore(tensors: list[torch.Tensor], before: list[torch.Tensor], keep: torch.Tensor) -> None:
    """Sets tensors in place to their values in `before`, unless `keep` is True; overwrites `before`."""
    clear(tensors, keep)
    clear(before, ~keep)
    for now, then in zip(_by_type(tensors), _by_type(before), strict=True):
        torch._foreach_add_(now, then)


def _by_type(tensors: Iterable[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Views the tensors' bits as integers, grouped by element size."""
    found: dict[torch.dtype, list[torch.Tensor]] = {}
    for tensor in tensors:
        kind = _BITS[tensor.element_size()]
        found.setdefault(kind, []).append(tensor.view(kind))
    return list(found.values())


def _gradients(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    return (p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None)
