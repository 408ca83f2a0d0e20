"""Computes FLOPs and parameters of any choice of channels from one trace, without running the model again.

The FLOPs of an operation are a constant times the sizes of its dimensions that shrink with channels (`factor * kept in
* kept out`). The same holds for a parameter's number of elements. The cost of any plan is therefore a sum of products:
exact, and fast enough to search for a budget.

The operations counted are those that `fvcore.nn.FlopCountAnalysis` counts, with one FLOP per multiply-add. In addition,
fused attention of PyTorch, which fvcore does not count, is counted as its two matrix products.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

import numpy as np

from ..tracing import Product
from .members import Members


@dataclass(frozen=True)
class SumOfProducts:
    """The sum over terms k of `factor_k * prod_j size(side_kj)`, where `size(side)` is its number of kept channels.

    Attributes:
        factors: the factor of each term, (K,).
        sides: the sides of each term as rows of `fixed` and `members`, (K, J); row 0 is the constant 1.
        fixed: number of channels of each side that cannot be removed, (S,).
        members: number of channels of each side that belong to each atom, (S, atoms).
        ops: the operation of each term.
    """

    factors: np.ndarray
    sides: np.ndarray
    fixed: np.ndarray
    members: Members
    ops: tuple[str, ...]

    @staticmethod
    def build(terms: Iterable[tuple[str, float, list[np.ndarray]]], atoms: int) -> SumOfProducts:
        """Builds the sum from terms (op, factor, sides); a side lists each channel's atom, -1 if it is frozen."""
        known: dict[bytes, int] = {}
        fixed, rows, columns = [1.0], [], []
        ops, factors, sides = [], [], []
        for op, factor, given in terms:
            row = []
            for side in given:
                key = side.tobytes()
                if key not in known:
                    known[key] = len(fixed)
                    fixed.append(float((side < 0).sum()))
                    columns.append(side[side >= 0])
                    rows.append(np.full(len(columns[-1]), known[key]))
                row.append(known[key])
            ops.append(op)
            factors.append(factor)
            sides.append(row)
        width = max((len(row) for row in sides), default=1)
        table = np.zeros((len(sides), max(1, width)), dtype=np.int64)
        for k, row in enumerate(sides):
            table[k, : len(row)] = row
        row_index = np.concatenate(rows) if rows else np.zeros(0, np.int64)
        column_index = np.concatenate(columns) if columns else np.zeros(0, np.int64)
        members = Members(len(fixed), atoms, row_index, column_index, np.ones(len(row_index)))
        return SumOfProducts(np.array(factors, dtype=float), table, np.array(fixed), members, tuple(ops))

    def fix_others(self, keep: np.ndarray) -> SumOfProducts:
        """Returns the sum in which only the atoms in `keep`, (atoms,) of bool, can still be removed."""
        gone = self.members @ (~keep).astype(float)
        return SumOfProducts(self.factors, self.sides, self.fixed + gone, self.members.of(keep), self.ops)

    def value(self, keep: np.ndarray) -> float:
        """Returns the sum if the atoms in `keep`, (atoms,) of bool, are kept."""
        return float(self.terms(keep).sum())

    def terms(self, keep: np.ndarray) -> np.ndarray:
        """Returns each term, (K,), if the atoms in `keep`, (atoms,) of bool, are kept."""
        sizes = self.fixed + self.members @ np.asarray(keep, dtype=float)
        return self.factors * sizes[self.sides].prod(axis=1)


@dataclass(frozen=True)
class Cost:
    """The cost of a model as a function of the atoms kept."""

    operations: SumOfProducts
    parameters: SumOfProducts
    atoms: int

    @staticmethod
    def build(
        products: Iterable[Product],
        parameters: Iterable[tuple],
        atom_of: np.ndarray,
        component: np.ndarray,
        atoms: int,
    ) -> Cost:
        """Builds the cost from the operations and parameters of a trace.

        Args:
            products: operations with label arrays.
            parameters: (parameter, label arrays of its dimensions).
            atom_of: the atom of each component, -1 if it is frozen.
            component: the component of each label.
            atoms: the number of atoms.
        """

        def terms():
            for product in products:
                yield product.op, product.factor, [atom_of[component[side]] for side in product.sides]

        def sizes():
            for tensor, dims in parameters:
                sides = [atom_of[component[d]] for d in dims if d is not None]
                fixed = prod(n for n, d in zip(tensor.shape, dims, strict=True) if d is None)
                yield "parameters", float(fixed), sides

        return Cost(SumOfProducts.build(terms(), atoms), SumOfProducts.build(sizes(), atoms), atoms)

    def restricted_to(self, keep: np.ndarray) -> Cost:
        """Returns the cost in which only the atoms in `keep`, (atoms,) of bool, can still be removed."""
        return Cost(self.operations.fix_others(keep), self.parameters.fix_others(keep), int(keep.sum()))

    def flops(self, keep: np.ndarray | None = None) -> int:
        """Returns the multiply-adds of one call with the example inputs if the atoms in `keep` are kept (None: all)."""
        return round(self.operations.value(self._all(keep)))

    def params(self, keep: np.ndarray | None = None) -> int:
        """Returns the number of parameters (not buffers) if the atoms in `keep` are kept (None: all)."""
        return round(self.parameters.value(self._all(keep)))

    def _all(self, keep: np.ndarray | None) -> np.ndarray:
        return np.ones(self.atoms, dtype=bool) if keep is None else keep
