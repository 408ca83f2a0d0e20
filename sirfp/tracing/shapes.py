"""Rules for operations that reshape, reorder, repeat or shuffle dimensions, and for windows, GLU and RoI pooling."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from .table import rule


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "_view_copy")
def view(trace, func, args, kwargs, out) -> None:
    """Follows merged and split dimensions, block by block (see `blocks`).

    A merged dimension repeats the labels of the one dimension in it that has labels. If a dimension is split, its
    labels go to the new dimension along which they vary. If they vary along several, they go to the innermost one; the
    others are tied, so that all of them (attention heads, rows of a channel shuffle) lose the same indices. A split in
    `trace.heads` gives them to an outer one instead, and loses whole heads.
    """
    x = args[0]
    dims = trace.dims(x)
    if tuple(x.shape) == tuple(out.shape):
        trace.set(out, list(dims))
        return
    if x.numel() == 0:
        trace.freeze_tensors([x], "a reshape of an empty tensor")
        return
    result = [None] * out.dim()
    for old, new in blocks(x.shape, out.shape):
        axis = _followed_axis(trace, x, old)
        if axis is None:
            continue
        if len(old) == len(new) == 1:
            result[new[0]] = dims[axis] if (dims[axis] != dims[axis][0]).any() else None
        else:
            table = dims[axis].reshape([-1 if i == axis else 1 for i in old])
            flat = np.broadcast_to(table, [x.shape[i] for i in old]).reshape([out.shape[i] for i in new])
            _carry(trace, flat, new, result, out)
        _carry_emitted(trace, x, old, axis, out, new)
    trace.set(out, result)


def _followed_axis(trace, x: torch.Tensor, block: list[int]) -> int | None:
    """Returns the innermost dimension of a block that has labels, and freezes the labels of the other dimensions.

    A dimension whose channels meet those of other tensors is followed rather than one whose channels do not, and the
    second dimension of a parameter rather than its third: weights (outputs, inputs, basis functions) are followed along
    their inputs.

    A reshape of a convolution's weight, as in weight standardisation, merges channels with the kernel's area. The
    channels are followed, and the spatial dimensions are frozen; so are those of any parameter of more than 3
    dimensions, whose first two are followed.
    """
    dims = trace.dims(x)
    held = [axis for axis in block if dims[axis] is not None]
    channels = [axis for axis in held if not trace.is_area(dims[axis])]
    if channels:
        for axis in (axis for axis in held if axis not in channels):
            trace.labels.freeze(dims[axis], "it is a spatial dimension of a convolution")
        held = channels
    if held and held[0] < 2 and x.dim() > 3 and trace.is_state(x):
        for axis in (axis for axis in held if axis >= 2):
            trace.labels.freeze(dims[axis], "it is a spatial dimension of a convolution")
        held = [axis for axis in held if axis < 2]
    if len(held) > 1:
        inputs = 1 if x.dim() == 3 and trace.is_state(x) else None
        held.sort(key=lambda axis: (trace.labels.meets_others(dims[axis]), axis == inputs, axis))
    for axis in held[:-1]:
        trace.labels.freeze(dims[axis], "a reshape merges it with other channels")
    return held[-1] if held else None


def _carry_emitted(trace, x, old: list[int], axis: int, out, new: list[int]) -> None:
    """Passes on what channels emit.

    The block must keep them in one dimension, alone or merged with positions.
    """
    emitted = trace.emitted(x)
    target = [i for i in new if out.shape[i] > 1]
    if emitted is not None and emitted[0] == axis and len(target) == 1:
        values = emitted[1].reshape([-1 if i == axis else 1 for i in old]).expand([x.shape[i] for i in old])
        trace.set_emitted(out, target[0], values.flatten())


def blocks(old: torch.Size, new: torch.Size) -> Iterator[tuple[list[int], list[int]]]:
    """Yields pairs of old and new dimensions that a reshape merges or splits into each other, in the smallest blocks.

    Both sides of a block have the same product of sizes: (2, 6, 5) to (12, 5) gives ([0, 1], [0]) and ([2], [1]).
    Dimensions of size one are skipped.
    """
    left = [axis for axis, n in enumerate(old) if n != 1]
    right = [axis for axis, n in enumerate(new) if n != 1]
    while left and right:
        run, to = [left.pop(0)], [right.pop(0)]
        a, b = old[run[0]], new[to[0]]
        while a != b:
            if a < b:
                run.append(left.pop(0))
                a *= old[run[-1]]
            else:
                to.append(right.pop(0))
                b *= new[to[-1]]
        yield run, to


def _carry(trace, flat: np.ndarray, axes: list[int], result: list, out) -> None:
    """Sets the labels of a block's new dimensions in `result`.

    The innermost dimension along which `flat` varies gets the labels. If they vary along other dimensions too, they are
    tied along these. In a split that loses whole heads, the dimension of the heads gets them.

    Args:
        trace: the trace.
        flat: the label of each index of the block's new dimensions.
        axes: the new dimensions of the block.
        result: labels of each new dimension.
        out: the result of the reshape.
    """
    varying = [k for k in range(flat.ndim) if flat.shape[k] > 1 and (np.take(flat, [0], axis=k) != flat).any()]
    if not varying:
        return
    chosen = varying[-1 - min(trace.outer(flat, varying), len(varying) - 1)]
    rows = np.moveaxis(flat, chosen, -1).reshape(-1, flat.shape[chosen])
    if len(varying) > 1:
        trace.labels.tie_rows(np.ascontiguousarray(rows).reshape(-1), len(rows))
        whole = flat[tuple(slice(None) if k in varying else 0 for k in range(flat.ndim))].reshape(-1)
        trace.note_split(out, [axes[k] for k in varying], rows[0], whole)
    result[axes[chosen]] = np.ascontiguousarray(rows[0])


@rule("permute")
def permute(trace, func, args, kwargs, out) -> None:
    x, order = args
    _reorder(trace, x, [axis % x.dim() for axis in order], out)


@rule("t", "transpose", "t_", "transpose_", "swapaxes", "numpy_T")
def transpose(trace, func, args, kwargs, out) -> None:
    x = args[0]
    order = list(range(x.dim()))
    a, b = args[1:3] if len(args) > 2 else (0, -1)
    if x.dim() > 1:
        order[a], order[b] = order[b], order[a]
    _reorder(trace, x, order, out)


def _reorder(trace, x, order, out) -> None:
    dims = trace.dims(x)
    trace.set(out, [dims[axis] for axis in order])
    emitted = trace.emitted(x)
    if emitted is not None:
        trace.set_emitted(out, order.index(emitted[0]), emitted[1])


@rule("as_strided_")
def restride(trace, func, args, kwargs, out) -> None:
    """Freezes the channels unless each index keeps its place in memory.

    A convolution restrides maps of one position, (N, C, 1, 1), in place: only the steps of dimensions of length one
    change, which have no meaning.
    """
    shape, steps = trace.before
    if tuple(out.shape) != shape or any(n > 1 and a != b for n, a, b in zip(shape, steps, out.stride(), strict=True)):
        trace.freeze_tensors([out], "as_strided_ gives it another shape")


@rule("rot90")
def rot90(trace, func, args, kwargs, out) -> None:
    x, times, axes = args[0], args[1] if len(args) > 1 else 1, args[2] if len(args) > 2 else (0, 1)
    order = list(range(x.dim()))
    for axis in axes:
        trace.labels.freeze(trace.dim(x, axis), "rot90 changes its order")
    if times % 2:
        order[axes[0]], order[axes[1]] = order[axes[1]], order[axes[0]]
    _reorder(trace, x, order, out)


@rule("unsqueeze", "unsqueeze_")
def unsqueeze(trace, func, args, kwargs, out) -> None:
    dims = list(trace.dims(args[0]))
    dims.insert(args[1] % out.dim(), None)
    trace.set(out, dims)


@rule("squeeze", "squeeze_")
def squeeze(trace, func, args, kwargs, out) -> None:
    x, in_place = args[0], func._schema.name.endswith("_")
    shape = trace.before[0] if in_place else x.shape
    axes = args[1] if len(args) > 1 else range(len(shape))
    axes = {axes % len(shape)} if isinstance(axes, int) else {axis % len(shape) for axis in axes}
    dims = trace.dims(x)
    trace.set(out, [d for axis, d in enumerate(dims) if not (axis in axes and shape[axis] == 1)])


@rule("expand")
def expand(trace, func, args, kwargs, out) -> None:
    x = args[0]
    trace.set(out, [None] * (out.dim() - x.dim()) + list(trace.dims(x)))


@rule("repeat")
def repeat(trace, func, args, kwargs, out) -> None:
    x, times = args
    dims = [None] * (out.dim() - x.dim()) + list(trace.dims(x))
    trace.set(out, [None if d is None else np.tile(d, n) for d, n in zip(dims, times, strict=True)])


@rule("repeat_interleave")
def repeat_interleave(trace, func, args, kwargs, out) -> None:
    trace.freeze_tensors([t for t in args if isinstance(t, torch.Tensor)], "repeat_interleave has no rule")


@rule("pixel_shuffle")
def pixel_shuffle(trace, func, args, kwargs, out) -> None:
    """(N, C r^2, H, W) -> (N, C, H r, W r): ties the r^2 channels that make one output channel."""
    x, factor = args
    dims = trace.dims(x)
    if dims[-3] is None:
        return
    table = dims[-3].reshape(-1, factor * factor)
    for column in range(1, factor * factor):
        trace.labels.ties.append((table[:, 0], table[:, column]))
    trace.set(out, [*dims[:-3], np.ascontiguousarray(table[:, 0]), None, None])


@rule("pixel_unshuffle")
def pixel_unshuffle(trace, func, args, kwargs, out) -> None:
    """(N, C, H r, W r) -> (N, C r^2, H, W): repeats each channel's label r^2 times."""
    x, factor = args
    dims = trace.dims(x)
    labels = None if dims[-3] is None else np.repeat(dims[-3], factor * factor)
    trace.set(out, [*dims[:-3], labels, None, None])


