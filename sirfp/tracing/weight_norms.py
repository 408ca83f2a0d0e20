"""Rules for weights that are scaled by their own norm: weight norm, and the largest norm of `renorm`."""

from __future__ import annotations

from .codes import by_name
from .table import rule


@rule("_weight_norm_interface")
def weight_norm(trace, func, args, kwargs, out) -> None:
    """Ties the direction v and the length g of a weight, g v / |v|, in the dimension that keeps its lengths.

    The norm runs over all other dimensions of v, in which a masked weight is zero where a cut one is gone, so both have
    the same norm.
    """
    v, g = args[:2]
    dim = args[2] if len(args) > 2 else 0
    dims = list(trace.dims(v))
    dims[dim] = trace.labels.tie(dims[dim], trace.dim(g, dim), "weight norm joins it with a fixed size")
    trace.set(out[0], dims)


@rule("renorm", "renorm_")
def renorm(trace, func, args, kwargs, out) -> None:
    """Keeps all labels: each slice along a dimension is scaled to a norm of at most a limit.

    The norm runs over all other dimensions. A masked weight is zero there, as in weight norm. Removed features need
    not be zero, so those that a norm runs over are marked inexact.
    """
    x = args[0]
    kept = by_name(func, args, kwargs)["dim"] % x.dim()
    for axis, labels in enumerate(trace.dims(x)):
        if axis != kept and not trace.is_state(x):
            trace.labels.mark_inexact(labels, "renorm's norms run over these channels")
    trace.set(out, list(trace.dims(x)))


@rule("embedding_renorm_")
def embedding_renorm(trace, func, args, kwargs, out) -> None:
    """Keeps all labels of a table of which it scales some rows in place, as `renorm` does."""
    trace.set(out, list(trace.dims(args[0])))
