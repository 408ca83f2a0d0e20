"""Rules for operations that join tensors, and that split, slice, index, pad, roll or partly overwrite a tensor."""

from __future__ import annotations

import numpy as np
import torch

from .emissions import is_flat, with_rows
from .table import rule


@rule("cat")
def cat(trace, func, args, kwargs, out) -> None:
    """Concatenates the labels along the joined dimension and ties the labels of the others."""
    tensors = [t for t in args[0] if t.dim() == out.dim()]
    axis = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % out.dim()
    result: list = []
    for index in range(out.dim()):
        parts = [trace.dim(t, index) for t in tensors]
        if all(p is None for p in parts):
            result.append(None)
        elif index == axis:
            result.append(
                np.concatenate([_or_fixed(trace, p, t, index) for p, t in zip(parts, tensors, strict=True)])
            )
        else:
            labels = parts[0]
            for part in parts[1:]:
                labels = trace.labels.tie(labels, part, "cat joins it with a fixed size")
            result.append(labels)
    trace.set(out, result)
    emitted = [trace.emitted(t, maps=True) for t in tensors]
    if any(e is not None and not is_flat(e[1], e[0]) for e in emitted):
        _cat_maps(trace, tensors, axis, out)
    elif any(e is not None and e[0] == axis for e in emitted):
        known = [None if e is None or e[0] != axis else with_rows(e[1], axis, out.dim()) for e in emitted]
        rows = max(len(k) for k in known if k is not None)
        unknown = [t.new_full([n if i == axis else 1 for i, n in enumerate(t.shape)], torch.nan) for t in tensors]
        parts = [u if k is None else k for k, u in zip(known, unknown, strict=True)]
        trace.set_emitted(out, axis, torch.cat([p.expand(rows, *p.shape[1:]) if axis else p for p in parts], axis))


def _cat_maps(trace, tensors, axis: int, out) -> None:
    """Joins what channels emit where it is another value in zero padding than elsewhere."""
    maps = [trace.emitted_maps(t) for t in tensors]
    if axis == 1 and all(known is None or known[0] == axis for known in maps):
        shape = [1, -1, *out.shape[2:]]
        unknown = [t.new_full((1, *t.shape[1:]), torch.nan) for t in tensors]
        parts = [u if known is None else known[1].expand(shape) for known, u in zip(maps, unknown, strict=True)]
        trace.set_emitted(out, axis, torch.cat(parts, axis))


def _or_fixed(trace, labels, tensor, axis: int):
    """Returns new labels for a part without any; they are frozen unless the code made the part of one value."""
    if labels is None:
        labels = trace.labels.fresh(tensor.shape[axis])
        if not trace.fit_made(tensor, axis, labels):
            trace.labels.freeze(labels, "cat joins it with a part of fixed size")
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
    """Ties equal parts index by index. Unequal parts keep their labels; their sizes follow (`sirfp.network.sizes`)."""
    x = args[0]
    axis = (args[2] if len(args) > 2 else kwargs.get("dim", 0)) % x.dim()
    dims = trace.dims(x)
    labels = dims[axis]
    if labels is not None and len({part.shape[axis] for part in out}) == 1:
        trace.labels.tie_rows(labels, len(out))
    else:
        trace.unread.note_part(labels)
    start, emitted = 0, trace.emitted(x)
    for part in out:
        size = part.shape[axis]
        own = None if labels is None else labels[start : start + size]
        trace.set(part, [own if i == axis else d for i, d in enumerate(dims)])
        if emitted is not None:
            dim, values = emitted
            trace.set_emitted(part, dim, values[start : start + size] if dim == axis else values)
        start += size


@rule("unbind", "unbind_copy")
def unbind(trace, func, args, kwargs, out) -> None:
    x = args[0]
    axis = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % x.dim()
    dims = trace.dims(x)
    trace.labels.freeze(dims[axis], "unbind splits it into single indices")
    for part in out:
        trace.set(part, [d for i, d in enumerate(dims) if i != axis])


