"""Rules for operations that move, cut and join dimensions without arithmetic."""

from __future__ import annotations

from math import prod

import numpy as np
import torch

from .rules import rule


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "_view_copy")
def view(trace, func, args, kwargs, out) -> None:
    """Follows merged and split dimensions.

    Merged dimensions repeat the one label array that is there. Split ones carry the array along the
    axis on which it varies; where it varies on several, the outer ones are tied (heads, shuffles).
    """
    x = args[0]
    if x.numel() == 0 or tuple(x.shape) == tuple(out.shape):
        if tuple(x.shape) == tuple(out.shape):
            trace.set(out, list(trace.dims(x)))
        else:
            trace.freeze_tensors([x], "a reshape of an empty tensor")
        return
    dims = trace.dims(x)
    result = [None] * out.dim()
    emitted = trace.emitted(x)
    for old, new in _blocks(x.shape, out.shape):
        held = [axis for axis in old if dims[axis] is not None]
        if not held:
            continue
        if trace.is_state(x) and x.dim() > 3 and held[0] < 2:  # a kernel is standardised: its area stays as it is
            for axis in (axis for axis in held if axis >= 2):
                trace.labels.freeze(dims[axis], "it is a spatial dimension of a convolution")
            held = [axis for axis in held if axis < 2]
        sizes = [x.shape[axis] for axis in old]
        for axis in held[:-1]:  # several label arrays in one block: only the innermost is followed
            trace.labels.freeze(dims[axis], "a reshape merges it with other channels")
        inner = held[-1]
        place = old.index(inner)
        table = dims[inner].reshape([-1 if i == place else 1 for i in range(len(old))])
        flat = np.broadcast_to(table, sizes).reshape([out.shape[axis] for axis in new])
        _carry(trace, flat, new, result)
        if emitted is not None and emitted[0] in old and prod(sizes) == x.shape[inner]:
            target = [axis for axis in new if out.shape[axis] == x.shape[inner]]
            if target:
                trace.set_emitted(out, target[-1], emitted[1])
    trace.set(out, result)


def _blocks(old: torch.Size, new: torch.Size):
    """Pairs the smallest runs of old and new dimensions (those longer than one) of equal product."""
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


def _carry(trace, flat: np.ndarray, axes: list[int], result: list) -> None:
    varying = [k for k in range(flat.ndim) if (np.take(flat, [0], axis=k) != flat).any()]
    if not varying:
        return
    last = varying[-1]
    if len(varying) > 1:
        rows = np.moveaxis(flat, last, -1).reshape(-1, flat.shape[last])
        trace.labels.tie_rows(np.ascontiguousarray(rows).reshape(-1), len(rows))
    index = tuple(slice(None) if k == last else 0 for k in range(flat.ndim))
    result[axes[last]] = np.ascontiguousarray(flat[index])


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
    """A layout written anew changes nothing where a map of one position keeps its shape, as convolutions have it."""
    dims = trace.dims(out)
    shape = tuple(args[1])
    fits = len(dims) == len(shape) and all(d is None or len(d) == n for d, n in zip(dims, shape, strict=True))
    if not fits or out.numel() != max(shape):
        trace.freeze_tensors([out], "as_strided_ gives it another shape")


@rule("unsqueeze", "unsqueeze_")
def unsqueeze(trace, func, args, kwargs, out) -> None:
    dims = list(trace.dims(args[0]))
    dims.insert(args[1] % out.dim(), None)
    trace.set(out, dims)


@rule("squeeze", "squeeze_")
def squeeze(trace, func, args, kwargs, out) -> None:
    x = args[0]
    axes = args[1] if len(args) > 1 else range(x.dim())
    axes = {axes % x.dim()} if isinstance(axes, int) else {axis % x.dim() for axis in axes}
    dims = trace.dims(x)
    trace.set(out, [d for axis, d in enumerate(dims) if not (axis in axes and x.shape[axis] == 1)])


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


@rule("cat")
def cat(trace, func, args, kwargs, out) -> None:
    """Joins label arrays along its dimension and ties the others."""
    tensors = [t for t in args[0] if t.dim() == out.dim()]
    axis = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % out.dim()
    result = []
    for index in range(out.dim()):
        parts = [trace.dim(t, index) for t in tensors]
        if all(p is None for p in parts):
            result.append(None)
        elif index == axis:
            result.append(
                np.concatenate([_or_fixed(trace, p, t.shape[index]) for p, t in zip(parts, tensors, strict=True)])
            )
        else:
            labels = parts[0]
            for part in parts[1:]:
                labels = trace.labels.tie(labels, part, "cat joins it with a fixed size")
            result.append(labels)
    trace.set(out, result)
    emitted = [trace.emitted(t) for t in tensors]
    if all(e is not None and e[0] == axis for e in emitted):
        trace.set_emitted(out, axis, torch.cat([e[1] for e in emitted]))


