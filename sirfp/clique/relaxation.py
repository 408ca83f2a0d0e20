"""Upper bounds on the value of a clique, and a branch and bound search with them; `sirfp.clique` calls them.

The bound splits each pair's weight between its two vertices and lets each vertex choose its best partners on its own.
Subgradient steps choose the split so that the sum over the best vertices is as low as possible: the Lagrangian dual of
Gilmore and Lawler's bound, as in Caprara, Pisinger and Toth, Exact Solution of the Quadratic Knapsack Problem, INFORMS
Journal on Computing, 1999.
"""

from __future__ import annotations

import numpy as np

_BATCH = 1 << 13  # nodes per batch: limits memory; large enough that NumPy's overhead per call is negligible


def branch(a: np.ndarray, v: np.ndarray, keep: int, incumbent: float) -> np.ndarray | None:
    """Finds the set with the greatest value, if it is above the incumbent. Branches on the vertices in their order.

    Args:
        a: weights of the pairs, (C, C), with zeros on the diagonal.
        v: weights of the vertices, (C,).
        keep: the size of the set.
        incumbent: the value of the best known set.

    Returns:
        The vertices of the set, or None if no set is better.
    """
    size = len(a)
    share, _ = shares(a, v, keep, incumbent)
    # partners[t][r, j]: the greatest sum of candidate t + j's shares with r other candidates among t, t + 1, ...
    partners = []
    for t in range(size):
        rest = share[t:, t:].copy()
        np.fill_diagonal(rest, -np.inf)
        best = -np.sort(-rest, axis=1)[:, : size - t - 1]
        partners.append(np.concatenate([np.zeros((size - t, 1)), best.cumsum(1)], axis=1).T.copy())
    slack = 1e-12 * (np.abs(a).sum() + np.abs(v).sum())
    found = None
    # Batches of nodes at the same depth: (number of vertices decided, vertices chosen, gain of each vertex, values).
    stack = [(0, np.zeros((1, size), bool), v[None].copy(), np.zeros(1))]
    while stack:
        t, chosen, gain, worth = stack.pop()
        left = keep - chosen.sum(1)
        done = left == 0
        if done.any():
            top = np.where(done, worth, -np.inf).argmax()
            if worth[top] > incumbent + slack:
                incumbent, found = worth[top], np.flatnonzero(chosen[top])
        live = ~done & (left <= size - t)
        chosen, gain, worth, left = chosen[live], gain[live], worth[live], left[live]
        if not len(left):
            continue
        ranked = -np.sort(-(gain[:, t:] + partners[t][left - 1]), axis=1).cumsum(1)
        bound = worth + ranked[np.arange(len(left)), left - 1]
        live = np.flatnonzero(bound > incumbent + slack)
        for part in np.array_split(live, -(-len(live) // _BATCH) or 1):
            if not len(part):
                continue
            out = (t + 1, chosen[part], gain[part], worth[part])
            took = out[1].copy()
            took[:, t] = True
            stack.append(out)
            stack.append((t + 1, took, out[2] + a[t], out[3] + out[2][:, t]))
    return found


def shares(a: np.ndarray, v: np.ndarray, keep: int, target: float, steps: int = 400) -> tuple[np.ndarray, float]:
    """Splits each pair's weight between its two vertices for the lowest bound, by subgradient steps.

    Args:
        a: weights of the pairs, (C, C), with zeros on the diagonal.
        v: weights of the vertices, (C,).
        keep: the size of the set.
        target: a value that the bound cannot fall below, such as the value of a known set. The steps stop at this
            value.
        steps: maximum number of steps.

    Returns:
        The shares, (C, C), with `share + share.T == a`, and the bound.
    """
    size = len(a)
    share, best, lowest = a / 2, a / 2, np.inf
    rows, pace = np.arange(size)[:, None], 1.0
    for step in range(steps):
        rest = share.copy()
        np.fill_diagonal(rest, -np.inf)
        partners = np.argsort(-rest, axis=1, kind="stable")[:, : keep - 1]
        gain = v + share[rows, partners].sum(1)
        inside = np.argsort(-gain, kind="stable")[:keep]
        bound = gain[inside].sum()
        if bound < lowest:
            best, lowest = share.copy(), bound
        elif step % 20 == 19:
            pace *= 0.8
        counted = np.zeros((size, size))
        counted[inside[:, None], partners[inside]] = 1
        slope = counted - counted.T
        norm = (slope**2).sum() / 2
        if norm == 0 or bound <= target:
            break
        share = share - pace * (bound - target) / norm * slope
    return best, lowest