@rule("native_channel_shuffle", "channel_shuffle")
def channel_shuffle(trace, func, args, kwargs, out) -> None:
    """(N, g n, H, W) -> (N, n g, H, W): ties the g groups index by index, so that all keep the same width."""
    x, groups = args
    dims = trace.dims(x)
    row = trace.labels.tie_rows(dims[1], groups)
    trace.set(out, [dims[0], None if row is None else np.repeat(row, groups), *dims[2:]])


@rule("glu")
def glu(trace, func, args, kwargs, out) -> None:
    """Ties the two halves index by index, because one gates the other."""
    x = args[0]
    axis = args[1] if len(args) > 1 else -1
    dims = list(trace.dims(x))
    dims[axis] = trace.labels.tie_rows(dims[axis], 2)
    trace.set(out, dims)


@rule("im2col")
def im2col(trace, func, args, kwargs, out) -> None:
    """(N, C, H, W) -> (N, C k k, L): repeats each channel's label for the k k positions of the kernel."""
    x = args[0]
    dims = trace.dims(x)
    labels = None if dims[1] is None else np.repeat(dims[1], out.shape[1] // x.shape[1])
    trace.set(out, [dims[0], labels, None])


@rule("col2im")
def col2im(trace, func, args, kwargs, out) -> None:
    """(N, C k k, L) -> (N, C, H, W): ties the k k positions of the kernel, which make one channel."""
    x = args[0]
    dims = trace.dims(x)
    channels, places = dims[-2], out.shape[-3]
    trace.labels.freeze(dims[-1], "it is the position of a kernel")
    trace.labels.tie_columns(channels, places)
    labels = None if channels is None else np.ascontiguousarray(channels.reshape(places, -1)[:, 0])
    trace.set(out, [*dims[:-2], labels, None, None])


@rule("unfold")
def unfold(trace, func, args, kwargs, out) -> None:
    x, axis = args[0], args[1] % args[0].dim()
    dims = list(trace.dims(x))
    trace.labels.freeze(dims[axis], "windows slide over it")
    dims[axis] = None
    trace.set(out, [*dims, None])


@rule("torchvision::roi_align", "torchvision::roi_pool")
def roi_align(trace, func, args, kwargs, out) -> None:
    """(N, C, H, W) and (K, 5) boxes -> (K, C, h, w): keeps the labels of the channels."""
    trace.freeze_tensors([args[1]], "it is the coordinates of a box")
    for tensor in out if isinstance(out, (tuple, list)) else [out]:
        trace.set(tensor, [None, trace.dim(args[0], 1), None, None])


def convolution_weights(model: nn.Module) -> list[str]:
    """Returns the names of the parameters (O, I, ...) of a model's convolutions, also of those that are computed."""
    return [
        name
        for prefix, module in model.named_modules()
        if isinstance(module, nn.modules.conv._ConvNd)
        for name, parameter in module.named_parameters(prefix)
        if parameter.dim() > 2
    ]
