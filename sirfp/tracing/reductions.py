"""Rules for normalisation, reductions, softmax, sorting, pooling and resizing."""

from __future__ import annotations

from functools import partial
from math import prod

import torch

from .channel_labels import Tap
from .codes import by_name
from .emissions import is_flat, normalised, normed_values, spread
from .table import rule


@rule(
    "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training",
    "_batch_norm_with_update", "_batch_norm_no_update", "cudnn_batch_norm", "miopen_batch_norm",
    counted=("native_batch_norm", "cudnn_batch_norm"),
)  # fmt: skip
def batch_norm(trace, func, args, kwargs, out) -> None:
    """Ties the channels to scale, shift and both statistics; its values have the mean of the shift."""
    x = args[0]
    dims = trace.dims(x)
    vectors = [t for t in args[1:5] if isinstance(t, torch.Tensor)]
    channels = dims[1]
    for vector in vectors:
        known = trace.dim(vector, 0)
        if channels is not None or known is not None:
            channels = trace.labels.tie(channels, known, "batch norm ties it to an input of fixed size")
    training = normalises_batch(func, args, kwargs)
    for dim in (*dims[:1], *dims[2:]) if training else ():
        trace.labels.mark_inexact(dim, "batch norm's statistics run over these channels")
    result = out[0]
    trace.set(result, [dims[0], channels, *dims[2:]])
    others = x.numel() / x.shape[1]
    affine = isinstance(args[1], torch.Tensor)
    scale = (5 if affine else 4) if training else (2 if affine else 1)
    trace.count("batch_norm", scale * others * (1 if channels is not None else x.shape[1]), channels)
    owned = [v for v in vectors if trace.is_state(v)]
    if owned and channels is not None:
        trace.taps.append(Tap(owned[-1], channels, norm=True, dim=1))
    if isinstance(args[2], torch.Tensor):
        gamma = args[1] if isinstance(args[1], torch.Tensor) else None
        values = partial(normed_values, gamma, args[2], result.dim(), trace.name(args[2]) or "")
        trace.emit_later(result, lambda: (1, values()))
    if isinstance(args[3], torch.Tensor) and trace.is_state(args[3]):
        trace.normed.append((args[3], trace.maker(x)))


def normalises_batch(func, args, kwargs) -> bool:
    """True if a batch norm of these arguments computes its statistics from its input."""
    return bool(by_name(func, args, kwargs).get("training", func._schema.name.endswith("with_update")))


@rule("native_layer_norm", "_fused_rms_norm", statistic=True, counted=("native_layer_norm",))
def layer_norm(trace, func, args, kwargs, out) -> None:
    """Ties the last dimensions to scale and shift, and marks them inexact: the statistics run over channels."""
    x, normalized_shape = args[0], args[1]
    dims = trace.dims(x)
    count = len(normalized_shape)
    vectors = [t for t in args[2:4] if isinstance(t, torch.Tensor)]
    for axis in range(-count, 0):
        for vector in vectors:
            known = trace.dim(vector, axis)
            if dims[axis] is not None or known is not None:
                dims[axis] = trace.labels.tie(dims[axis], known, "layer norm ties it to an input of fixed size")
        trace.labels.mark_inexact(dims[axis], "layer norm's statistics run over these channels")
    result = out[0] if isinstance(out, (tuple, list)) else out
    trace.set(result, list(dims))
    if func._schema.name == "aten::native_layer_norm":
        if count == 1 and x.dim() > 1:
            _emit_normalised(trace, x, x.dim() - 1, 1, args[2], args[3], result)
        fixed = prod(n for n, d in zip(x.shape, dims, strict=True) if d is None)
        affine = isinstance(args[2], torch.Tensor)
        trace.count("layer_norm", (5 if affine else 4) * fixed, *(d for d in dims if d is not None))
    if count == 1 and vectors and dims[-1] is not None and trace.is_state(vectors[0]):
        trace.taps.append(Tap(vectors[0], dims[-1], norm=True, dim=-1))


