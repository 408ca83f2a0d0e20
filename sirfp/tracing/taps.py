"""Where the taps of a kernel lie in the map that a convolution reads: some lie in the padding, at some positions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch


class Axis(NamedTuple):
    """One spatial dimension of a convolution's call.

    Attributes:
        size: the input's size, without padding.
        out: the output's size.
        kernel: the number of taps.
        stride, padding, dilation: of the convolution; `padding` is that before the first position.
    """

    size: int
    out: int
    kernel: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1

    def positions(self, outputs: torch.Tensor) -> torch.Tensor:
        """Returns the input position under each tap at some output positions (n,): (n, kernel), maybe outside."""
        taps = torch.arange(self.kernel, device=outputs.device)
        return outputs[:, None] * self.stride - self.padding + taps * self.dilation

    def weights(self) -> torch.Tensor:
        """Returns the share of output positions at which each tap lies on each input position, (kernel, size)."""
        places = self.positions(torch.arange(self.out))
        hits = places[..., None] == torch.arange(self.size)
        return hits.double().mean(0)

    def inside(self) -> torch.Tensor:
        """Returns the share of output positions at which each tap lies inside the map, (kernel,)."""
        places = self.positions(torch.arange(self.out))
        return ((places >= 0) & (places < self.size)).double().mean(0)


def axes_of(
    size: Sequence[int],
    out: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[Axis, ...]:
    """Returns the spatial dimensions of a convolution's call; a sequence of one value holds for all dimensions."""
    parts = [[*part] * len(kernel) if len(part) == 1 else part for part in (stride, padding, dilation)]
    return tuple(Axis(*values) for values in zip(size, out, kernel, *parts, strict=True))


@lru_cache(maxsize=256)
def shares(axes: tuple[Axis, ...]) -> torch.Tensor:
    """Returns the share of output positions at which each tap lies inside the map, (taps,) in the kernel's order."""
    share = torch.ones(1, dtype=torch.float64)
    for axis in axes:
        share = torch.outer(share, axis.inside()).flatten()
    return share


def means_under_taps(values: torch.Tensor, axes: Sequence[Axis]) -> torch.Tensor:
    """Returns the mean, over output positions, of what each tap reads.

    Args:
        values: one value for each channel, (I,), or a map for each, (I, ...) with the sizes of `axes`. The padding
            holds zeros.
        axes: the spatial dimensions of the call.

    Returns:
        (I, taps) in the dtype of `values`.
    """
    if values.dim() == 1:
        return values[:, None] * shares(axes).to(values)
    for axis in axes:  # each turn replaces the first spatial dimension by its taps, as the last dimension
        values = torch.tensordot(values, axis.weights().to(values), ([1], [1]))
    return values.flatten(1)
