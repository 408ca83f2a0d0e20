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

from .symmetric import COLUMNS, copy_below

BLOCK = 64
"""Number of eliminations between two updates of the whole matrices. In between, updates are kept as factors, and only
the rows that are needed are computed. It changes the time, not the result."""
COMPACT = 0.02
"""The matrices are made smaller once this share of their rows belongs to eliminated atoms: an elimination of all atoms
then takes a third of the time."""
STRIP = 128
"""Number of rows that are updated at once, up to their diagonal block, in matrices of more than `COLUMNS` rows."""


@dataclass
class Reader:
    """One layer that reads the channels of a group, as matrices over its input channels; or several with one inverse.

    Errors are linear in the effect, so layers that read the same input count as one reader with the sum of their
    effects.

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
    stacks = [_Stack(same) for same in _by_width(readers)]
    device = readers[0].inverse.device
    steps = size - min(max(fewest, 1), size)
    atoms = torch.arange(size, device=device)  # those that the matrices still hold
    order, places = torch.empty_like(atoms), torch.empty_like(atoms)
    errors = torch.empty(size, dtype=torch.float64, device=device)
    since = 0  # the number of eliminations before the matrices were last made smaller
    for step in range(steps):
        error = _errors(stacks).index_fill_(0, places[since:step], torch.inf)
        torch.min(error, 0, out=(errors[step], places[step]))  # on the device: nothing waits for the result
        for stack in stacks:
            stack.remove(places[step : step + 1])
        done = step + 1
        if done % BLOCK == 0 or done == steps:
            order[since:done] = atoms[places[since:done]]
            for stack in stacks:
                stack.update()
            if done - since > COMPACT * len(atoms):
                holes, fill = _moves(places[since:done], len(atoms))
                count, since = len(atoms) - (done - since), done
                atoms[holes] = atoms[fill]
                atoms = atoms[:count]
                for stack in stacks:
                    stack.shrink(holes, fill, count)
    rest = _errors(stacks).index_fill_(0, places[since:steps], torch.inf).sort()
    order[steps:] = atoms[rest.indices[: size - steps]]
    errors[steps:] = rest.values[: size - steps]
    return order.cpu(), errors.cpu()


def _by_width(readers: Sequence[Reader]) -> list[list[Reader]]:
    """Sorts readers by their number of channels per atom."""
    return [[r for r in readers if r.channels.shape[1] == width] for width in {r.channels.shape[1] for r in readers}]


def _moves(gone: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the places to fill, and those at the end that fill them, so that the eliminated ones come last."""
    stays = torch.ones(size, dtype=torch.bool, device=gone.device).index_fill_(0, gone, False)
    count = size - len(gone)
    return (~stays[:count]).nonzero().flatten(), stays[count:].nonzero().flatten() + count


def _errors(stacks: Sequence[_Stack]) -> torch.Tensor:
    """Returns the error that the removal of each atom adds, (atoms,), over all readers."""
    first, *others = (stack.errors() for stack in stacks)
    for other in others:
        first += other
    return first


