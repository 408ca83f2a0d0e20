"""Set-wise redundancy: eliminates channels one by one, first the one that the remaining ones replace best.

Pairwise redundancy asks how well one other channel repeats a channel. A layer that reads a group sees all channels
together: what matters is how well *all remaining channels* predict the removed one, after the layer is refitted to
them. With `H` the covariance of a reader's input plus a ridge, `W` the reader's weights and `G` the covariance of the
divergence's gradient at its output, removing the input channels `S` of an atom adds

    e = tr([H^-1]_SS^-1 (W' G W)_SS) / 2

to the divergence, to second order, if the reader is refitted. This is the Optimal Brain Surgeon of Hassibi and Stork
(Second order derivatives for network pruning, NIPS 1992) for whole input channels. Each elimination then updates

    W <- W - W_S [H^-1]_SS^-1 [H^-1]_S   and   H^-1 <- H^-1 - [H^-1]_:S [H^-1]_SS^-1 [H^-1]_S:.

ZipLM (Kurtic, Frantar and Alistarh, NeurIPS 2023) prunes structures of a single layer in this way, with G the identity.
Here the errors of all readers of a group are added, so that residual streams and shared heads are treated as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

BLOCK = 64
"""Number of eliminations between two updates of the whole matrices. In between, updates are kept as factors, and only
the columns that are needed are computed. It changes the time, not the result."""
COMPACT = 0.1
"""The matrices are made smaller once this share of their rows belongs to eliminated atoms: an elimination of all atoms
then takes a third of the time."""


@dataclass
class Reader:
    """One layer that reads the channels of a group, as matrices over its input channels.

    Attributes:
        inverse: the inverse of the covariance of the input plus a ridge, (I, I) in float64.
        effect: `W' G W`, the weights between the covariance of the gradient at the output, (I, I) in float64. The
            products of a kernel's taps are added.
        channels: the input channels of each atom, (atoms, channels per atom).
    """

    inverse: torch.Tensor
    effect: torch.Tensor
    channels: torch.Tensor


def eliminate(readers: Sequence[Reader], size: int, fewest: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Eliminates atoms until `fewest` are left, each time the one whose removal adds the least error.

    Args:
        readers: the layers that read the atoms; at least one.
        size: the number of atoms.
        fewest: the number of atoms to leave; these end the order by their error at that time.

    Returns:
        The atoms from first to last removed, (size,) of int64, and the error that each removal adds, (size,) in
        float64, in the order of removal.
    """
    states = [_State(reader) for reader in readers]
    device = readers[0].inverse.device
    left = torch.ones(size, dtype=torch.bool, device=device)
    order, errors = [], []
    for _ in range(size - min(max(fewest, 1), size)):
        error = torch.where(left, _errors(states), torch.inf)
        atom = int(error.argmin())
        order.append(atom)
        errors.append(float(error[atom]))
        left[atom] = False
        for state in states:
            state.remove(atom)
    rest = torch.where(left, _errors(states), torch.inf).sort()
    order += rest.indices[: size - len(order)].tolist()
    errors += rest.values[: size - len(errors)].tolist()
    return torch.tensor(order), torch.tensor(errors, dtype=torch.float64)


def _errors(states: Sequence[_State]) -> torch.Tensor:
    return torch.stack([state.errors() for state in states]).sum(0)


class _State:
    """The matrices of one reader during the elimination: A = H^-1 and M = W' G W, with updates pending as factors.

    The present matrices are `A - U U'` and `M - P V' - V P'`. The diagonal blocks of all atoms are always up to date.
    """

    def __init__(self, reader: Reader):
        self.a, self.m, self.channels = reader.inverse.clone(), reader.effect.clone(), reader.channels
        self.width = reader.channels.shape[1]
        self.gone = torch.zeros(len(self.a), dtype=torch.bool, device=self.a.device)
        self._start()

    def _start(self) -> None:
        self.pending = 0
        self.u, self.p, self.v = (self.a.new_empty(len(self.a), BLOCK * self.width) for _ in range(3))
        rows, columns = self.channels[:, :, None], self.channels[:, None, :]
        self.a_blocks, self.m_blocks = self.a[rows, columns], self.m[rows, columns]

    def errors(self) -> torch.Tensor:
        """Returns the error that the removal of each atom adds, (atoms,); of no meaning for removed atoms."""
        if self.width == 1:
            return self.m_blocks[:, 0, 0] / self.a_blocks[:, 0, 0] / 2
        solved, _ = torch.linalg.solve_ex(self.a_blocks, self.m_blocks)
        return solved.diagonal(dim1=1, dim2=2).sum(1) / 2

    def remove(self, atom: int) -> None:
        """Updates the matrices for the removal of an atom."""
        s, u, p, v = self.channels[atom], *(factor[:, : self.pending] for factor in (self.u, self.p, self.v))
        a = self.a[s].T - u @ u[s].T  # the matrices are symmetric, and their rows lie together in memory
        m = self.m[s].T - p @ v[s].T - v @ p[s].T
        new = slice(self.pending, self.pending + self.width)
        if self.width == 1:
            self.u[:, new], self.v[:, new] = a / a[s].sqrt(), a / a[s]
        else:
            root = torch.linalg.cholesky(a[s])
            self.u[:, new] = torch.linalg.solve_triangular(root, a.T, upper=False).T
            self.v[:, new] = torch.cholesky_solve(a.T, root).T
        self.p[:, new] = m - self.v[:, new] @ m[s] / 2
        self.pending += self.width
        self.gone[s] = True
        if self.pending == self.u.shape[1]:
            self._update()
            self._start()
        else:
            u, p, v = (factor[self.channels, new] for factor in (self.u, self.p, self.v))
            self.a_blocks -= u @ u.mT if self.width > 1 else u.square()
            if self.width > 1:
                cross = p @ v.mT
                self.m_blocks -= cross + cross.mT
            else:
                self.m_blocks -= 2 * p * v

    def _update(self) -> None:
        """Applies the pending updates to the matrices, and drops the rows of eliminated atoms if there are many."""
        a, m, u, p, v = self.a, self.m, self.u, self.p, self.v
        if self.gone.sum() > COMPACT * len(self.gone):
            left = (~self.gone).nonzero().flatten()
            a, m = a[left][:, left], m[left][:, left]
            u, p, v = (factor[left] for factor in (u, p, v))
            places = torch.zeros_like(self.gone, dtype=torch.long)  # those of eliminated atoms have no meaning
            places[left] = torch.arange(len(left), device=left.device)
            self.channels, self.gone = places[self.channels], self.gone[left]
        a -= u @ u.T
        cross = p @ v.T
        m -= cross
        m -= cross.T
        self.a, self.m = a, m
