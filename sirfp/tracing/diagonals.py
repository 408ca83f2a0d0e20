"""Rules for diagonals: a vector as the diagonal of a matrix, such as a learned scale as a kernel, and the reverse."""

from __future__ import annotations

from .table import rule


@rule("diag_embed")
def diag_embed(trace, func, args, kwargs, out) -> None:
    """(..., C) -> (..., C, C): both dimensions of a matrix have the labels of its diagonal."""
    x, defaults = args[0], [0, -2, -1]
    given = list(args[1:]) + defaults[len(args) - 1 :]
    offset, axes = given[0], given[1:]
    *dims, labels = trace.dims(x)
    if offset:
        trace.labels.freeze(labels, "it is a diagonal beside the main one")
        labels = None
    for axis in sorted(axis % out.dim() for axis in axes):
        dims.insert(axis, labels)
    trace.set(out, dims)


@rule("diagonal", "diagonal_copy")
def diagonal(trace, func, args, kwargs, out) -> None:
    """(C, C, ...) -> (..., C): ties rows to columns, index by index."""
    x, defaults = args[0], [0, 0, 1]
    given = list(args[1:]) + defaults[len(args) - 1 :]
    offset, axes = given[0], given[1:]
    axes = [axis % x.dim() for axis in axes]
    rows, columns = (trace.dim(x, axis) for axis in axes)
    if offset or x.shape[axes[0]] != x.shape[axes[1]]:
        for labels in (rows, columns):
            trace.labels.freeze(labels, "its diagonal is taken in a part")
        rows = None
    elif rows is not None or columns is not None:
        rows = trace.labels.tie(rows, columns, "the diagonal of a matrix ties it to a fixed size")
    trace.set(out, [labels for axis, labels in enumerate(trace.dims(x)) if axis not in axes] + [rows])
