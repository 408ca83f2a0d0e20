"""Watches calls of PyTorch's functions that ATen shows in another way than a trace or a trial needs."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

_DROPOUTS = frozenset(["dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"])
_NUMBERED = {"chunk": None, "unsafe_chunk": None, "tensor_split": None, "hsplit": 1, "vsplit": 0, "dsplit": 2}
"""{function that splits into a number of parts: the dimension, None if it is an argument}."""
_RECURRENT = frozenset(
    ["lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"]
)


class FunctionWatch(TorchFunctionMode):
    """Watches calls while active.

    - F.adaptive_avg_pool2d, which fvcore counts, may be a plain mean in ATen.
    - A recurrent layer may be one operation of the processor's library. Without the library it is a series of matrix
      products, which have rules. Its first hidden states are made from a size in PyTorch's code; they get channels.
    - A split into a number of parts, as in `x.chunk(3, 1)`, is in ATen one into sizes, or slices. A cut network would
      split at other places, so equal parts lose the same channels, and unequal ones none.
    - F.pad in circular mode is in ATen a copy of parts into an empty tensor. A trace sees a selection of positions.

    Args:
        steady: True to let PyTorch's dropouts return their input. Their noise has no labels, as if its width were
            written in the code.
        trace: the trace that labels hidden states; None to leave recurrent layers as they are.
    """

    def __init__(self, steady: bool = False, trace: Any = None):
        super().__init__()
        self.steady, self.trace = steady, trace
        self.pooling = 0  # depth of nested calls

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if self.steady and args and name in _DROPOUTS:
            return args[0]
        if self.trace is not None and name in _RECURRENT:
            weights = [t for t in tree_leaves(args) if isinstance(t, torch.Tensor) and self.trace.is_state(t)]
            for tensor in tree_leaves([a for a in args if isinstance(a, (tuple, torch.Tensor))][1:]):
                self._label_state(tensor, weights)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PyTorch warns of its own flags
                with torch.backends.mkldnn.flags(enabled=False), torch.backends.cudnn.flags(enabled=False):
                    return func(*args, **(kwargs or {}))
        if self.trace is not None and func is torch.nn.functional.pad:
            padded = _circular(*args, **(kwargs or {}))
            if padded is not None:
                return padded
        if self.trace is not None and name in _NUMBERED:
            parts = func(*args, **(kwargs or {}))
            self._tie_parts(name, parts, *args, **(kwargs or {}))
            return parts
        pooling = func is torch._C._nn.adaptive_avg_pool2d or func is torch.nn.functional.adaptive_avg_pool2d
        self.pooling += pooling
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.pooling -= pooling

    def _tie_parts(self, name: str, parts: Any, *args: Any, dim: int = 0, **kwargs: Any) -> None:
        """Ties the channels of the equal parts of a split into a number of parts; freezes those of unequal ones."""
        tensor = args[0] if args else kwargs["input"]
        number = args[1] if len(args) > 1 else next((n for key, n in kwargs.items() if key != "input"), None)
        if isinstance(number, int) and isinstance(tensor, torch.Tensor) and tensor.dim():
            own = _NUMBERED[name]
            axis = (args[2] if len(args) > 2 else dim) if own is None else min(own, tensor.dim() - 1)
            labels = self.trace.dim(tensor, axis % tensor.dim())
            if labels is not None and len({part.shape[axis] for part in parts}) == 1:
                self.trace.labels.tie_rows(labels, len(parts))
            else:
                self.trace.labels.freeze(labels, f"{name} splits it into unequal parts")

    def _label_state(self, tensor: Any, weights: list[torch.Tensor]) -> None:
        """Gives the last dimension of a hidden state labels if the tensor has none.

        Args:
            tensor: the state.
            weights: of the layer, the two matrices for the input and for the state first, (gates * hidden, ...). The
                labels are those of the second's inputs, or of a gate where the state has another width (a cell's).
        """
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point() or self.trace.is_state(tensor):
            return
        dims = self.trace.dims(tensor)
        if dims[-1] is None and tensor.shape[-1] > 1:
            size = tensor.shape[-1]
            sides = [self.trace.dim(weights[1], 1), self.trace.dim(weights[0], 0)] if len(weights) > 1 else []
            known = next((side for side in sides if side is not None and len(side) % size == 0), None)
            self.trace.set(tensor, [*dims[:-1], self.trace.labels.fresh(size) if known is None else known[:size]])


def _circular(input: Any, pad: Any, mode: str = "constant", value: float | None = None) -> torch.Tensor | None:
    """Computes `F.pad` in circular mode; returns None for other modes, and for sizes that `F.pad` refuses."""
    if mode != "circular" or not isinstance(input, torch.Tensor):
        return None
    sides = [(-1 - i, *pad[2 * i : 2 * i + 2]) for i in range(len(pad) // 2)]
    if len(pad) % 2 or any(max(low, high) > input.shape[axis] or min(low, high) < 0 for axis, low, high in sides):
        return None
    for axis, low, high in sides:
        index = torch.arange(-low, input.shape[axis] + high, device=input.device) % input.shape[axis]
        input = input.index_select(axis, index)
    return input
