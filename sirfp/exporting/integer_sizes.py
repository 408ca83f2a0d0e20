"""Integer arithmetic for sizes during export, and adaptive pooling for maps of symbolic size.

If sizes are symbolic, the floating-point expressions `ceil(h / 2)` and `int(h * 2.0)` take the exporter minutes and
leave conditions that it cannot decide. The integer expressions `(h + 1) // 2` and `h * 2` have the same values, and the
exporter can decide whether two of them are equal. The exporter does not support adaptive pooling of maps of symbolic
size. Here adaptive pooling is written as two matrix products, which the exporter supports.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.nn import functional as F


@contextmanager
def integer_sizes() -> Iterator[None]:
    """Replaces three operations by equivalent integer code: resizing by integer factors, adaptive pooling and timm's
    "same" padding.
    """
    resize, pool = F.interpolate, F.adaptive_avg_pool2d

    def interpolate(input: Any, size: Any = None, scale_factor: Any = None, *args: Any, **kwargs: Any) -> Any:
        factors = scale_factor if isinstance(scale_factor, (tuple, list)) else [scale_factor] * (input.dim() - 2)
        if size is None and all(f is not None and f == int(f) for f in factors):
            size = [n * int(f) for n, f in zip(input.shape[2:], factors, strict=True)]
            scale_factor = None
        return resize(input, size, scale_factor, *args, **kwargs)

    def adaptive_avg_pool2d(input: Any, output_size: Any) -> Any:
        rows, columns = output_size if isinstance(output_size, (tuple, list)) else (output_size, output_size)
        known = all(isinstance(n, int) for n in input.shape[-2:])
        if known or rows is None or columns is None or rows == columns == 1:
            return pool(input, output_size)
        return grid_means(input, rows, columns)

    with ExitStack() as stack:
        stack.enter_context(patch.object(F, "interpolate", interpolate))
        stack.enter_context(patch.object(F, "adaptive_avg_pool2d", adaptive_avg_pool2d))
        if "timm" in sys.modules:
            from timm.layers import padding

            stack.enter_context(patch.object(padding, "get_same_padding", same_padding))
        yield


def grid_means(x: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Adaptive average pooling of maps (..., H, W) to (..., rows, columns), as two matrix products."""

    def averaging(length: Any, cells: int) -> torch.Tensor:
        """(cells, length): each row averages the positions of one cell."""
        edges = torch.arange(cells + 1) * length
        first, last = edges[:-1] // cells, -(-edges[1:] // cells)
        places = torch.arange(length)
        inside = (places >= first.unsqueeze(1)) & (places < last.unsqueeze(1))
        return (inside / (last - first).unsqueeze(1)).to(x)

    height, width = x.shape[-2:]
    return averaging(height, rows) @ x @ averaging(width, columns).T


def same_padding(x: Any, kernel_size: int, stride: int, dilation: int) -> Any:
    """Total padding of a side of length x such that a convolution's output has ceil(x / stride) positions."""
    beyond = (stride - x % stride) % stride  # distance from x to the next multiple of the stride
    return max(beyond + (kernel_size - 1) * dilation + 1 - stride, 0)
