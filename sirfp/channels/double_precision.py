"""Copies a model in double precision, in which a difference that is no rounding error stays as large as it is."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import first_line
from ..network.forward import call, inference, tensors
from ..network.untouched import copied_inputs, copied_model, seeded

logger = logging.getLogger(__name__)


def in_double(model: nn.Module, inputs: Any) -> tuple[nn.Module, Any, Any] | None:
    """Copies a model of single precision in double precision, and runs it.

    Args:
        model: the model; it is not changed.
        inputs: its inputs.

    Returns:
        The copy, its inputs and its output; None if the model's code computes in another precision.
    """
    narrow = _Narrow()
    try:
        copied = copied_model(model).double()
        wide = torch.utils._pytree.tree_map(_doubled, copied_inputs(inputs))
        with seeded(copied, 0), inference(copied), narrow:
            output = call(copied, wide)
    except Exception as error:  # the model's own code may raise anything
        logger.debug("the model does not run in double precision: %s", first_line(error))
        return None
    if narrow.seen or not any(t.dtype == torch.float64 for _, t in tensors(output)):
        return None
    return copied, wide, output


def _doubled(value: Any) -> Any:
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


class _Narrow(TorchDispatchMode):
    """Notes, while active, whether an operation makes less precise numbers of numbers in double precision."""

    seen = False
    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # see `ChannelTrace`

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if any(_floats(value) and value.dtype == torch.float64 for value in args):
            made = out if isinstance(out, (tuple, list)) else (out,)
            self.seen = self.seen or any(_floats(value) and value.dtype != torch.float64 for value in made)
        return out


def _floats(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel() > 1