ENOUGH_CHANNELS = 8
"""Number of channels of a group from which on their statistics are taken to be those of each image. Those of two or
three channels differ too much between images. A group of one channel has mean 0 and variance 1, as in batch norm."""


def _emit_normalised(trace, x, dim: int, groups: int, scale, shift, out) -> None:
    """Notes what channels emit after a norm over channels, if this is known before it."""
    known = trace.emitted(x, maps=True)
    each = x.shape[dim] // groups
    if known is None or known[0] != dim or not is_flat(known[1], dim) or bool(known[1].isnan().any()):
        return
    if 1 < each < ENOUGH_CHANNELS:
        return
    mean, deviation = (part.to(x.dtype) for part in normalised(known[1], dim, groups))
    mean, deviation = (part if scale is None else part * scale.detach() for part in (mean, deviation))
    mean = mean if shift is None else mean + shift.detach()
    trace.set_emitted(out, dim, spread(mean, deviation, dim, out.dim(), trace.name(scale) or ""))


ENOUGH_GROUPS = 8
"""A group norm of at least this many groups loses whole groups, so that the statistics of the other groups stay exact.

Removing one group of G removes a G-th of the layer's channels in one step. Chosen, not measured: from 8 groups on, this
step is an eighth of the layer or less. With fewer groups, removing one channel of each group (G channels) is the finer
step."""


@rule("native_group_norm", statistic=True, counted=True)
def group_norm(trace, func, args, kwargs, out) -> None:
    """Ties the channels of each group: whole groups are removed, so the statistics of the other groups stay exact.

    This requires a module whose number of groups can be set, and at least `ENOUGH_GROUPS` groups. Otherwise a cut
    removes the same index from each group, which changes the statistics.
    """
    x, weight, bias, _, _, _, groups, _ = args
    dims = trace.dims(x)
    vectors = [t for t in (weight, bias) if isinstance(t, torch.Tensor)]
    channels = dims[1]
    for vector in vectors:
        known = trace.dim(vector, 0)
        if channels is not None or known is not None:
            channels = trace.labels.tie(channels, known, "group norm ties it to an input of fixed size")
    if ENOUGH_GROUPS <= groups < x.shape[1] and trace.name(weight) in trace.regrouped:
        trace.labels.tie_columns(channels, groups)
    elif groups < x.shape[1]:
        trace.labels.tie_rows(channels, groups)
        trace.labels.mark_inexact(channels, "group norm's statistics run over these channels")
    for dim in dims[2:]:
        trace.labels.mark_inexact(dim, "group norm's statistics run over these channels")
    result = out[0]
    trace.set(result, [dims[0], channels, *dims[2:]])
    _emit_normalised(trace, x, 1, groups, weight, bias, result)
    fixed = x.numel() / (1 if channels is None else x.shape[1])
    trace.count("group_norm", (5 if vectors else 4) * fixed, channels)
    if vectors and channels is not None and trace.is_state(vectors[0]):
        trace.taps.append(Tap(vectors[0], channels, norm=True, dim=1))


@rule(
    "mean", "sum", "amax", "amin", "var", "std", "var_mean", "std_mean", "prod", "any", "all", "logsumexp",
    "linalg_vector_norm", "norm", "nansum", "aminmax",
    statistic=True, counted=("mean",),
)  # fmt: skip
def reduction(trace, func, args, kwargs, out) -> None:
    """Drops the labels of the reduced dimensions. Marks reduced channels inexact, because the statistic changes."""
    x = args[0]
    dims = trace.dims(x)
    axes, keep = reduced_axes(func, args, kwargs, x)
    for axis in axes:
        trace.labels.mark_inexact(dims[axis], f"{func._schema.name} runs over these channels")
    result = [d for axis, d in enumerate(dims) if axis not in axes]
    if keep:
        result = [None if axis in axes else d for axis, d in enumerate(dims)]
    emitted = trace.emitted(x, maps=True)
    for tensor in out if isinstance(out, (tuple, list)) else [out]:
        if tensor.dim() == len(result):
            trace.set(tensor, list(result))
            if emitted is not None and emitted[0] not in axes and func._schema.name == "aten::mean":
                dim, constants = emitted
                if constants.dim() > 1:
                    constants = constants.mean(sorted(axes), keepdim=keep)
                trace.set_emitted(tensor, dim if keep else dim - sum(axis < dim for axis in axes), constants)
    if trace.pooling and func._schema.name == "aten::mean":
        fixed = prod(n for n, d in zip(x.shape, dims, strict=True) if d is None)
        trace.count("adaptive_avg_pool2d", fixed, *(d for d in dims if d is not None))


