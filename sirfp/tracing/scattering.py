"""Rules for operations that add or write rows at given indices, as message passing and mixtures of experts do."""

from __future__ import annotations

import torch

from .table import rule


@rule("index_add", "index_add_", "index_copy", "index_copy_", "index_reduce", "index_reduce_")
def index_add(trace, func, args, kwargs, out) -> None:
    """(..., n, ...) and rows (..., m, ...) for an index (m,): ties the other dimensions of both."""
    x, axis, index, rows = args[:4]
    _into(trace, x, axis % max(1, x.dim()), rows, out)
    trace.freeze_tensors([index], "it is an index")


@rule("scatter", "scatter_", "scatter_add", "scatter_add_", "scatter_reduce", "scatter_reduce_")
def scatter(trace, func, args, kwargs, out) -> None:
    """The same for an index with a value for each entry, which is mostly that of the row, expanded."""
    x, axis, index, rows = args[:4]
    axis %= max(1, x.dim())
    _into(trace, x, axis, rows, out)
    trace.freeze_tensors([index], "it is an index")
    for i, labels in enumerate(trace.dims(out)):
        if i == axis or labels is None:
            continue
        if index.shape[i] == len(labels):
            trace.note_broadcast(index, i, labels)
        else:
            trace.labels.freeze(labels, "an index of another size is for a part of it")


def _into(trace, x, axis: int, rows, out) -> None:
    """Gives the result labels; a tensor without labels, such as zeros, takes those of the rows."""
    trace.labels.freeze(trace.dim(x, axis), "it is indexed")
    dims, fresh = list(trace.dims(x)), x not in trace._dims
    if isinstance(rows, torch.Tensor) and rows.dim() == x.dim():
        trace.labels.freeze(trace.dim(rows, axis), "it is indexed")
        for i, labels in enumerate(trace.dims(rows)):
            if i == axis or (labels is None and dims[i] is None):
                continue
            if fresh and rows.shape[i] == x.shape[i]:
                dims[i] = labels
            else:
                dims[i] = trace.labels.tie(dims[i], labels, "a fixed size is added to it")
    dims[axis] = None
    if fresh:
        trace.set(x, dims)
    trace.set(out, dims)
