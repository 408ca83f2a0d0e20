"""Sizes in whole numbers while a model is exported, and pooling to a grid from maps of any size.

With sizes as symbols, `ceil(h / 2)` and `int(h * 2.0)` on floating-point numbers take the exporter minutes and leave
conditions that it cannot decide; of `(h + 1) // 2` and `h * 2`, the same numbers, it can tell that they are equal.
Pooling to a grid it cannot do at all for a size that is a symbol; as products of matrices it can.
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
def whole_sizes() -> Iterator[None]:
    """Replaces resizing by whole factors, pooling to a grid and timm's padding "same" by equals of theirs."""
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
    """Means of maps (..., H, W) over the cells of PyTorch's adaptive pooling, (..., rows, columns)."""

    def shares(length: Any, cells: int) -> torch.Tensor:
        """(cells, length), a cell's positions alike and the others zero."""
        edges = torch.arange(cells + 1) * length
        first, last = edges[:-1] // cells, -(-edges[1:] // cells)
        places = torch.arange(length)
        inside = (places >= first.unsqueeze(1)) & (places < last.unsqueeze(1))
        return (inside / (last - first).unsqueeze(1)).to(x)

    height, width = x.shape[-2:]
    return shares(height, rows) @ x @ shares(width, columns).T


def same_padding(x: Any, kernel_size: int, stride: int, dilation: int) -> Any:
    """Padding of a side of length x with which a convolution's output is x / stride long, rounded up."""
    beyond = (stride - x % stride) % stride  # from x to the next multiple
    return max(beyond + (kernel_size - 1) * dilation + 1 - stride, 0)
