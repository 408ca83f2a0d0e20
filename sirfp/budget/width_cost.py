"""Costs as functions of the groups' widths alone, for searches that try many widths.

All atoms of a group take the same part in the same dimensions of the model, so that their number gives the cost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ..structure.cost import SumOfProducts
from ..structure.groups import ChannelGroups
from ..structure.members import Members

if TYPE_CHECKING:
    from .latency import LatencyTable


@dataclass(frozen=True)
class WidthCost:
    """The sum over lines k of `price_k(prod_j size(side_kj))`, where the size of a side is linear in the widths.

    Attributes:
        sides: the sides of each line as rows of `fixed` and `members`, (K, J).
        fixed: size of each side without the groups, (S,).
        members: how much each atom of a group adds to each side, (S, groups).
        price: the total cost of lines (n,) of int at products of their sides, (n, M) of float to (M,).
    """

    sides: np.ndarray
    fixed: np.ndarray
    members: np.ndarray
    price: Callable[[np.ndarray, np.ndarray], np.ndarray]

    def __call__(self, widths: np.ndarray) -> float:
        """Returns the cost at the groups' widths in atoms, (groups,)."""
        products = _product(self.sizes(widths)[self.sides])
        return float(self.price(self._lines, products[:, None])[0])

    def sizes(self, widths: np.ndarray) -> np.ndarray:
        """Returns the size of each side, (S,), at the groups' widths, (groups,)."""
        return self.fixed + self.members @ widths

    def along(self, sizes: np.ndarray, group: int, steps: np.ndarray) -> np.ndarray:
        """Returns how the cost changes if one group becomes wider or narrower and the rest stays.

        Args:
            sizes: the present size of each side; see `sizes`.
            group: the position of the group.
            steps: numbers of atoms that it gains, negative if it loses atoms, (M,).

        Returns:
            The cost after each step, less the present cost, (M,).
        """
        lines, sides, slopes = self._touched[group]
        present = sizes[sides]
        products = present[:, 0, None] + slopes[:, 0, None] * steps
        for j in range(1, present.shape[1]):
            products *= present[:, j, None] + slopes[:, j, None] * steps
        return self.price(lines, products) - self.price(lines, _product(present)[:, None])

    @cached_property
    def _lines(self) -> np.ndarray:
        return np.arange(len(self.sides))

    @cached_property
    def _touched(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """For each group: the lines that its width changes, (n,), their sides, and what an atom adds to these sides."""
        lines = [np.flatnonzero((self.members[self.sides, g] != 0).any(axis=1)) for g in range(self.members.shape[1])]
        sides = [self.sides[touched] for touched in lines]
        return [(*pair, self.members[pair[1], g]) for g, pair in enumerate(zip(lines, sides, strict=True))]


def _product(sides: np.ndarray) -> np.ndarray:
    """Returns `sides.prod(axis=1)`, which takes NumPy longer for so few columns, (n, J) to (n,)."""
    product = sides[:, 0]
    for column in range(1, sides.shape[1]):
        product = product * sides[:, column]
    return product


def of_products(terms: SumOfProducts, found: ChannelGroups) -> WidthCost:
    """Returns FLOPs or parameters as a function of the widths; terms of the same sides are added."""
    sides, line = np.unique(np.sort(terms.sides, axis=1), axis=0, return_inverse=True)
    factors = np.bincount(line.reshape(-1), weights=terms.factors, minlength=len(sides))
    return WidthCost(sides, terms.fixed, for_each_group(terms.members, found), _Linear(factors))


def of_latencies(table: LatencyTable, found: ChannelGroups) -> WidthCost:
    """Returns the seconds of one call by a table of layers' times as a function of the widths."""
    members = for_each_group(table.members, found)
    fixed = table.sizes - members @ np.array([group.size for group in found], dtype=float)
    one, together = len(fixed) - 1, len(fixed)  # the side of size 1, and a side that is all sides together
    sides = np.vstack([table.layers, [together, one]])
    return WidthCost(
        sides, np.append(fixed, fixed.sum()), np.vstack([members, members.sum(axis=0)]), _Interpolated(table)
    )


def for_each_group(members: Members, found: ChannelGroups) -> np.ndarray:
    """Returns how many channels each atom of a group has in each side, (S, groups), from those of all atoms."""
    sizes = np.array([group.size for group in found], dtype=int)
    return members.summed(np.repeat(np.arange(len(sizes)), sizes), len(sizes)) / sizes


@dataclass(frozen=True)
class _Linear:
    """The price of lines that cost a factor times the product of their sides; factors (K,)."""

    factors: np.ndarray

    def __call__(self, lines: np.ndarray, products: np.ndarray) -> np.ndarray:
        return self.factors[lines] @ products


@dataclass(frozen=True)
class _Interpolated:
    """The price of lines that are the rows of a table of layers' times."""

    table: LatencyTable

    def __call__(self, lines: np.ndarray, products: np.ndarray) -> np.ndarray:
        return self.table.between(lines, products / self._dense[lines, None]).sum(axis=0)

    @cached_property
    def _dense(self) -> np.ndarray:
        return np.append(self.table.sizes[self.table.layers].prod(axis=1), self.table.sizes.sum())
