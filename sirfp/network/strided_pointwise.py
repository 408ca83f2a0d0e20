"""Works around a bug in oneDNN that breaks training on x86 CPUs after a cut.

The bug concerns 1 x 1 convolutions with a stride and few input channels, such as the shortcuts of a pruned ResNet. When
oneDNN computes the gradient of their weight from channels-last feature maps, it writes beyond its workspace
(https://github.com/uxlfoundation/oneDNN/issues/6035). The process crashes later, hangs, or continues with wrong
gradients. With AVX2, layers with fewer than 8 input channels are affected, with AVX-512 those with fewer than 16
(`benchmarks/strided_pointwise_sweep.py`).

A 1 x 1 convolution with stride s only reads every s-th position of its input. The workaround first selects these
positions and then convolves with stride 1. The results are the same, and other code without the bug computes them.

`guard` adds hooks to the affected layers only. The hooks act if gradients are enabled on an x86 CPU. In evaluation, on
GPUs, in `torch.jit.trace` and in TorchScript the layer runs unchanged.
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

from .walk import walk_modules

FEWEST = 16
"""Layers with at least this number of input channels are not affected: AVX-512 code processes 16 channels at a time."""
_X86 = platform.machine().lower() in ("x86_64", "amd64", "i386", "i686", "x86")


def guard(model: nn.Module) -> nn.Module:
    """Adds hooks, in place, that protect the affected convolutions of a model from oneDNN's bug in training.

    Parameters, buffers, their names and all attributes are unchanged. A second call changes nothing.

    Args:
        model: any module; its modules with a `weight` (O, I, 1, 1) and a `stride` are checked.

    Returns:
        The same model.
    """
    for module in walk_modules(model):
        if is_affected(module) and not is_guarded(module):
            module.register_forward_pre_hook(_enter)
            module.register_forward_hook(_leave, always_call=True)
    return model


def is_guarded(module: nn.Module) -> bool:
    """Returns True if `guard` has added hooks to this module itself."""
    return _enter in module._forward_pre_hooks.values()


def is_affected(module: nn.Module) -> bool:
    """Returns True if `guard` adds hooks to this module itself."""
    if not _above_one(getattr(module, "stride", 1)) or getattr(module, "transposed", False):
        return False
    weight = module._parameters.get("weight")  # not `module.weight`, which may be computed, with side effects
    if weight is not None:
        return not is_lazy(weight) and _is_few(weight.shape, getattr(module, "groups", 1))
    if isinstance(module, nn.Conv2d):
        return _is_few((module.out_channels, module.in_channels, *module.kernel_size), module.groups)
    return False


def _is_few(shape: Sequence[int], groups: int) -> bool:
    """Returns True if a weight (O, I, H, W) belongs to an ungrouped 1 x 1 convolution with few input channels."""
    return len(shape) == 4 and groups == 1 and shape[1] < FEWEST and shape[2] == shape[3] == 1


def _above_one(stride: Any) -> bool:
    if isinstance(stride, int):
        return stride > 1
    return isinstance(stride, (tuple, list)) and any(isinstance(step, int) and step > 1 for step in stride)


class _Unstrided(TorchFunctionMode):
    """While active, runs affected convolutions with stride 1, on the positions that they read."""

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
    """Computes `torch.conv2d`; an affected convolution runs with stride 1."""
    if input.device.type != "cpu" or not _above_one(stride) or not _is_few(weight.shape, groups):
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    # padding is not "same" here: PyTorch does not allow "same" together with a stride
    (down, right), (high, wide) = _pair(stride), _pair(0 if isinstance(padding, str) else padding)
    if high or wide:
        input = functional.pad(input, [wide, wide, high, high])
    return torch.conv2d(input[..., ::down, ::right], weight, bias)


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    values = [value] if isinstance(value, int) else list(value)
    return values[0], values[-1]


def _on_processor(inputs: tuple) -> bool:
    """Returns True if a module's first input is on a CPU, or is no tensor (e.g. because it is passed by name)."""
    return not (inputs and isinstance(inputs[0], Tensor)) or inputs[0].device.type == "cpu"


# Hooks of modules. TorchScript compiles them too: it requires these annotations, and does not compile the else branch.


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
        if _get_current_function_mode() is _UNSTRIDED:  # not active if a hook before `_enter` raised
            _UNSTRIDED.__exit__(None, None, None)
        return None
