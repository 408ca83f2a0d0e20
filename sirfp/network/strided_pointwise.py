"""A way round a fault of oneDNN that breaks training on x86 processors after a cut.

A 1 x 1 convolution with a stride and few input channels, as the shortcuts of a pruned ResNet are, writes past its
workspace where oneDNN computes the gradient of its weight from channels-last maps
(https://github.com/uxlfoundation/oneDNN/issues/6035): the process crashes later, hangs, or goes on with wrong
gradients. With AVX2 fewer than 8 input channels are affected, with AVX-512 fewer than 16, as
`benchmarks/strided_pointwise_sweep.py` shows. Such a layer reads every s-th position only, so the others are left out
before it and it runs with stride 1: the same numbers, computed by code without the fault.

`guard` gives hooks to the layers concerned and to no others. The hooks act where a gradient will be taken on an x86
processor; in evaluation, on GPUs, in `torch.jit.trace` and in TorchScript the layer runs as it is.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import Any, Tuple  # noqa: UP035

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode, _get_current_function_mode

FEWEST = 16
"""Input channels from which on no kernel is affected: the channels that AVX-512 code takes at a time."""
_X86 = platform.machine().lower() in ("x86_64", "amd64", "i386", "i686", "x86")


def guard(model: nn.Module) -> nn.Module:
    """Has the strided 1 x 1 convolutions of few input channels in a model trained without oneDNN's fault; in place.

    Parameters, buffers, their names and every attribute stay. Guarding twice changes nothing.

    Args:
        model: any module; those inside it that have a `weight` (O, I, 1, 1) and a `stride` are looked at.

    Returns:
        The model.
    """
    for module in model.modules():
        if _is_affected(module) and not is_guarded(module):
            module.register_forward_pre_hook(_enter)
            module.register_forward_hook(_leave, always_call=True)
    return model


def is_guarded(module: nn.Module) -> bool:
    """Whether `guard` has given this very module its hooks."""
    return _enter in module._forward_pre_hooks.values()


def _is_affected(module: nn.Module) -> bool:
    if not _above_one(getattr(module, "stride", 1)) or getattr(module, "transposed", False):
        return False
    weight = module._parameters.get("weight")  # not `module.weight`, which may be computed, with side effects
    if weight is not None:
        return not is_lazy(weight) and _is_few(weight.shape, getattr(module, "groups", 1))
    if isinstance(module, nn.Conv2d):
        return _is_few((module.out_channels, module.in_channels, *module.kernel_size), module.groups)
    return False


def _is_few(shape: Sequence[int], groups: int) -> bool:
    """Whether a weight (O, I, H, W) is that of an ungrouped pointwise convolution of few inputs."""
    return len(shape) == 4 and groups == 1 and shape[1] < FEWEST and shape[2] == shape[3] == 1


def _above_one(stride: Any) -> bool:
    if isinstance(stride, int):
        return stride > 1
    return isinstance(stride, (tuple, list)) and any(isinstance(step, int) and step > 1 for step in stride)


class _Unstrided(TorchFunctionMode):
    """Inside it pointwise convolutions of few inputs run with stride 1, on the positions that they read."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.conv2d:
            return _convolve(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


_UNSTRIDED = _Unstrided()


def _convolve(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """`torch.conv2d`, with stride 1 where the fault would be met."""
    if input.device.type != "cpu" or not _above_one(stride) or not _is_few(weight.shape, groups):
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    # "same" is not there: PyTorch refuses it with a stride
    (down, right), (high, wide) = _pair(stride), _pair(0 if isinstance(padding, str) else padding)
    if high or wide:
        input = functional.pad(input, [wide, wide, high, high])
    return torch.conv2d(input[..., ::down, ::right], weight, bias)


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    values = [value] if isinstance(value, int) else list(value)
    return values[0], values[-1]


def _on_processor(inputs: tuple) -> bool:
    """Whether a module is called with a tensor on a processor; one given by name is taken for such."""
    return not (inputs and isinstance(inputs[0], Tensor)) or inputs[0].device.type == "cpu"


# Hooks of modules. TorchScript compiles them, for which it wants these very types, and then leaves the else out.


def _enter(self, inputs: Tuple[Tensor]) -> None:  # noqa: UP006
    if torch.jit.is_scripting():
        return None
    else:
        if _X86 and torch.is_grad_enabled() and _on_processor(inputs) and not torch.jit.is_tracing():
            _UNSTRIDED.__enter__()
        return None


def _leave(self, inputs: Tuple[Tensor], output: Tensor) -> None:  # noqa: UP006
    if torch.jit.is_scripting():
        return None
    else:
        if _get_current_function_mode() is _UNSTRIDED:  # not where a hook before `_enter` has raised
            _UNSTRIDED.__exit__(None, None, None)
        return None
