"""Iterations whose loss or gradients are no numbers: they change nothing, are counted, and end a run when many.

All of it stays on the device that trains: no step waits for an answer. The host looks at the counts now and then.
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
"""Iterations between two looks at the counts of a GPU; a processor's are looked at each time."""
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_NORMS = nn.modules.batchnorm._NormBase


class FiniteSteps:
    """Keeps losses, gradients and features that are not finite out of a model.

    In a step: `remember` before the forward pass, `seed` for the backward pass, `judge` once gradients are there, and
    `undo` before the update. In an iteration that is not finite gradients count as zero, so that weights go on by the
    momentum that they have, and the norms' running statistics stay what they were; those also where they alone are not
    finite, as of values too large to be squared. Processes that average their gradients all judge alike.

    Args:
        limit: iterations in a row that are not finite, after which `read_counts` ends the run; 0: none does.

    Attributes:
        seen: iterations that were not finite, when last looked at.
        before_end: is called before `read_counts` ends the run.
    """

    def __init__(self, limit: int = 0):
        self.limit = limit
        self.seen = self._said = 0
        self.before_end: Callable[[], None] = lambda: None
        self._counts: torch.Tensor | None = None  # not finite: in all, in a row just now, most in a row
        self._model: nn.Module | None = None
        self._norms: list[nn.Module] = []
        self._kept: list[torch.Tensor] = []

    @torch.no_grad()
    def remember(self, model: nn.Module) -> None:
        """Notes the running statistics of a model's norms."""
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
        """Seed of the backward pass: 1.0, or NaN if the loss is not finite, so that all gradients become NaN."""
        return backward_seed(loss)

    @torch.no_grad()
    def judge(self, optimizer: torch.optim.Optimizer) -> torch.Tensor:
        """Counts the iteration; returns whether all gradients are finite, () of bool on their device."""
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
        """Clears gradients and puts running statistics back, unless the iteration was finite."""
        ask = finite.device.type == "cpu"
        if not (ask and finite):
            clear(list(_gradients(optimizer)), finite)
        now = self._statistics()
        if now:
            finite = finite & torch.stack(torch._foreach_norm(now, 1)).sum().isfinite()
            if not (ask and finite):
                restore(now, self._kept, finite)

    def read_counts(self, iteration: int, every: int = READ_EVERY) -> bool:
        """Reads and logs what was counted, where it is time to; called before each iteration. Returns whether it did.

        Raises:
            InputError: so many iterations in a row were not finite that nothing is learned.
        """
        if self._counts is None or (self._counts.device.type != "cpu" and iteration % every):
            return False
        total, row, most = self._counts.tolist()
        if total > self._said and (not self._said or iteration % every == 0 or most == self.limit):
            self._said = total
            logger.warning(
                "By iteration %d, %d iterations had a loss or gradients that are not finite; they changed nothing",
                iteration,
                total,
            )
        self.seen = total
        if self.limit and most >= self.limit:
            self.before_end()
            raise InputError(
                f"the loss or its gradients were not finite in {most} iterations in a row, by iteration {iteration}: "
                "nothing is learned; lower SOLVER.BASE_LR, clip gradients (SOLVER.CLIP_GRADIENTS) or look for broken "
                "data, then go on with --resume (the limit is SIRFP.MAX_NONFINITE)"
            )
        return True

    def _statistics(self) -> list[torch.Tensor]:
        found = (part for norm in self._norms for part in (norm.running_mean, norm.running_var))
        return [part for part in found if part is not None]


@contextmanager
def finite_norms(model: nn.Module) -> Iterator[None]:
    """In a forward pass inside, running statistics that would become something not finite stay as they were."""
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
    """Makes tensors zero unless `keep`, () of bool, in place: their bits, as not a number times 0 is none either."""
    for bits in _by_type(tensors):
        torch._foreach_mul_(bits, keep.to(bits[0].dtype))


def restore(tensors: list[torch.Tensor], before: list[torch.Tensor], keep: torch.Tensor) -> None:
    """Makes tensors what they were unless `keep`, in place; `before` is of no use afterwards."""
    clear(tensors, keep)
    clear(before, ~keep)
    for now, then in zip(_by_type(tensors), _by_type(before), strict=True):
        torch._foreach_add_(now, then)


def _by_type(tensors: Iterable[torch.Tensor]) -> list[list[torch.Tensor]]:
    """The tensors' bits as integers, those of a size together."""
    found: dict[torch.dtype, list[torch.Tensor]] = {}
    for tensor in tensors:
        kind = _BITS[tensor.element_size()]
        found.setdefault(kind, []).append(tensor.view(kind))
    return list(found.values())


def _gradients(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    return (p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None)
