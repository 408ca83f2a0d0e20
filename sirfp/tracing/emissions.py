"""What channels emit on average, as far as their norm tells: the values that the trace passes on.

A batch norm gives a channel the mean of its shift and the deviation of its scale. Layers without a norm, and norms over
channels, pass on the mean and deviation of what they read, with channels taken as independent. Values are taken to be
normally distributed. `ROWS` of them, at equal probabilities, are put through the activations and sums that follow.
Their mean is what a layer that reads the channel loses with it. If the scale is zero, as training with a sparsity
penalty makes it, all rows are equal, and the channel emits the constant `act(shift)` of the paper's reference code.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import lru_cache

import torch

from .tensor_table import TensorTable

ROWS = 64
"""Number of values of each channel: their mean behind a ReLU is right to 1% of the deviation."""


class EmittedValues:
    """What the channels of each tensor emit, by weak reference to the tensor.

    Nothing is known of tensors without values, those on the device `meta`: the layers that read them stay as they are.
    """

    def __init__(self) -> None:
        super().__init__()
        self._emitted = TensorTable()  # tensor -> (channel dimension, (C,), rows or maps)
        self._emitted_later = TensorTable()  # tensor -> function that returns the same, if it is asked for

    def emitted(self, tensor: torch.Tensor, maps: bool = False) -> tuple[int, torch.Tensor] | None:
        """Returns what channels emit on average: the channel dimension and a value for each channel, (C,).

        Where a channel emits another value in zero padding than elsewhere, these are maps, with the dimensions of
        `tensor` or of size one: None, unless the rule takes `maps`. It then gets the rows of `sirfp.tracing.emissions`
        too, whose mean is otherwise returned.
        """
        later = self._emitted_later.pop(tensor, None)
        if later is not None:
            self.set_emitted(tensor, *later())
        known = self._emitted.get(tensor)
        if maps or known is None:
            return known
        dim, values = known
        return (dim, mean_of(values, dim)) if is_flat(values, dim) else None

    def set_emitted(self, tensor: torch.Tensor, dim: int, constants: torch.Tensor | None) -> None:
        """Sets what channels emit: (C,), or rows or maps with as many dimensions as `tensor`."""
        if constants is None or tensor.is_meta or constants.is_meta:
            return
        dim %= tensor.dim()
        if constants.dim() > 1 and constants.numel() == constants.shape[dim]:
            constants = constants.flatten()
        if constants.shape[0 if constants.dim() == 1 else dim] == tensor.shape[dim]:
            self._emitted[tensor] = (dim, constants)

    def emit_later(self, tensor: torch.Tensor, values: Callable[[], tuple[int, torch.Tensor]]) -> None:
        """Sets what channels emit, (channel dimension, values), where it takes time and is seldom asked for."""
        if not tensor.is_meta:
            self._emitted_later[tensor] = values

    def emitted_maps(self, tensor: torch.Tensor) -> tuple[int, torch.Tensor] | None:
        """Returns what channels emit on average as maps: with the dimensions of `tensor`, but one image only."""
        known = self.emitted(tensor, maps=True)
        if known is None:
            return None
        dim, constants = known
        constants = with_rows(constants, dim, tensor.dim())
        constants = constants.mean(0, keepdim=True) if dim else constants
        return dim, constants.expand([1, *tensor.shape[1:]] if dim else tensor.shape)

    def forget_emitted(self, tensor: torch.Tensor) -> None:
        """Drops what channels emit, because the tensor is overwritten."""
        del self._emitted[tensor]


@lru_cache
def _normal() -> torch.Tensor:
    """Returns values of a normal distribution at equal probabilities, with mean 0 and variance 1, (ROWS,)."""
    values = torch.special.ndtri((torch.arange(ROWS, dtype=torch.float64) + 0.5) / ROWS)
    return values / values.square().mean().sqrt()


@lru_cache(maxsize=4096)
def _rows(name: str) -> torch.Tensor:
    """Returns the same values in an order that a name gives, (ROWS,) in float32."""
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    return _normal()[order].float()


def normed_values(scale: torch.Tensor | None, shift: torch.Tensor, dims: int, name: str) -> torch.Tensor:
    """Returns values that the channels of a norm take.

    Args:
        scale: of each channel, (C,); None for ones.
        shift: of each channel, (C,).
        dims: the number of dimensions of the norm's output, whose dimension 1 holds the channels.
        name: name of the norm. Each norm has an order of rows of its own, so that rows of sums of norms are as if the
            norms were independent.

    Returns:
        (ROWS, C, 1, ...); (C,) if all scales are zero.
    """
    scale = torch.ones_like(shift) if scale is None else scale
    return spread(shift.detach(), scale.detach(), 1, dims, name)


def spread(mean: torch.Tensor, deviation: torch.Tensor, dim: int, dims: int, name: str) -> torch.Tensor:
    """Returns normally distributed values.

    Args:
        mean: of each channel, (C,).
        deviation: of each channel, (C,).
        dim: the dimension of the channels in the result, above 0.
        dims: the number of dimensions of the result.
        name: what makes the channels; gives the order of the rows.

    Returns:
        Rows with the channels in the dimension `dim`; (C,) if all deviations are zero.
    """
    if not bool(deviation.any()):
        return mean.clone()
    rows = _rows(name).to(mean.device)
    values = mean.float() + rows[:, None] * deviation.float()
    return values.to(mean.dtype).reshape([ROWS, *[-1 if axis == dim else 1 for axis in range(1, dims)]])


def product(
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    means: torch.Tensor,
    variances: torch.Tensor | None,
    groups: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns mean and deviation of what a layer makes of channels, (O,) each, as if they were independent.

    Args:
        weight: the layer's weight, (O, I / groups, ...).
        bias: (O,), or None.
        means: what each tap reads of each channel on average, (I, taps).
        variances: the variance of it, (I, taps); None for zeros.
        groups: the layer's number of groups.
    """
    kernel = weight.detach().float().reshape(groups, -1, weight.shape[1], weight[0, 0].numel())

    def summed(kernel: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
        each = part.float().expand(-1, kernel.shape[3]).reshape(groups, *kernel.shape[2:])
        return torch.einsum("goit,git->go", kernel, each).flatten()

    mean = summed(kernel, means)
    mean = mean if bias is None else mean + bias.detach().float()
    if variances is None:
        return mean.to(weight.dtype), torch.zeros_like(mean, dtype=weight.dtype)
    return mean.to(weight.dtype), summed(kernel.square(), variances).clamp_min(0).sqrt().to(weight.dtype)


def normalised(values: torch.Tensor, dim: int, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns mean and deviation of channels after a norm over channels and positions, (C,) each.

    Args:
        values: flat values, with the channels in the dimension `dim`.
        dim: this dimension.
        groups: the number of groups of channels that are normalised on their own.
    """
    mean, variance = mean_of(values, dim).float().reshape(groups, -1), variance_of(values, dim).reshape(groups, -1)
    whole = (variance + mean.square()).mean(1, keepdim=True) - mean.mean(1, keepdim=True).square()
    scale = whole.clamp_min(1e-12).rsqrt()
    return ((mean - mean.mean(1, keepdim=True)) * scale).flatten(), (variance.sqrt() * scale).flatten()


def is_flat(values: torch.Tensor, dim: int) -> bool:
    """True if what channels emit is the same at all positions: (C,), or rows with the channels in a dimension `dim`."""
    return values.dim() == 1 or (dim > 0 and values.numel() == values.shape[0] * values.shape[dim])


def mean_of(values: torch.Tensor, dim: int) -> torch.Tensor:
    """Returns the mean of flat values over their rows, (C,)."""
    return values if values.dim() == 1 else values.mean(0).flatten()


def variance_of(values: torch.Tensor, dim: int) -> torch.Tensor:
    """Returns the variance of flat values over their rows, (C,) in float32."""
    return torch.zeros_like(values).float() if values.dim() == 1 else values.float().var(0, unbiased=False).flatten()


def with_rows(values: torch.Tensor, dim: int, dims: int) -> torch.Tensor:
    """Returns values with `dims` dimensions, of which `dim` holds the channels; (C,) becomes one row."""
    return values.reshape([-1 if i == dim else 1 for i in range(dims)]) if values.dim() == 1 else values
