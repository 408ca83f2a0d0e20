"""Local search for set-wise redundancy: exchanges a kept atom for a removed one as long as this lessens the error.

Elimination one by one (`sirfp.redundancy.elimination`) never takes a removal back. With the matrices and the error `e`
of that module, and `P = [H^-1]_RR^-1` for all removed channels `R`, the exchange of every removed atom for every kept
one is judged at once: putting the atom `r` back saves

    tr(P_rr^-1 [P W' G W P]_rr) / 2,

and what the removal of another atom adds then follows from an update of the matrices of rank |r|.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from .elimination import Reader

LEAST = 1e-3
"""The search ends when the best exchange lessens the error by less than this share."""
MOST = 256
"""Maximum number of exchanges in a group."""
ELEMENTS = 2**24
"""Maximum number of elements of a table of blocks; larger ones are made in parts."""


def exchange(readers: Sequence[Reader], kept: torch.Tensor, most: int = MOST) -> torch.Tensor:
    """Improves a choice of atoms by exchanges of one atom for another, each time the best one.

    Args:
        readers: the layers that read the atoms; at least one.
        kept: the atoms that stay, (k,) of int64.
        most: the maximum number of exchanges.

    Returns:
        The atoms that stay, (k,) of int64, ascending.
    """
    stays = torch.zeros(len(readers[0].channels), dtype=torch.bool, device=readers[0].inverse.device)
    stays[kept.to(stays.device)] = True
    for _ in range(most):
        inside, outside = stays.nonzero().flatten(), (~stays).nonzero().flatten()
        if not len(inside) or not len(outside):
            break
        judged = [_judge(reader, inside, outside) for reader in readers]
        change = torch.stack([each for _, each in judged]).sum(0)
        best = int(change.argmin())
        if float(change.flatten()[best]) >= -LEAST * sum(error for error, _ in judged):
            break
        stays[inside[best // len(outside)]] = False
        stays[outside[best % len(outside)]] = True
    return stays.nonzero().flatten().to(kept.device)


def _judge(reader: Reader, inside: torch.Tensor, outside: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Returns a reader's error, and how each exchange changes it.

    Args:
        reader: the reader.
        inside, outside: the atoms that are kept, (k,), and removed, (r,).

    Returns:
        The error, and its changes, (k, r).
    """
    channels, width = reader.channels, reader.channels.shape[1]
    removed = channels[outside].flatten()
    a, m = reader.inverse[:, removed], reader.effect[:, removed]
    inverted = torch.linalg.inv(a[removed])
    between = m[removed]
    u = a @ inverted  # (I, R): what the kept inputs give to predict the removed ones
    z = m @ inverted - u @ (between @ inverted)
    s = inverted @ between @ inverted
    rows, columns = channels[inside][:, :, None], channels[inside][:, None, :]
    at = channels[inside]
    a_blocks = reader.inverse[rows, columns] - u[at] @ a[at].mT
    cross = u[at] @ m[at].mT
    m_blocks = reader.effect[rows, columns] - cross - cross.mT + u[at] @ between @ u[at].mT
    error = float((inverted * between).sum()) / 2
    parts = []
    for part in _parts(len(outside), len(inside) * width * width):
        index = torch.arange(len(removed), device=removed.device).reshape(-1, width)[part]  # (r, width)
        p, s_own = inverted[index[:, :, None], index[:, None, :]], s[index[:, :, None], index[:, None, :]]
        gain = torch.linalg.solve(p, s_own)  # P_rr^-1 s_rr
        u_part, z_part = (x[at][:, :, index].permute(0, 2, 1, 3) for x in (u, z))  # (k, r, width, width)
        weighed = torch.linalg.solve(p, u_part.mT)  # P_rr^-1 u'
        mixed = z_part @ weighed
        new_m = m_blocks[:, None] + mixed + mixed.mT + weighed.mT @ s_own @ weighed
        new_a = a_blocks[:, None] + u_part @ weighed
        added = torch.linalg.solve(new_a, new_m).diagonal(dim1=-2, dim2=-1).sum(-1) / 2
        parts.append(added - gain.diagonal(dim1=1, dim2=2).sum(1) / 2)
    return error, torch.cat(parts, 1)


def _parts(count: int, elements: int) -> Iterator[slice]:
    """Divides a number of atoms into parts whose tables, of so many elements for each atom, are not too large."""
    step = max(1, ELEMENTS // elements)
    return (slice(start, start + step) for start in range(0, count, step))
