"""Tells how many channels of each side of an operation belong to each atom."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Members:
    """A sparse matrix of sides and atoms.

    SciPy's has more operations than are needed here, and takes a third of a second to import.

    Attributes:
        sides: the number of sides, S.
        atoms: the number of atoms, A.
        rows: the side of each entry, (n,), in ascending order.
        columns: its atom, (n,). Entries of one side and one atom are added.
        numbers: its number of channels, (n,).
    """

    sides: int
    atoms: int
    rows: np.ndarray
    columns: np.ndarray
    numbers: np.ndarray

    def __matmul__(self, kept: np.ndarray) -> np.ndarray:
        """Returns the number of channels of each side, (S,), if a share of each atom is kept, (A,)."""
        sums = np.zeros(self.sides)
        starts, filled = self._runs
        if len(starts):
            sums[filled] = np.add.reduceat(self.numbers * kept[self.columns], starts)
        return sums

    @cached_property
    def _runs(self) -> tuple[np.ndarray, np.ndarray]:
        """The first entry of each side that has entries, and these sides."""
        starts = np.flatnonzero(np.diff(self.rows, prepend=-1))
        return starts, self.rows[starts]

    def of(self, keep: np.ndarray) -> Members:
        """Returns the matrix of the atoms in `keep`, (A,) of bool, alone."""
        place, entries = np.cumsum(keep) - 1, keep[self.columns]
        columns = place[self.columns[entries]]
        return Members(self.sides, int(keep.sum()), self.rows[entries], columns, self.numbers[entries])

    def summed(self, sets: np.ndarray, count: int) -> np.ndarray:
        """Returns the number of channels of each side that belong to each set of atoms, (S, count).

        Args:
            sets: the set of each atom, (A,), from 0 on.
            count: the number of sets.
        """
        cells = self.rows * count + sets[self.columns]
        return np.bincount(cells, weights=self.numbers, minlength=self.sides * count).reshape(self.sides, count)
