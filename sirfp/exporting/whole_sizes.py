"""Sizes in whole numbers while a model is exported.

With sizes as symbols, `ceil(h / 2)` and `int(h * 2.0)` on floating-point numbers take the exporter minutes and leave
conditions that it cannot decide; of `(h + 1) // 2` and `h * 2`, the same numbers, it can tell that they are equal.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from torch.nn import functional as F


@contextmanager
def whole_sizes() -> Iterator[None]:
    """Replaces PyTorch's resizing by whole factors and timm's padding "same" by equals of theirs."""
    resize = F.interpolate

    def interpolate(input: Any, size: Any = None, scale_factor: Any = None, *args: Any, **kwargs: Any) -> Any:
        factors = scale_factor if isinstance(scale_factor, (tuple, list)) else [scale_factor] * (input.dim() - 2)
        if size is None and all(f is not None and f == int(f) for f in factors):
            size = [n * int(f) for n, f in zip(input.shape[2:], factors, strict=True)]
            scale_factor = None
        return resize(input, size, scale_factor, *args, **kwargs)

    with ExitStack() as stack:
        stack.enter_context(patch.object(F, "interpolate", interpolate))
        if "timm" in sys.modules:
            from timm.layers import padding

            stack.enter_context(patch.object(padding, "get_same_padding", same_padding))
        yield


def same_padding(x: Any, kernel_size: int, stride: int, dilation: int) -> Any:
    """Padding of a side of length x with which a convolution's output is x / stride long, rounded up."""
    beyond = (stride - x % stride) % stride  # from x to the next multiple
    return max(beyond + (kernel_size - 1) * dilation + 1 - stride, 0)
