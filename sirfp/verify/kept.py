"""Runs a dense model as if its removed channels were not there, so that a cut model must give the same values.

Zeroing the weights of removed channels is not enough where a statistic runs over channels: a mean or softmax over 12
of 16 channels is another one than over 16 channels of which 4 are zero. Here the channels are followed through the
pass, as `sirfp.tracing` does, and each statistic is taken over the kept channels only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn

from ..network.attention import followed_heads
from ..network.detectron import feature_widths
from ..network.response_norm import followed_response_norms
from ..structure.atoms import state_tensors
from ..structure.plan import PruningPlan
from ..tracing import STATISTICS, ChannelTrace, convolution_weights
from ..tracing.reductions import normalises_batch, reduced_axes
from .kept_widths import KeptWidths

BATCH_NORMS = ("native_batch_norm", "_native_batch_norm_legit", "_batch_norm_with_update", "cudnn_batch_norm")
PRODUCTS = ("convolution", "_convolution", "addmm", "mm", "bmm", "baddbmm", "linear", "mv", "dot")
ALIKE = ("_softmax", "_log_softmax", "softmax", "log_softmax", "_safe_softmax")
"""Operations over one dimension whose result has the shape of their input."""


class KeptStatistics(ChannelTrace):
    """Computes, while active, each statistic over the kept channels only.

    It covers every operation in `sirfp.tracing.STATISTICS` and batch norms that use the statistics of their input. The
    results for removed channels are zero where the result has them; whatever reads them must have zero weights.

    Args:
        model: a model whose removed channels are zeroed (`sirfp.verify.mask`).
        plan: the plan whose channels are removed.
        clean: True to zero the removed channels of what products read. Otherwise a removed channel that has become NaN
            (0 / 0) makes all that read it NaN, because zero weights do not silence it.
        replace_widths: True to replace powers of a width that statistics are multiplied with (`kept_widths`).

    Attributes:
        widths: finds such powers.
        shapes: (operation, shape of the kept part of its input) of each statistic, in order.
    """

    notes_reads = False

    def __init__(self, model: nn.Module, plan: PruningPlan, *, clean: bool = False, replace_widths: bool = False):
        super().__init__(state_tensors(model), kernels=convolution_weights(model))
        self.counting, self.clean, self.widths = False, clean, KeptWidths(replace_widths)
        self.shapes: list[tuple[str, tuple[int, ...]]] = []
        # They follow what the model's code hides, such as heads of attention.
        self._followers: list[AbstractContextManager] = [
            feature_widths(model, self), followed_heads(model, self), followed_response_norms(model, self)
        ]  # fmt: skip
        self._cuts, self._gone = plan.cuts, np.zeros(0, dtype=bool)

    def __enter__(self):
        for follower in self._followers:
            follower.__enter__()
        self._gone = np.zeros(self.labels.count, dtype=bool)
        for cut in self._cuts:
            gone = np.ones(cut.size, dtype=bool)
            gone[list(cut.keep)] = False
            for name, dim in cut.tensors:
                labels = self.state_dims[name][dim] if name in self.state_dims else None
                if labels is not None:
                    self._gone[labels[gone]] = True
        return super().__enter__()

    def __exit__(self, *exc):
        super().__exit__(*exc)
        while self._followers:  # they refer to the trace: without this circle, the weights it holds are freed at once
            self._followers.pop().__exit__(*exc)

    def outer(self, flat: np.ndarray, varying: list[int]) -> int:
        """Returns the dimension of a split along which the plan removes rows, see `ChannelTrace.outer`."""
        gone = self._is_gone(flat)
        for k, axis in enumerate(reversed(varying)):
            rows = np.moveaxis(gone, axis, -1).reshape(-1, flat.shape[axis])
            if (rows == rows[0]).all():
                return k
        return 0

    def reads(self, *given: Any) -> None:
        """Does nothing: which layers read channels is not asked for here."""

    def emitted(self, tensor: torch.Tensor, maps: bool = False) -> None:
        """Returns None: constants of emptied channels are not followed here, which saves time."""
        return None

    def set_emitted(self, tensor: torch.Tensor, dim: int, constants: torch.Tensor | None) -> None:
        """Does nothing, see `emitted`."""

    def emit_later(self, tensor: torch.Tensor, values: Callable[[], tuple[int, torch.Tensor]]) -> None:
        """Does nothing, see `emitted`. Other modes that record the pass would see the operations of `values`."""

    def compute(self, func: Any, args: tuple, kwargs: dict) -> Any:
        """Runs an operation; a statistic runs on the kept channels of its input."""
        name = func._schema.name
        if self.clean and name.removeprefix("aten::") in PRODUCTS:
            args = tuple(self.present(a) if isinstance(a, torch.Tensor) else a for a in args)
        if name not in STATISTICS and not (name.endswith(BATCH_NORMS) and normalises_batch(func, args, kwargs)):
            short = name.removeprefix("aten::")
            out = func(*self.widths.fit(short, args), **kwargs)
            self.widths.note(short, args, out)
            return out
        x = args[0]
        kept = [self._kept(labels) for labels in self.dims(x)]
        if name in STATISTICS:
            sizes = zip(x.shape, kept, strict=True)
            self.shapes.append((name, tuple(n if k is None else len(k) for n, k in sizes)))
        if all(index is None for index in kept):
            return func(*args, **kwargs)
        if name == "aten::native_group_norm":
            return _group_norm(func, args, kept)
        if name.endswith(BATCH_NORMS):
            axes = [axis for axis in range(x.dim()) if axis != 1]
            return _like_input(func, args, kwargs, {axis: kept[axis] for axis in axes})
        if name.endswith(("native_layer_norm", "_fused_rms_norm")):
            axes = list(range(x.dim() - len(args[1]), x.dim()))
            return _layer_norm(func, args, kwargs, {axis: kept[axis] for axis in axes})
        if name.removeprefix("aten::") in ALIKE:
            axis = args[1] % max(1, x.dim())
            return _like_input(func, args, kwargs, {axis: kept[axis]})
        if name in ("aten::max", "aten::min") and len(args) > 1 and isinstance(args[1], torch.Tensor):
            return func(*args, **kwargs)
        reduced, _ = reduced_axes(func, args, kwargs, x)
        out = func(_select(x, {axis: kept[axis] for axis in reduced}), *args[1:], **kwargs)
        self.widths.note_statistic(func, args, kwargs, kept, out)
        return out

    def present(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns a tensor with its removed channels zeroed."""
        clean = tensor
        for axis, index in enumerate(map(self._kept, self.dims(tensor))):
            if index is not None:
                gone = torch.ones(tensor.shape[axis], dtype=torch.bool, device=tensor.device)
                gone[index.to(tensor.device)] = False
                clean = clean.index_fill(axis, gone.nonzero().flatten(), 0)
        return clean

    def _is_gone(self, labels: np.ndarray) -> np.ndarray:
        """Returns which labels the plan removes; labels made in the pass belong to parts of fixed size."""
        gone = np.zeros(labels.shape, dtype=bool)
        known = labels < len(self._gone)
        gone[known] = self._gone[labels[known]]
        return gone

    def _kept(self, labels: np.ndarray | None) -> torch.Tensor | None:
        """Returns the kept indices of a dimension, None if it loses none of its channels, or all."""
        if labels is None:
            return None
        gone = self._is_gone(labels)
        return torch.from_numpy(np.flatnonzero(~gone)) if gone.any() and not gone.all() else None