def reduced_axes(func, args, kwargs, x) -> tuple[set[int], bool]:
    given = by_name(func, args, kwargs)
    axes = given.get("dim")
    axes = [axes] if isinstance(axes, int) else axes
    axes = list(range(x.dim())) if axes is None or len(axes) == 0 else axes
    return {axis % x.dim() for axis in axes}, bool(given.get("keepdim", False))


@rule("_softmax", "_log_softmax", "softmax", "log_softmax", "_safe_softmax", statistic=True)
def softmax(trace, func, args, kwargs, out) -> None:
    """Keeps all labels. Freezes the channels that a softmax runs over: its results are shares of classes or bins.

    In products of channels with channels (attention over channels) they are features; they are marked inexact, because
    the sum changes.
    """
    dims = trace.dims(args[0])
    axis = args[1] % len(dims)
    if any(dim is not None and len(dim) for i, dim in enumerate(dims) if i != axis):
        trace.labels.mark_inexact(dims[axis], "softmax runs over these channels")
    else:
        trace.labels.freeze(dims[axis], "softmax runs over them, so they stand for classes or bins")
    trace.set(out, list(dims))


@rule("max", "min", statistic=True)
@rule("argmax", "argmin", "sort", "topk", "argsort", "cumsum", "cumsum_", "cumprod", "cumprod_", "logcumsumexp",
      "cummax", "cummin", "median", "mode", "kthvalue")  # fmt: skip
def ordering(trace, func, args, kwargs, out) -> None:
    """Freezes the dimension that is ordered, because its indices are returned. For `max` and `min` see `_extremes`."""
    x = args[0]
    name = func._schema.name
    if name in ("aten::max", "aten::min") and len(args) > 1 and isinstance(args[1], torch.Tensor):
        from .pointwise import pointwise

        return pointwise(trace, func, args, kwargs, out)
    dims = trace.dims(x)
    given = by_name(func, args, kwargs)
    if name in ("aten::max", "aten::min"):
        return _extremes(trace, name, dims, given, out)
    axis = given.get("dim", -1 if name in ("aten::sort", "aten::topk", "aten::argsort", "aten::kthvalue") else None)
    for index in range(x.dim()) if axis is None else [axis % max(1, x.dim())]:
        if index < x.dim():
            trace.labels.freeze(dims[index], f"{name} orders these channels")
    for tensor in out if isinstance(out, (tuple, list)) else [out]:
        if axis is None or x.dim() == 0:
            continue
        result = list(dims)
        if tensor.dim() == x.dim():
            result[axis] = None if tensor.shape[axis] != x.shape[axis] else dims[axis]
        else:
            del result[axis % x.dim()]
        trace.set(tensor, result)


def _extremes(trace, name: str, dims, given, out) -> None:
    """Marks the reduced channels of `max` or `min` inexact; freezes them only if the returned indices are read."""
    axes = range(len(dims)) if given.get("dim") is None else [given["dim"] % max(1, len(dims))]
    for axis in (axis for axis in axes if axis < len(dims)):
        trace.labels.mark_inexact(dims[axis], f"{name} runs over these channels")
        if isinstance(out, (tuple, list)):
            trace.when_read(out[1], dims[axis], f"{name} orders these channels")
            left = [None if i == axis else d for i, d in enumerate(dims) if i != axis or given.get("keepdim")]
            for tensor in out:
                trace.set(tensor, left)


