"""Watches calls of PyTorch's functions that ATen shows in another way than a trace or a trial needs."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

_DROPOUTS = frozenset(["dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"])
_RECURRENT = frozenset(
    ["lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"]
)


class FunctionWatch(TorchFunctionMode):
    """Watches calls while active.

    - F.adaptive_avg_pool2d, which fvcore counts, may be a plain mean in ATen.
    - A recurrent layer may be one operation of the processor's library. Without the library it is a series of matrix
      products, which have rules. Its first hidden states are made from a size in PyTorch's code; they get channels.

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
            for tensor in tree_leaves([a for a in args if isinstance(a, (tuple, torch.Tensor))][1:]):
                self._label_state(tensor)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PyTorch warns of its own flags
                with torch.backends.mkldnn.flags(enabled=False), torch.backends.cudnn.flags(enabled=False):
                    return func(*args, **(kwargs or {}))
        pooling = func is torch._C._nn.adaptive_avg_pool2d or func is torch.nn.functional.adaptive_avg_pool2d
        self.pooling += pooling
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.pooling -= pooling

    def _label_state(self, tensor: Any) -> None:
        """Gives the last dimension of a hidden state new labels if the tensor has none."""
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point() or self.trace.is_state(tensor):
            return
        dims = self.trace.dims(tensor)
        if dims[-1] is None and tensor.shape[-1] > 1:
            self.trace.set(tensor, [*dims[:-1], self.trace.labels.fresh(tensor.shape[-1])])
