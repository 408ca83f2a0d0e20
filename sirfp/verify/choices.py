"""Repeats the discrete choices of one run in another, so that rounding errors cannot change them.

A difference of 1e-7 can change a comparison with a threshold, an order of scores, or which boxes survive a non-maximum
suppression. After one changed choice the results of two runs cannot be compared. Here the second run takes the choices
of the first, as long as its own values differ from those of the first by no more than rounding errors.
"""

from __future__ import annotations

import pickle
import random
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..network.untouched import SharedMemory
from ..tracing import STATISTICS
from ..tracing.codes import arguments, by_name, described, operation

STEPS = frozenset(f"aten::{name}" for name in ("floor", "ceil", "round", "trunc", "sign", "floor_divide"))
"""Operations from numbers to numbers that jump."""
ORDERS = frozenset(f"aten::{name}" for name in ("sort", "topk", "max", "min", "median", "mode", "kthvalue"))
"""Operations that return values and their indices in one dimension."""
ROUNDING = 1000
"""Largest difference between equal results of two runs, in machine epsilons of their type, relative to the largest
value.

Chosen, not measured: rounding errors add up over the layers of a network, while a wrong cut changes an output by a
visible share. For 16-bit types, 1000 epsilons are about the output itself or more, so `eps ** 0.5` is the limit."""


def tolerance(dtype: torch.dtype) -> float:
    """Returns the largest relative difference that rounding errors explain."""
    eps = torch.finfo(dtype).eps
    return min(ROUNDING * eps, eps**0.5)


class Choices(TorchDispatchMode):
    """Records, while active, the discrete choices of a run, or repeats those of an earlier run.

    Args:
        earlier: the choices of the run to repeat, or None to record only.
        shared: the memory that the model shares with another one, or None.

    Attributes:
        made: (operation, its inputs, its results) of each choice of the recorded run.
        statistics: (operation, shape of its input) of each statistic (`sirfp.tracing.STATISTICS`).
        ran: the operations (`sirfp.tracing.codes.described`).
        drawn: the states of all random number generators at the end; two runs of one seed that end in the same states
            have drawn the same numbers.
    """

    def __init__(self, earlier: Choices | None = None, shared: SharedMemory | None = None):
        super().__init__()
        self.shared = shared
        self.made: list[tuple[str, list[torch.Tensor], list[Any]]] = []
        self.statistics: list[tuple[str, tuple[int, ...]]] = []
        self.ran: list[tuple] = []
        self.drawn = b""
        self._earlier = None if earlier is None else iter(earlier.made)

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # see `ChannelTrace`

    def __exit__(self, *exc):
        super().__exit__(*exc)
        devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        states = [random.getstate(), np.random.get_state(legacy=False)]
        self.drawn = pickle.dumps([*states, *(state.numpy() for state in (torch.get_rng_state(), *devices))])

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        known = operation(func)
        if known is None:
            self.ran.append(described(func.name(), tree_leaves((args, kwargs))))
            return func(*args, **kwargs)
        name, leaves = known.name, arguments(args, kwargs)
        self.ran.append(described(name, leaves))
        if known.writes and self.shared is not None and leaves and isinstance(leaves[0], torch.Tensor):
            self.shared.before_write(leaves[0])
        if name in STATISTICS:
            self.statistics.append((name, tuple(args[0].shape)))
        out = func(*args, **kwargs)
        results = list(out) if isinstance(out, (tuple, list)) else [out]
        if known.writes or not _may_choose(name, results):
            return out
        inputs = [t for t in leaves if isinstance(t, torch.Tensor) and t.is_floating_point()]
        if not inputs or any(t.layout != torch.strided for t in inputs):  # few operations compare sparse tensors
            return out
        if self._earlier is None:
            self.made.append((name, [t.clone() for t in inputs], [_own(value) for value in results]))
            return out
        before, inputs_before, chosen = next(self._earlier, ("", [], []))
        if before != name or not _agree(inputs_before, inputs) or not _agree_in_kind(chosen, results):
            return out
        if name in ORDERS and len(results) == 2:
            chosen = [_taken(inputs[0], chosen[1], _axis(func, args, kwargs)), chosen[1]]
        elif name not in STEPS:
            chosen = [b if _is_free(b, a) else a for a, b in zip(chosen, results, strict=True)]
        chosen = [_own(value) for value in chosen]
        return type(out)(chosen) if isinstance(out, (tuple, list)) else chosen[0]


def _axis(func: Any, args: tuple, kwargs: dict) -> int:
    return by_name(func, args, kwargs).get("dim", -1)


def _taken(x: torch.Tensor, index: torch.Tensor, axis: int) -> torch.Tensor:
    """Returns the values of `x` at indices along a dimension, which the indices have or have lost."""
    given = index if index.dim() == x.dim() else index.unsqueeze(axis)
    return x.take_along_dim(given, axis).reshape(index.shape)


def _may_choose(name: str, results: list[Any]) -> bool:
    return name in STEPS or name == "aten::_local_scalar_dense" or any(_is_discrete(value) for value in results)


def _is_discrete(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and not value.is_floating_point() and not value.is_complex()


def _is_free(value: Any, earlier: Any) -> bool:
    """True for a tensor of numbers as long as that of the earlier run: it is no choice but belongs to one."""
    return isinstance(value, torch.Tensor) and not _is_discrete(value) and value.shape == earlier.shape


def _own(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value


def _agree(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    """True if the tensors of two lists differ by no more than rounding errors."""
    if [t.shape for t in first] != [t.shape for t in second]:
        return False
    for a, b in zip(first, second, strict=True):
        if a.dtype != b.dtype:
            return False
        if a.numel():
            scale = a.abs().nan_to_num(0, 0, 0).max()
            near = ((a - b).abs() <= tolerance(a.dtype) * scale) | (a == b) | ((a != a) & (b != b))
            if not near.all():
                return False
    return True


def _agree_in_kind(first: list[Any], second: list[Any]) -> bool:
    """True if two lists of results hold values of the same types, and tensors of the same data types."""
    kinds = [[v.dtype if isinstance(v, torch.Tensor) else type(v) for v in values] for values in (first, second)]
    return kinds[0] == kinds[1]