@rule("nonzero", "unique", "_unique2", "unique_dim", "bincount", "histc")
def data_dependent_size(trace, func, args, kwargs, out) -> None:
    """Freezes the input's channels, because the size of the result depends on their values."""
    trace.freeze_tensors([args[0]], f"{func._schema.name} depends on each of these channels")


@rule(
    "max_pool2d_with_indices", "max_pool2d", "avg_pool2d", "max_pool1d", "avg_pool1d", "max_pool3d_with_indices",
    "avg_pool3d", "adaptive_max_pool2d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_avg_pool2d",
    "mkldnn_max_pool2d", "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_nearest1d",
    "upsample_linear1d", "upsample_trilinear3d", "upsample_nearest3d", "_upsample_bilinear2d_aa",
    "_upsample_bicubic2d_aa", "_upsample_nearest_exact2d", "grid_sampler_2d", "grid_sampler_3d", "grid_sampler",
    "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d", "replication_pad2d",
    "replication_pad3d", "lp_pool2d",
    "fractional_max_pool2d",
    counted=("upsample_nearest2d", "upsample_bilinear2d", "_adaptive_avg_pool2d", "grid_sampler_2d"),
)  # fmt: skip
def resampling(trace, func, args, kwargs, out) -> None:
    """Keeps the labels of batch and channels and freezes the spatial dimensions, which pooling and resizing change."""
    x = args[0]
    dims = trace.dims(x)
    name = func._schema.name
    spatial = next((n for n in (1, 2, 3) if f"{n}d" in name), 2)
    for dim in dims[x.dim() - spatial :]:
        trace.labels.freeze(dim, f"{name} moves over it as a spatial dimension")
    result = [*dims[: x.dim() - spatial], *[None] * spatial]
    first = out[0] if isinstance(out, (tuple, list)) else out
    for tensor in out if isinstance(out, (tuple, list)) else [out]:
        trace.set(tensor, list(result))
    emitted = trace.emitted(x, maps=True)
    if emitted is not None and emitted[0] < x.dim() - spatial:
        padded = name.startswith("aten::avg_pool") and any(args[3] if len(args) > 3 else ())
        if not padded and is_flat(emitted[1], emitted[0]):
            trace.set_emitted(first, *emitted)
        elif "grid" not in name:
            value = func(trace.emitted_maps(x)[1], *args[1:], **kwargs)
            trace.set_emitted(first, emitted[0], value[0] if isinstance(value, (tuple, list)) else value)
    op, numel = {
        "aten::upsample_nearest2d": ("upsample_nearest2d", first.numel()),
        "aten::upsample_bilinear2d": ("upsample_bilinear2d", 4 * first.numel()),
        "aten::grid_sampler_2d": ("grid_sampler", 4 * first.numel()),
        "aten::_adaptive_avg_pool2d": ("adaptive_avg_pool2d", x.numel()),
    }.get(name, ("", 0))
    if op:
        sides = [d for d in result if d is not None]
        trace.count(op, numel / prod(len(s) for s in sides), *sides)


@rule("max_unpool2d", "max_unpool3d")
def unpooling(trace, func, args, kwargs, out) -> None:
    """Ties the channels to those of the maxima whose positions are given; freezes the spatial dimensions."""
    x, index = args[:2]
    spatial = 3 if func._schema.name.endswith("3d") else 2
    values, places = trace.dims(x), trace.dims(index)
    result: list = []
    for axis in range(x.dim()):
        if axis < x.dim() - spatial:
            reason = "the positions of maxima are those of a fixed number of channels"
            tied = values[axis] is not None or places[axis] is not None
            result.append(trace.labels.tie(values[axis], places[axis], reason) if tied else None)
        else:
            for labels in (values[axis], places[axis]):
                trace.labels.freeze(labels, f"{func._schema.name} moves over it as a spatial dimension")
            result.append(None)
    trace.set(out, result)
