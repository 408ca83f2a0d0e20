"""Refuses networks whose weights are not finite: their scores, losses and refits would be NaN, or chance."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ..errors import InputError

STATISTICS = ("running_mean", "running_var")
"""Buffers that must be finite. Others, such as masks of attention, may hold infinite values."""


def check_weights(model: nn.Module) -> None:
    """Raises InputError if a parameter, or a running statistic of a norm, holds NaN or infinite values."""
    for name, tensor in _numbers(model):
        if not tensor.detach().isfinite().all():
            raise InputError(
                f"the values of {name!r} are not finite: check the model's weights for NaN and infinite values, and "
                "start from finite weights, such as an earlier checkpoint"
            )


def _numbers(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from (named for named in model.named_parameters() if _is_read(named[1]))
    for name, tensor in model.named_buffers():
        if name.rpartition(".")[2] in STATISTICS and _is_read(tensor):
            yield name, tensor


def _is_read(tensor: torch.Tensor) -> bool:
    """True for floats that PyTorch can check: at least 16 bits, with values, stored in strides."""
    plain = not is_lazy(tensor) and not tensor.is_meta and tensor.layout == torch.strided
    return plain and tensor.is_floating_point() and tensor.element_size() > 1
