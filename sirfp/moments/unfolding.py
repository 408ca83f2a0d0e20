"""What a kernel reads at an output position: the values of all channels under all its taps, zeros in the padding."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..tracing.taps import Axis, axes_of

GOLDEN = 0.6180339887498949
"""The golden ratio: steps of this share of a range, modulo the range, spread over it evenly however many there are."""


def padded(module: Any, x: torch.Tensor) -> torch.Tensor:
    """Returns a convolution's input, padded where the padding is not of zeros (reflected, circular, replicated)."""
    if getattr(module, "padding_mode", "zeros") == "zeros":
        return x
    return F.pad(x, module._reversed_padding_repeated_twice, mode=module.padding_mode)


def axes_between(module: Any, x: torch.Tensor, output: Any) -> tuple[Axis, ...] | None:
    """Returns the spatial dimensions of a call of a convolution or linear layer.

    Args:
        module: the layer.
        x: its input (N, I, ...), after `padded`.
        output: its output (N, O, ...).

    Returns:
        One axis for each spatial dimension; none for a linear layer. The padding is inferred from the output's size
        where the module's own does not give this size (timm pads in `forward`). None if the output is not as expected.
    """
    if isinstance(module, nn.Linear):
        return ()
    kernel, spatial = module.weight.shape[2:], module.weight.dim() - 2
    if not isinstance(output, torch.Tensor) or output.dim() != x.dim() or x.dim() <= spatial:
        return None
    size, out = x.shape[x.dim() - spatial :], output.shape[x.dim() - spatial :]
    own = module.padding if module.padding_mode == "zeros" else (0,)
    given = own if isinstance(own, tuple) else (0,)
    axes = axes_of(size, out, kernel, module.stride, given, module.dilation)
    return tuple(axis if _fits(axis) else axis._replace(padding=max(_missing(axis), 0) // 2) for axis in axes)


def _fits(axis: Axis) -> bool:
    """True if the axis's padding gives the output's size."""
    span = axis.dilation * (axis.kernel - 1) + 1
    return (axis.size + 2 * axis.padding - span) // axis.stride + 1 == axis.out


def _missing(axis: Axis) -> int:
    """Returns the padding on both sides together that gives the output's size."""
    return (axis.out - 1) * axis.stride + axis.dilation * (axis.kernel - 1) + 1 - axis.size


def spread(total: int, count: int, turn: int, device: torch.device) -> torch.Tensor:
    """Returns `count` of `total` positions, spread evenly but not at regular steps, which would miss whole columns.

    Args:
        total: the number of positions.
        count: how many are wanted; if not fewer than `total`, all are returned.
        turn: other turns give other positions.
        device: of the result.
    """
    if count >= total:
        return torch.arange(total, device=device)
    steps = (torch.arange(count, device=device, dtype=torch.float64) + turn * count) * GOLDEN
    return ((steps % 1) * total).long().clamp_max(total - 1)


def unfolded(flat: torch.Tensor, axes: tuple[Axis, ...], positions: torch.Tensor) -> torch.Tensor:
    """Returns what all taps read at some output positions.

    Args:
        flat: the input's values, (N * positions, I), position by position.
        axes: the spatial dimensions of the call.
        positions: output positions, counted over all images, (n,).

    Returns:
        (n, I * taps), in the order of the layer's weight.
    """
    coordinates = []
    for axis in reversed(axes):
        coordinates.append(positions % axis.out)
        positions = positions // axis.out
    index, inside = positions[:, None], torch.ones_like(positions[:, None], dtype=torch.bool)
    for axis, outputs in zip(axes, reversed(coordinates), strict=True):
        places = axis.positions(outputs)[:, None]
        index = (index[..., None] * axis.size + places.clamp(0, axis.size - 1)).flatten(1)
        inside = (inside[..., None] & (places >= 0) & (places < axis.size)).flatten(1)
    rows = flat[index.flatten()].view(*index.shape, -1)
    return torch.where(inside[..., None], rows, 0).transpose(1, 2).flatten(1)
