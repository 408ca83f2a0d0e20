"""Finds the channel dimension of modules' outputs.

It may differ from the channel dimension of the operation inside the module: a layer norm of feature maps (timm's
`LayerNorm2d`, SegFormer's) permutes the maps to channels-last, normalises, and permutes the result back.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from torch import nn


class Outputs:
    """Records, while active, the labels of the first output of each module that owns parameters or buffers.

    TorchScript modules take no hooks and are left out; their channels are frozen.

    Args:
        model: the model whose modules are recorded.
        trace: the trace that labels the channels.

    Attributes:
        dims: {module name: labels of each dimension of its output}; only outputs that are tensors.
        shapes: {module name: shape of its output}; the same outputs.
    """

    def __init__(self, model: nn.Module, trace: Any):
        self.model, self.trace = model, trace
        self.dims: dict[str, list[np.ndarray | None]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._handles: list = []

    def __enter__(self) -> Outputs:
        for name, module in self.model.named_modules():
            if (module._parameters or module._buffers) and not isinstance(module, torch.jit.ScriptModule):
                self._handles.append(module.register_forward_hook(self._keep(name)))
        return self

    def _keep(self, name: str):
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor):
                self.dims.setdefault(name, list(self.trace.dims(output)))
                self.shapes.setdefault(name, tuple(output.shape))

        return keep

    def positions(self, name: str, channels: int) -> int:
        """Returns the number of positions of one feature map of a module's output; 1 if none was recorded."""
        shape = self.shapes.get(name, ())
        return max(1, prod(shape[1:]) // channels) if shape else 1

    def __exit__(self, *exc) -> None:
        while self._handles:
            self._handles.pop().remove()


def channel_dim(dim: int, output: Sequence[np.ndarray | None], channels: np.ndarray) -> int:
    """Returns the dimension of a module's output that holds given channels.

    Args:
        dim: the channel dimension of the operation that made the channels, counted from the end for channels-last
            features. It is returned if the output has the channels in this dimension or in none.
        output: the channels in each dimension of the output.
        channels: the channels to find, (C,).
    """
    places = [i for i, held in enumerate(output) if held is not None and np.array_equal(held, channels)]
    return dim if not places or dim % len(output) in places else places[0]