@rule("slice")
def slice_(trace, func, args, kwargs, out) -> None:
    """Keeps the labels of the part; its bounds follow (`sirfp.network.sizes`). Freezes channels sliced with a step."""
    x = args[0]
    axis = (args[1] if len(args) > 1 else 0) % x.dim()
    dims = list(trace.dims(x))
    if x.shape[axis] != out.shape[axis] and dims[axis] is not None:
        start = args[2] if len(args) > 2 and args[2] is not None else 0
        step = args[4] if len(args) > 4 else 1
        if step > 1:
            trace.labels.freeze(dims[axis], "a slice takes a part of it")
        start = max(0, start + x.shape[axis]) if start < 0 else start
        trace.unread.note_part(dims[axis])
        dims[axis] = dims[axis][start::step][: out.shape[axis]]
    trace.set(out, dims)
    emitted = trace.emitted(x)
    if emitted is not None and x.shape[emitted[0]] == out.shape[emitted[0]]:
        trace.set_emitted(out, *emitted)


@rule("select")
def select(trace, func, args, kwargs, out) -> None:
    x, axis = args[0], args[1] % args[0].dim()
    dims = trace.dims(x)
    trace.labels.freeze(dims[axis], "select picks one index of it")
    trace.set(out, [d for i, d in enumerate(dims) if i != axis])


@rule("index", "_unsafe_index")
def index(trace, func, args, kwargs, out) -> None:
    """Keeps the labels of dimensions that are not indexed. Freezes indexed channels."""
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
    """Returns the dimensions that a list of index tensors indexes. A mask indexes one dimension for each of its own."""
    axes, axis = [], 0
    for tensor in indices:
        width = tensor.dim() if tensor is not None and tensor.dtype in (torch.bool, torch.uint8) else 1
        axes += list(range(axis, axis + width)) if tensor is not None else []
        axis += width
    return axes


@rule("index_put", "index_put_", "_unsafe_index_put", "_index_put_impl_")
def index_put(trace, func, args, kwargs, out) -> None:
    """Gives a buffer the labels of the rows that are written into it."""
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
        trace.labels.freeze(values[axis], "index_put writes it to given indices")
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


@rule("_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(trace, func, args, kwargs, out) -> None:
    trace.labels.freeze(trace.dim(args[0], 0), "it is an index of an embedding")
    trace.set(out[0], [None, trace.dim(args[0], 1)])


@rule("constant_pad_nd", "pad")
def constant_pad(trace, func, args, kwargs, out) -> None:
    """Keeps the labels of channels. Padding at the sides of channels, whose size the code writes, stays whole."""
    x, sides = args[:2]
    dims = list(trace.dims(x))
    for axis in range(x.dim()):
        low, high = sides[2 * (x.dim() - 1 - axis) :][:2] or (0, 0)
        if low == high == 0 or dims[axis] is None:  # a side may be padded and the other cut by as much
            continue
        if min(low, high) < 0 or func._schema.name != "aten::constant_pad_nd":
            trace.labels.freeze(dims[axis], "it is padded")
            dims[axis] = None
        else:
            ends = [trace.labels.fresh(side) for side in (low, high)]
            for end in ends:
                trace.labels.freeze(end, "it is padding of a fixed size")
            dims[axis] = np.concatenate([ends[0], dims[axis], ends[1]])
    trace.set(out, dims)
    emitted = trace.emitted_maps(x)
    if emitted is not None and emitted[0] > 0 and all(x.shape[axis] == out.shape[axis] for axis in (0, emitted[0])):
        trace.set_emitted(out, emitted[0], func(emitted[1], *args[1:], **kwargs))


@rule("roll")
def roll(trace, func, args, kwargs, out) -> None:
    x = args[0]
    dims = list(trace.dims(x))
    axes = args[2] if len(args) > 2 else range(x.dim())
    for axis in [axes] if isinstance(axes, int) else axes:
        trace.labels.freeze(dims[axis], "roll changes its order")
    trace.set(out, dims)


@rule("flip")
def flip(trace, func, args, kwargs, out) -> None:
    """Reverses the labels: the channels that are left are reversed too."""
    dims = list(trace.dims(args[0]))
    for axis in args[1]:
        dims[axis] = None if dims[axis] is None else np.ascontiguousarray(dims[axis][::-1])
    trace.set(out, dims)
