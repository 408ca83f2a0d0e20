"""Selects the channels to keep as a maximum edge weight clique: by a greedy, a local and an exact search.

Section "Efficient heuristic greedy pruning" (Algorithm 1, EHGP) of Wu et al., Structural Pruning via Spatial-aware
Information Redundancy for Semantic Segmentation, AAAI 2025. A layer is a complete graph. The edge weight `a_ij` is the
greater, the more channels i and j differ. The problem is to find, among all sets S of a given size, the set with the
greatest

    value(S) = sum over pairs i < j in S of a_ij + sum over i in S of v_i

The vertex weights `v` (0 in the paper) add a channel's own importance. The diagonal of the matrix is ignored; to count
it as the reference code does, pass `vertex_weights=edge_weights.diagonal()`.

Matrices may be on any device. Each call copies its matrix to the CPU once and sums there in float64.
"""

from __future__ import annotations

import numpy as np
import torch

from .relaxation import branch, shares

EXACT_LIMIT = 32
"""Maximum number of vertices that `exact` accepts. The limit was chosen because the search takes exponential time in
the worst case. docs/greedy_gap.md compares `greedy` with the optimum up to this size and with local searches above it.
"""

_BLOCK = 1 << 17  # weights rounded per block: limits each temporary copy to 1 MiB of float64