def as_if_cut(
    model: nn.Module, plan: PruningPlan | None, *, replace_widths: bool = False
) -> AbstractContextManager[Any]:
    """Returns a context in which a masked model takes its statistics over the kept channels; no plan: as they are."""
    return nullcontext() if plan is None else KeptStatistics(model, plan, clean=True, replace_widths=replace_widths)


def _select(x: torch.Tensor, kept: dict[int, torch.Tensor | None]) -> torch.Tensor:
    for axis, index in kept.items():
        if index is not None:
            x = x.index_select(axis, index.to(x.device))
    return x


def _spread(small: torch.Tensor, like: torch.Tensor, kept: dict[int, torch.Tensor | None]) -> torch.Tensor:
    """Returns a tensor of the shape of `like` with `small` at the kept indices and zeros elsewhere."""
    for axis, index in kept.items():
        if index is not None:
            shape = list(small.shape)
            shape[axis] = like.shape[axis]
            small = small.new_zeros(shape).index_copy_(axis, index.to(small.device), small)
    return small


def _like_input(func: Any, args: tuple, kwargs: dict, kept: dict[int, torch.Tensor | None]) -> Any:
    """Runs an operation on the kept part of its input; the first result has the shape of the input."""
    out = func(_select(args[0], kept), *args[1:], **kwargs)
    if isinstance(out, torch.Tensor):
        return _spread(out, args[0], kept)
    return (_spread(out[0], args[0], kept), *out[1:])


def _layer_norm(func: Any, args: tuple, kwargs: dict, kept: dict[int, torch.Tensor | None]) -> Any:
    x, shape, *others = args
    sizes = [x.shape[axis] if index is None else len(index) for axis, index in kept.items()]
    last = {axis - min(kept): index for axis, index in kept.items()}
    others = [_select(v, last) if isinstance(v, torch.Tensor) and v.dim() == len(shape) else v for v in others]
    return _like_input(func, (x, sizes, *others), kwargs, kept)


def _group_norm(func: Any, args: tuple, kept: list[torch.Tensor | None]) -> Any:
    """Runs a group norm whose channels or positions are cut.

    Either whole groups are cut, or as many channels of each group: the rule of group norms ties them so.
    """
    x, weight, bias, count, _, _, groups, eps = args
    index = kept[1]
    if index is not None:
        width = x.shape[1] // groups
        groups = len(torch.unique(index // width))
        weight, bias = (None if v is None else _select(v, {0: index}) for v in (weight, bias))
    small = _select(x, dict(enumerate(kept)))
    inner = math.prod(small.shape[2:])  # there may be no box
    out = func(small.contiguous(), weight, bias, count, small.shape[1], inner, groups, eps)
    return (_spread(out[0], x, dict(enumerate(kept))), *out[1:])