def _or_fixed(trace, labels, size: int):
    if labels is None:
        labels = trace.labels.fresh(size)
        trace.labels.freeze(labels, "cat joins a fixed part")
    return labels


@rule("stack")
def stack(trace, func, args, kwargs, out) -> None:
    tensors = args[0]
    axis = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % out.dim()
    result = []
    for index in range(tensors[0].dim()):
        parts = [trace.dim(t, index) for t in tensors]
        labels = parts[0]
        for part in parts[1:]:
            if labels is not None or part is not None:
                labels = trace.labels.tie(labels, part, "stack joins it with a fixed size")
        result.append(labels)
    result.insert(axis, None)
    trace.set(out, result)


@rule("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "split_copy", "split_with_sizes_copy",
      "chunk", "unsafe_chunk")  # fmt: skip
def split(trace, func, args, kwargs, out) -> None:
    """Equal parts shrink together, index by index; unequal ones have their sizes in the code."""
    x = args[0]
    axis = (args[2] if len(args) > 2 else kwargs.get("dim", 0)) % x.dim()
    dims = trace.dims(x)
    labels = dims[axis]
    equal = len({part.shape[axis] for part in out}) == 1
    if labels is not None:
        if equal:
            trace.labels.tie_rows(labels, len(out))
        else:
            trace.labels.freeze(labels, "it is split in unequal parts")
    start = 0
    for part in out:
        size = part.shape[axis]
        own = None if labels is None else labels[start : start + size]
        trace.set(part, [own if i == axis else d for i, d in enumerate(dims)])
        start += size


@rule("unbind", "unbind_copy")
def unbind(trace, func, args, kwargs, out) -> None:
    x = args[0]
    axis = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % x.dim()
    dims = trace.dims(x)
    trace.labels.freeze(dims[axis], "it is taken apart")
    for part in out:
        trace.set(part, [d for i, d in enumerate(dims) if i != axis])


@rule("slice")
def slice_(trace, func, args, kwargs, out) -> None:
    """A part of the channels has its bounds in the code, which freezes them all."""
    x = args[0]
    axis = (args[1] if len(args) > 1 else 0) % x.dim()
    dims = list(trace.dims(x))
    if x.shape[axis] != out.shape[axis] and dims[axis] is not None:
        trace.labels.freeze(dims[axis], "a slice takes a part of it")
        start = args[2] if len(args) > 2 and args[2] is not None else 0
        step = args[4] if len(args) > 4 else 1
        start = max(0, start + x.shape[axis]) if start < 0 else start
        dims[axis] = dims[axis][start::step][: out.shape[axis]]
    trace.set(out, dims)
    emitted = trace.emitted(x)
    if emitted is not None and x.shape[emitted[0]] == out.shape[emitted[0]]:
        trace.set_emitted(out, *emitted)


@rule("select")
def select(trace, func, args, kwargs, out) -> None:
    x, axis = args[0], args[1] % args[0].dim()
    dims = trace.dims(x)
    trace.labels.freeze(dims[axis], "one index of it is taken")
    trace.set(out, [d for i, d in enumerate(dims) if i != axis])


@rule("index", "_unsafe_index")
def index(trace, func, args, kwargs, out) -> None:
    """Indexing positions passes channels through; indexing channels freezes them."""
    x, indices = args
    dims = trace.dims(x)
    used = _indexed_axes(indices)
    for axis in used:
        trace.labels.freeze(dims[axis], "it is indexed")
    trace.freeze_tensors([i for i in indices if i is not None and i.is_floating_point()], "it is an index")
    kept = [d for axis, d in enumerate(dims) if axis not in used]
    added = out.dim() - len(kept)
    adjacent = used == list(range(used[0], used[-1] + 1)) if used else True
    place = used[0] if used and adjacent else 0
    trace.set(out, [*kept[:place], *[None] * added, *kept[place:]])


def _indexed_axes(indices) -> list[int]:
    """Dimensions that a list of index tensors covers; a mask covers as many as it has."""
    axes, axis = [], 0
    for tensor in indices:
        width = tensor.dim() if tensor is not None and tensor.dtype in (torch.bool, torch.uint8) else 1
        axes += list(range(axis, axis + width)) if tensor is not None else []
        axis += width
    return axes


@rule("index_put", "index_put_", "_unsafe_index_put", "_index_put_impl_")
def index_put(trace, func, args, kwargs, out) -> None:
    """Writing rows into a buffer: the buffer takes the labels of what is written."""
    x, indices, written = args[:3]
    used = _indexed_axes(indices)
    dims = list(trace.dims(x))
    values = trace.dims(written)
    for axis in used:
        trace.labels.freeze(dims[axis], "it is indexed")
    fresh = x not in trace._dims
    for back in range(1, x.dim() + 1):
        axis = x.dim() - back
        if axis in used or back > written.dim() or (used and axis < used[-1]):
            break
        labels = values[-back]
        if fresh and labels is not None:
            dims[axis] = labels
        elif labels is not None or dims[axis] is not None:
            dims[axis] = trace.labels.tie(dims[axis], labels, "a fixed size is written into it")
    for axis in range(written.dim() - (x.dim() - 1 - used[-1] if used else 0)):
        trace.labels.freeze(values[axis], "it is written by index")
    trace.set(out, dims)
    if out is not x and func._schema.is_mutable:
        trace.set(x, dims)


