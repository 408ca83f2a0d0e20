"""Where channels lie in what modules return.

The dimension of the operation inside is not enough to look at a module's features by: a layer norm of maps (timm's
`LayerNorm2d`, SegFormer's) permutes them, and turns its result back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn


class Outputs:
    """A context in which the labels of what modules with tensors of their own first return are kept.

    Args:
        model: whose modules.
        trace: follows the channels.

    Attributes:
        dims: labels of each dimension of a module's output, by the module's name; of tensors only.
    """

    def __init__(self, model: nn.Module, trace: Any):
        self.model, self.trace = model, trace
        self.dims: dict[str, list[np.ndarray | None]] = {}
        self._handles: list = []

    def __enter__(self) -> Outputs:
        for name, module in self.model.named_modules():
            if module._parameters or module._buffers:
                self._handles.append(module.register_forward_hook(self._keep(name)))
        return self

    def _keep(self, name: str):
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor):
                self.dims.setdefault(name, list(self.trace.dims(output)))

        return keep

    def __exit__(self, *exc) -> None:
        while self._handles:
            self._handles.pop().remove()


def channel_dim(dim: int, output: Sequence[np.ndarray | None], channels: np.ndarray) -> int:
    """The dimension of an output that holds some channels: the operation's own where the output agrees.

    Args:
        dim: that of the operation that made them, counted from the end for channels-last features.
        output: what each dimension of the output holds.
        channels: what is looked for, (C,).
    """
    places = [i for i, held in enumerate(output) if held is not None and np.array_equal(held, channels)]
    return dim if not places or dim % len(output) in places else places[0]
