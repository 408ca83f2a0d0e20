"""The rule for elementwise operations: ties the dimensions of the inputs that line up, except broadcast ones."""

from __future__ import annotations

import torch

from .codes import arguments
from .emissions import is_flat, with_rows
from .table import rule


@rule(
    "clone", "_to_copy", "detach", "alias", "lift_fresh", "lift_fresh_copy", "contiguous", "native_dropout",
    "dropout", "_prelu_kernel", "bernoulli", "bernoulli_", "masked_fill", "masked_fill_", "where", "fill_",
    "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "zero_", "uniform_",
    "normal_", "copy_", "nan_to_num", "isfinite", "clamp", "clamp_", "pow", "add", "sub", "mul", "div",
    "rsub", "maximum", "minimum", "floor_divide", "ldexp", "rad2deg", "rad2deg_",
    "fake_quantize_per_tensor_affine_cachemask",
    # activations: which of them are tagged as pointwise depends on the version of PyTorch
    "relu6", "hardtanh", "hardtanh_", "hardsigmoid", "hardsigmoid_", "hardswish", "hardswish_", "hardshrink",
    "softshrink", "softplus", "mish", "mish_", "gelu_", "elu", "elu_", "selu", "selu_", "celu", "celu_",
    "leaky_relu", "leaky_relu_", "rrelu", "threshold", "threshold_", "log_sigmoid_forward", "rrelu_with_noise",
    "rrelu_with_noise_",
)  # fmt: skip
def pointwise(trace, func, args, kwargs, out) -> None:
    """Ties, for each dimension of the output, the dimensions of the inputs that have the output's size."""
    outputs = [t for t in (out if isinstance(out, (tuple, list)) else [out]) if isinstance(t, torch.Tensor)]
    inputs = [t for t in arguments(args, kwargs) if isinstance(t, torch.Tensor)]
    shape = outputs[0].shape
    name = func._schema.name
    if name == "aten::copy_" and inputs[0] not in trace._dims:
        inputs = inputs[1:]  # a buffer without labels takes those of its new values
    one = len(inputs) == 1 and inputs[0].shape == shape
    result: list = list(trace.dims(inputs[0])) if one else []
    for axis in () if one else range(-len(shape), 0):
        lined_up = [
            t for t in inputs if t.dim() >= -axis and t.shape[axis] == shape[axis] and not _is_expanded(trace, t, axis)
        ]
        if shape[axis] == 1 or not any(trace.dim(t, axis) is not None for t in lined_up):
            result.append(None)
            continue
        labels = next(filter(lambda own: own is not None, (trace.dim(t, axis) for t in lined_up)))
        lined_up = [t for t in lined_up if not trace.fit_made(t, axis, labels)]
        labels = trace.dim(lined_up[0], axis)
        for tensor in lined_up[1:]:
            labels = trace.labels.tie(labels, trace.dim(tensor, axis), f"{name} joins it with a fixed size")
        for tensor in inputs:
            if tensor.dim() >= -axis and tensor.shape[axis] == shape[axis] and _is_expanded(trace, tensor, axis):
                trace.note_broadcast(tensor, axis, labels)
        result.append(labels)
    emitted = _emitted(trace, func, args, kwargs, inputs)
    for tensor in outputs:
        if tensor.shape == shape:
            trace.set(tensor, list(result))
            if emitted is not None:
                trace.set_emitted(tensor, *emitted)


def _is_expanded(trace, tensor: torch.Tensor, axis: int) -> bool:
    """True if a dimension repeats one value (stride 0, as `expand` makes it): an explicit broadcast, so no tie."""
    return tensor.shape[axis] > 1 and tensor.stride(axis) == 0 and trace.dim(tensor, axis) is None


def _emitted(trace, func, args, kwargs, inputs):
    """Returns the channel dimension and what channels emit after the operation, or None.

    The values, (C,), rows or maps, are computed by applying the operation to those of the inputs. Every input must have
    values, all in the same dimension.
    """
    several = [t for t in inputs if t.numel() > 1]
    known = [trace.emitted(t, maps=True) for t in several]
    if not known or any(k is None for k in known) or len({k[0] for k in known}) != 1:
        return None
    if len({t.dim() for t in several}) != 1:
        return None
    dim = known[0][0]
    flat = all(is_flat(values, dim) for _, values in known)
    rows = max((len(values) for _, values in known if values.dim() > 1), default=1)

    def constant(value):
        if not isinstance(value, torch.Tensor) or value.numel() <= 1:
            return value
        if not flat:
            values = trace.emitted_maps(value)[1]
        else:
            values = with_rows(trace.emitted(value, maps=True)[1], dim, value.dim())
            values = values.expand(rows, *values.shape[1:]) if dim else values
        return values.clone() if func._schema.is_mutable else values

    def constants(value):  # lists nest no deeper
        return [constant(part) for part in value] if isinstance(value, (tuple, list)) else constant(value)

    value = func(*map(constants, args), **{name: constants(value) for name, value in kwargs.items()})
    if isinstance(value, (tuple, list)):
        value = value[0]
    return dim, value
