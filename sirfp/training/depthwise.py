"""Computes the gradients of bfloat16 depthwise convolutions on a CPU in float32, which is several times as fast.

oneDNN has fast kernels for the forward pass in bfloat16 and for the backward pass in float32. Its backward pass in
bfloat16 uses slow code for 5 x 5 kernels, strides and dilations. `benchmarks/depthwise.py` measures both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

Pair = tuple[int, int]


class DepthwiseGradients(TorchFunctionMode):
    """While active, depthwise `conv2d` under autocast to bfloat16 on a CPU computes its gradients in float32.

    A convolution is depthwise if the numbers of groups, input channels and output channels are equal. PyTorch's own
    code runs in all other cases: other convolutions, other devices, other dtypes, and kernels up to 3 x 3 with stride
    and dilation 1, for which oneDNN's backward pass is fast.
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.conv2d and torch.is_autocast_enabled("cpu"):
            return _convolve(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _convolve(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: int | Pair = 1,
    padding: int | Pair | str = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
) -> torch.Tensor:
    depthwise = 1 < groups == len(weight) == input.shape[-3] and input.dim() == 4
    dtype = torch.get_autocast_dtype("cpu")
    if not depthwise or isinstance(padding, str) or input.device.type != "cpu" or dtype is not torch.bfloat16:
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    sizes = _pair(stride), _pair(padding), _pair(dilation)
    if max(weight.shape[2:]) <= 3 and max(sizes[0] + sizes[2]) == 1:
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    with torch.autocast("cpu", enabled=False):
        out = _Depthwise.apply(input.to(dtype), weight.to(dtype), *sizes)
        return out if bias is None else out + bias.to(dtype)[:, None, None]


def _pair(value: int | Pair) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, stride, padding, dilation):
        ctx.save_for_backward(x, weight)
        ctx.sizes = stride, padding, dilation
        return torch.conv2d(x, weight, None, stride, padding, dilation, len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        wanted = [*ctx.needs_input_grad[:2], False]
        of_x, of_weight, _ = torch.ops.aten.convolution_backward(
            grad.float(), x.float(), weight.float(), None, *ctx.sizes, False, [0, 0], len(weight), wanted
        )
        of_x = None if of_x is None else of_x.to(x.dtype)
        return of_x, None if of_weight is None else of_weight.to(weight.dtype), None, None, None