@rule("index_select", "gather", "take_along_dim")
def index_select(trace, func, args, kwargs, out) -> None:
    x, axis = args[0], args[1] % max(1, args[0].dim())
    dims = list(trace.dims(x))
    trace.labels.freeze(dims[axis], "it is indexed")
    dims[axis] = None
    for i, d in enumerate(dims):
        if d is not None and out.shape[i] != x.shape[i]:
            trace.labels.freeze(d, "it is indexed")
            dims[i] = None
    if isinstance(args[2], torch.Tensor):
        trace.freeze_tensors([args[2]], "it is an index")
    trace.set(out, dims)


@rule("embedding")
def embedding(trace, func, args, kwargs, out) -> None:
    weight = args[0]
    trace.labels.freeze(trace.dim(weight, 0), "it is an index of an embedding")
    trace.set(out, [None] * (out.dim() - 1) + [trace.dim(weight, 1)])


@rule("constant_pad_nd", "pad")
def constant_pad(trace, func, args, kwargs, out) -> None:
    """Padding positions passes channels; padding channels has its size in the code."""
    x = args[0]
    dims = list(trace.dims(x))
    for axis in range(x.dim()):
        if out.shape[axis] != x.shape[axis] and dims[axis] is not None:
            trace.labels.freeze(dims[axis], "it is padded")
            dims[axis] = None
    trace.set(out, dims)
    emitted = trace.emitted(x)
    if emitted is not None:
        trace.set_emitted(out, *emitted)


@rule("roll", "flip")
def roll(trace, func, args, kwargs, out) -> None:
    x = args[0]
    dims = list(trace.dims(x))
    axes = args[1] if func._schema.name == "aten::flip" else (args[2] if len(args) > 2 else range(x.dim()))
    for axis in [axes] if isinstance(axes, int) else axes:
        trace.labels.freeze(dims[axis], "its order is moved")
    trace.set(out, dims)


@rule("pixel_shuffle")
def pixel_shuffle(trace, func, args, kwargs, out) -> None:
    """(N, C r^2, H, W) -> (N, C, H r, W r): the r^2 channels of one output go together."""
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
    """(N, C, H r, W r) -> (N, C r^2, H, W): a channel becomes r^2."""
    x, factor = args
    dims = trace.dims(x)
    labels = None if dims[-3] is None else np.repeat(dims[-3], factor * factor)
    trace.set(out, [*dims[:-3], labels, None, None])


@rule("native_channel_shuffle", "channel_shuffle")
def channel_shuffle(trace, func, args, kwargs, out) -> None:
    """(N, g n, H, W) -> (N, n g, H, W): groups are tied, so that each keeps the same width."""
    x, groups = args
    dims = trace.dims(x)
    row = trace.labels.tie_rows(dims[1], groups)
    trace.set(out, [dims[0], None if row is None else np.repeat(row, groups), *dims[2:]])


@rule("glu")
def glu(trace, func, args, kwargs, out) -> None:
    """Halves gate each other: they shrink together."""
    x = args[0]
    axis = args[1] if len(args) > 1 else -1
    dims = list(trace.dims(x))
    dims[axis] = trace.labels.tie_rows(dims[axis], 2)
    trace.set(out, dims)


@rule("im2col")
def im2col(trace, func, args, kwargs, out) -> None:
    """(N, C, H, W) -> (N, C k k, L): each channel is repeated for the k k places of the kernel."""
    x = args[0]
    dims = trace.dims(x)
    labels = None if dims[1] is None else np.repeat(dims[1], out.shape[1] // x.shape[1])
    trace.set(out, [dims[0], labels, None])


@rule("unfold")
def unfold(trace, func, args, kwargs, out) -> None:
    x, axis = args[0], args[1] % args[0].dim()
    dims = list(trace.dims(x))
    trace.labels.freeze(dims[axis], "windows slide over it")
    dims[axis] = None
    trace.set(out, [*dims, None])


@rule("torchvision::roi_align", "torchvision::roi_pool")
def roi_align(trace, func, args, kwargs, out) -> None:
    """(N, C, H, W) and (K, 5) boxes -> (K, C, h, w)."""
    trace.freeze_tensors([args[1]], "it is the coordinates of a box")
    for tensor in out if isinstance(out, (tuple, list)) else [out]:
        trace.set(tensor, [None, trace.dim(args[0], 1), None, None])