class _Stack:
    """The matrices of readers of equal width during the elimination: A = H^-1 and M = W' G W, with pending updates.

    Only the channels of the group are held, in the order of its atoms: others change nothing. The present matrices are
    `A - V' F` and `M - V' P - P' V`, for the rows F, P and V of the pending eliminations. The diagonal blocks of
    all atoms are always up to date, except for eliminated ones, which have no meaning.

    Args:
        readers: readers of the same atoms, with equal numbers of channels per atom.
    """

    def __init__(self, readers: Sequence[Reader]):
        self.width = readers[0].channels.shape[1]
        self.within = torch.arange(self.width, device=readers[0].channels.device)
        orders = [reader.channels.flatten() for reader in readers]
        size = len(orders[0])
        self.lower = size > COLUMNS  # only the strips of rows up to their diagonal blocks are held
        self.both = readers[0].inverse.new_empty(len(readers), 2, size, size)  # A and M
        for both, reader, order in zip(self.both, readers, orders, strict=True):
            for matrix, given in zip(both, (reader.inverse, reader.effect), strict=True):
                _copy_strips(matrix, given if _is_all(order, given) else given[order][:, order], self.lower)
        self._start()

    def _start(self) -> None:
        count, _, size, _ = self.both.shape
        self.pending = 0
        self.rows = self.both.new_empty(count, 3, BLOCK * self.width, size)  # F, P and V
        places = torch.arange(size, device=self.both.device).view(-1, self.width)
        self.blocks = self.both[:, :, places[:, :, None], places[:, None, :]]  # (readers, 2, atoms, width, width)
        if self.lower and self.width > 1:
            self.blocks = self.blocks.tril() + self.blocks.tril(-1).mT

    def errors(self) -> torch.Tensor:
        """Returns the error that the removal of each atom adds, (atoms,); of no meaning for removed atoms."""
        a, m = self.blocks.unbind(1)
        if self.width == 1:
            return (m / a).sum(0).flatten().div_(2)
        solved, _ = torch.linalg.solve_ex(a, m)
        return solved.diagonal(dim1=2, dim2=3).sum((0, 2)).div_(2)

    def remove(self, atom: torch.Tensor) -> None:
        """Records the removal of an atom, (1,): its place in the matrices."""
        old, new = slice(self.pending), slice(self.pending, self.pending + self.width)
        self.pending = new.stop
        s = atom if self.width == 1 else atom * self.width + self.within
        rows = self._rows(s)
        f, p = rows.unbind(1)
        if new.start:
            known = self.rows[:, :, old]
            at = known.index_select(3, s).mT
            # As V' F is symmetric, the rows of A take V as those of M do: it is read once for both.
            rows.flatten(1, 2).baddbmm_(at[:, :2].flatten(1, 2), known[:, 2], alpha=-1)
            p.baddbmm_(at[:, 2], known[:, 1], alpha=-1)
        v = self.rows[:, 2, new]
        a, m = self.blocks.index_select(2, atom)[:, :, 0].unbind(1)
        a_blocks, m_blocks = self.blocks.unbind(1)
        if self.width == 1:
            torch.div(f, a, out=v)
            p.addcmul_(v, m, value=-0.5)
            a_blocks[:, :, 0, 0].addcmul_(f[:, 0], v[:, 0], value=-1)
            m_blocks[:, :, 0, 0].addcmul_(p[:, 0], v[:, 0], value=-2)
        else:
            v.copy_(torch.linalg.solve_ex(a, f).result)
            p.baddbmm_(m, v, alpha=-0.5)
            f_parts, p_parts, v_parts = (x.unflatten(2, (-1, self.width)).transpose(1, 2) for x in (f, p, v))
            a_blocks -= v_parts.mT @ f_parts
            cross = v_parts.mT @ p_parts
            m_blocks -= cross + cross.mT
        self.rows[:, :2, new] = rows

    def _rows(self, s: torch.Tensor) -> torch.Tensor:
        """Returns rows of the matrices without the pending updates, (readers, 2, rows, columns)."""
        rows = self.both.index_select(2, s)
        if not self.lower:
            return rows
        if s.device.type == "cpu":  # a column costs as many accesses to memory as it has elements
            first = int(s[0])
            held = (first // STRIP + 1) * STRIP
            rows[..., held:] = self.both[:, :, held:, first : first + self.width].mT
            return rows
        columns = torch.arange(rows.shape[3], device=s.device)
        return torch.where(columns <= s[:, None], rows, self.both.index_select(3, s).mT)

    def update(self) -> None:
        """Applies the pending updates to the matrices."""
        step = STRIP if self.lower else self.both.shape[3]
        for (a, m), (f, p, v) in zip(self.both, self.rows[:, :, : self.pending], strict=True):
            left, right = torch.cat([v, p]), torch.cat([p, v])
            for start in range(0, len(a), step):
                strip, columns = slice(start, start + step), slice(start + step)
                a[strip, columns].addmm_(v[:, strip].T, f[:, columns], alpha=-1)
                m[strip, columns].addmm_(left[:, strip].T, right[:, columns], alpha=-1)
        self._start()

    def shrink(self, holes: torch.Tensor, fill: torch.Tensor, count: int) -> None:
        """Moves atoms from the end to the places of eliminated ones and drops the end.

        Args:
            holes, fill: places of atoms (`_moves`).
            count: the number of atoms that are left.
        """
        to, source = ((places[:, None] * self.width + self.within).flatten() for places in (holes, fill))
        size = count * self.width
        moved = self.both.index_select(2, source)
        inner = moved.index_select(3, source)
        moved = moved[..., :size]
        if self.lower:
            inner = inner.tril() + inner.tril(-1).mT
        moved[..., to] = inner
        self.both = self.both[:, :, :size, :size]
        self.both[:, :, to] = moved
        step = STRIP if self.lower else size
        for start in range(0, size, step):
            inside = ((to >= start) & (to < start + step)).nonzero().flatten()
            self.both[:, :, start:, to[inside]] = moved[:, :, inside, start:].mT
        if self.lower and size <= COLUMNS:
            self.both = self.both.contiguous()
            copy_below(self.both, STRIP)
            self.lower = False
        self._start()


def _is_all(order: torch.Tensor, matrix: torch.Tensor) -> bool:
    """True if an order of a matrix's rows is that of the matrix itself."""
    return len(order) == len(matrix) and torch.equal(order, torch.arange(len(order), device=order.device))


def _copy_strips(to: torch.Tensor, matrix: torch.Tensor, lower: bool) -> None:
    """Copies a matrix; if `lower`, only the strips of its rows up to their diagonal blocks."""
    step = STRIP if lower else len(matrix)
    for start in range(0, len(matrix), step):
        strip, columns = slice(start, start + step), slice(start + step)
        to[strip, columns] = matrix[strip, columns]