def greedy(
    edge_weights: torch.Tensor, remove: int | None = None, vertex_weights: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """EHGP (Algorithm 1): repeatedly removes the vertex with the smallest sum of weights to the remaining vertices.

    Takes O(C^2) for the sums and O(C) for each removal. Of equal sums, the one with the lowest index is removed first,
    on every machine: weights are rounded to a grid on which float64 sums are exact. The grid is as fine as float64
    resolves the greatest sum.

    Args:
        edge_weights: `(C, C)`, symmetric and finite. The diagonal is ignored.
        remove: number of vertices to remove, in [0, C]. By default all are removed, so that every vertex has a score.
        vertex_weights: `(C,)`, added to the sums.

    Returns:
        order: `(remove,)` int64, the vertices in the order of removal.
        score: `(remove,)` float64, `s_i = v_i + sum_j a_ij` over the remaining j at the removal of vertex i =
            `order[t]`. If all vertices are removed, the last score is the vertex weight alone.

    Raises:
        ValueError: the weights are not square, symmetric and finite, or `remove` is out of range.

    Example:
        >>> order, score = greedy(-torch.tensor([[0, 3, 1], [3, 0, 2], [1, 2, 0.]]))
        >>> order.tolist(), score.tolist()
        ([1, 0, 2], [-5.0, -1.0, 0.0])
    """
    a = _matrix(edge_weights)
    size = len(a)
    remove = size if remove is None else remove
    if not 0 <= remove <= size:
        raise ValueError(f"remove must lie in [0, {size}], got {remove}")
    v = _vertices(vertex_weights, size)
    rounder = _rounder(a, v)
    s = _sums(a, rounder) + (v + rounder - rounder)
    order, score, row = np.empty(remove, np.int64), np.empty(remove, np.float64), np.empty(size)
    for t in range(remove):
        i = s.argmin()
        order[t], score[t] = i, s[i]
        np.add(a[i], rounder, out=row)
        row -= rounder
        s -= row
        s[i] = np.inf
    device = edge_weights.device
    return torch.from_numpy(order).to(device), torch.from_numpy(score).to(device)


def value(edge_weights: torch.Tensor, kept: torch.Tensor, vertex_weights: torch.Tensor | None = None) -> float:
    """Returns the value of a set: the sum of the weights of its pairs, each counted once, and of its vertices.

    Args:
        edge_weights: `(C, C)`, symmetric and finite. The diagonal is ignored.
        kept: `(k,)` integers, distinct, in any order.
        vertex_weights: `(C,)`.

    Raises:
        ValueError: see `greedy`; or `kept` has a repeated index or one out of range.
    """
    a = _matrix(edge_weights)
    return _value(a, _vertices(vertex_weights, len(a)), _kept(kept, len(a)))


def local_search(
    edge_weights: torch.Tensor,
    kept: torch.Tensor,
    vertex_weights: torch.Tensor | None = None,
    max_swaps: int | None = None,
) -> tuple[torch.Tensor, float]:
    """Improves a set by swaps of one vertex inside for one outside: makes the best swap until no swap improves the set.

    Each swap takes O(k (C - k)). The result is never worse than the start. Of equal swaps, the one with the lowest
    leaving vertex is made, then the one with the lowest entering vertex.

    Args:
        edge_weights: `(C, C)`, symmetric and finite. The diagonal is ignored.
        kept: the start, `(k,)` integers, for example the vertices that `greedy` does not remove.
        vertex_weights: `(C,)`.
        max_swaps: maximum number of swaps; no limit by default.

    Returns:
        The vertices kept, `(k,)` int64 and ascending, and their value.

    Raises:
        ValueError: see `value`.
    """
    a = _matrix(edge_weights)
    v = _vertices(vertex_weights, len(a))
    inside = _local_search(a, v, _kept(kept, len(a)), max_swaps)
    return torch.from_numpy(inside).to(edge_weights.device), _value(a, v, inside)


def exact(
    edge_weights: torch.Tensor, keep: int, vertex_weights: torch.Tensor | None = None
) -> tuple[torch.Tensor, float]:
    """Finds the set of `keep` vertices with the greatest value, by branch and bound, for small C.

    Nodes are bounded as in `bound`, but the weights are split only once, at the root. The same input always gives the
    same set.

    Args:
        edge_weights: `(C, C)`, symmetric and finite, C at most `EXACT_LIMIT`. The diagonal is ignored.
        keep: the size of the set, in [1, C].
        vertex_weights: `(C,)`.

    Returns:
        The vertices kept, `(keep,)` int64 and ascending, and their value.

    Raises:
        ValueError: see `greedy`; or C is above the limit, or `keep` is out of range.
    """
    a = _matrix(edge_weights).astype(np.float64)
    size = len(a)
    if size > EXACT_LIMIT:
        raise ValueError(f"exact takes at most {EXACT_LIMIT} vertices, got {size}; use greedy and local_search")
    _check_keep(keep, size)
    np.fill_diagonal(a, 0)
    v = _vertices(vertex_weights, size)
    order = greedy(torch.from_numpy(a), None, torch.from_numpy(v))[0].numpy()
    start = _local_search(a, v, np.sort(order[size - keep :]), None)
    # Branch first on the vertices that greedy removes last: they are most likely in the best set.
    branching = order[::-1].copy()
    found = branch(a[branching[:, None], branching], v[branching], keep, _value(a, v, start))
    best = start if found is None else np.sort(branching[found])
    return torch.from_numpy(best).to(edge_weights.device), _value(a, v, best)


def bound(edge_weights: torch.Tensor, keep: int, vertex_weights: torch.Tensor | None = None, steps: int = 400) -> float:
    """Returns an upper bound on the value of every set of `keep` vertices, for any C.

    The bound minus the value of `greedy`'s set is the largest possible distance of `greedy` from the optimum. The bound
    is the Lagrangian dual of Gilmore and Lawler's bound (see `sirfp.clique.relaxation`); each step takes O(C^2 log C).

    Args:
        edge_weights: `(C, C)`, symmetric and finite. The diagonal is ignored.
        keep: the size of the set, in [1, C].
        vertex_weights: `(C,)`.
        steps: number of steps of the subgradient method; more steps give a lower, tighter bound.

    Raises:
        ValueError: see `greedy`; or `keep` is out of range.
    """
    a = _matrix(edge_weights).astype(np.float64)
    _check_keep(keep, len(a))
    np.fill_diagonal(a, 0)
    v = _vertices(vertex_weights, len(a))
    order = greedy(torch.from_numpy(a), None, torch.from_numpy(v))[0].numpy()
    start = _local_search(a, v, np.sort(order[len(a) - keep :]), None)
    return shares(a, v, keep, _value(a, v, start), steps)[1]


def _check_keep(keep: int, size: int) -> None:
    if not 1 <= keep <= size:
        raise ValueError(f"keep must lie in [1, {size}], got {keep}")


def _local_search(a: np.ndarray, v: np.ndarray, inside: np.ndarray, max_swaps: int | None) -> np.ndarray:
    outside = np.setdiff1d(np.arange(len(a)), inside)
    if not len(inside) or not len(outside):
        return inside
    gain = v + a[:, inside].sum(1, dtype=np.float64)
    gain[inside] -= a.diagonal()[inside]
    # Minimum gain of a swap: without it, rounding errors could swap the same vertices back and forth forever.
    least = 1e-12 * (np.abs(gain).max() + np.abs(a).max() * len(a))
    between = a[inside[:, None], outside].astype(np.float64)
    delta = np.empty_like(between)
    swaps = 0
    while max_swaps is None or swaps < max_swaps:
        np.subtract(gain[outside], between, out=delta)
        delta -= gain[inside][:, None]
        i, j = divmod(int(delta.argmax()), len(outside))
        if delta[i, j] <= least:
            break
        leaves, enters = inside[i], outside[j]
        for vertex, sign in ((leaves, -1.0), (enters, 1.0)):
            row = sign * a[vertex].astype(np.float64)
            row[vertex] = 0
            gain += row
        inside[i], outside[j] = enters, leaves
        between[i], between[:, j] = a[enters, outside], a[inside, leaves]
        swaps += 1
    return np.sort(inside)


def _value(a: np.ndarray, v: np.ndarray, inside: np.ndarray) -> float:
    part = a[inside[:, None], inside].astype(np.float64)
    return float((part.sum() - np.trace(part)) / 2 + v[inside].sum())


def _rounder(a: np.ndarray, v: np.ndarray) -> np.float64:
    """Returns a number r for which `(weight + r) - r` rounds a weight to a grid with exact row sums."""
    most = len(a) * np.abs(a).max(initial=0) + np.abs(v).max(initial=0)
    return np.float64(1.5 * 2.0 ** (52 + np.frexp(np.float64(most))[1] - 50))


def _sums(a: np.ndarray, rounder: np.float64) -> np.ndarray:
    """Returns the sum of each row of the rounded weights, without the diagonal."""
    rows = max(1, _BLOCK // max(1, len(a)))
    sums = [(a[i : i + rows] + rounder - rounder).sum(1) for i in range(0, len(a), rows)]
    return np.concatenate([np.zeros(0), *sums]) - (a.diagonal() + rounder - rounder)


def _matrix(edge_weights: torch.Tensor) -> np.ndarray:
    """Checks the weights and returns them as a contiguous float32 or float64 array."""
    if edge_weights.ndim != 2 or edge_weights.shape[0] != edge_weights.shape[1]:
        raise ValueError(f"edge_weights must be square, (C, C), got shape {tuple(edge_weights.shape)}")
    dtype = torch.float64 if edge_weights.dtype == torch.float64 else torch.float32
    a = edge_weights.detach().to("cpu", dtype).contiguous().numpy()
    if not a.size:
        return a
    low, high = float(a.min()), float(a.max())
    if not np.isfinite(low) or not np.isfinite(high):
        raise ValueError(f"edge_weights must be finite, got values from {low} to {high}")
    # Multiply the matrix and its transpose by a random vector: equal products mean that the matrix is symmetric. This
    # is much cheaper than a comparison of all entries.
    most = max(abs(low), abs(high))
    probe = torch.randn(len(a), dtype=dtype, generator=torch.Generator().manual_seed(0))
    tensor = torch.from_numpy(a)
    if (tensor @ probe - tensor.t() @ probe).abs().max() > 1e-5 * len(a) ** 0.5 * most:
        apart = np.abs(a - a.T)
        row, column = np.unravel_index(apart.argmax(), apart.shape)
        if apart[row, column] > 1e-4 * most:
            raise ValueError(
                f"edge_weights must be symmetric, but [{row}, {column}] and its mirror image are "
                f"{a[row, column]:.6g} and {a[column, row]:.6g}"
            )
    return a


def _vertices(vertex_weights: torch.Tensor | None, size: int) -> np.ndarray:
    if vertex_weights is None:
        return np.zeros(size)
    if vertex_weights.shape != (size,):
        raise ValueError(f"vertex_weights must have shape ({size},), got {tuple(vertex_weights.shape)}")
    v = vertex_weights.detach().to("cpu", torch.float64).numpy()
    if not np.isfinite(v).all():
        raise ValueError("vertex_weights must be finite")
    return v


def _kept(kept: torch.Tensor, size: int) -> np.ndarray:
    inside = np.sort(torch.as_tensor(kept, dtype=torch.int64, device="cpu").numpy())
    if inside.ndim != 1 or len(np.unique(inside)) != len(inside):
        raise ValueError(f"kept must be a list of distinct vertices, got {inside.tolist()}")
    if len(inside) and (inside[0] < 0 or inside[-1] >= size):
        raise ValueError(f"kept must lie in [0, {size}), got {inside[0]} to {inside[-1]}")
    return inside
