"""Mean and covariance of rows that come in batches, exact also where the mean is far larger than the deviations.

The products of each batch are taken after the batch's mean is subtracted, and batches are combined by the formula of
Chan, Golub and LeVeque, Algorithms for Computing the Sample Variance, The American Statistician 1983, equation 2.1.
Products of raw values lose the covariance to rounding: in float32 where mean / deviation is above 100, and wherever
there is one row only.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch

from ..redundancy.symmetric import COLUMNS, copy_below

KEPT = 2**27
"""Maximum size of the covariances that are kept, in bytes: eight matrices of 1448 channels."""
_KEPT: dict[int, tuple[weakref.ref[CentredSums], int, torch.Tensor]] = {}


class CentredSums:
    """The number of rows, their mean, and the sum of the products of their deviations from it.

    Args:
        width: the number of values I of a row.
        device: where the sums are kept.

    Attributes:
        rows: the number of rows, a tensor with one value in float64.
        mean: (I,) in float64.
        products: the lower half of the symmetric matrix of products, row by row, (I * (I + 1) / 2,) in float32.
    """

    def __init__(self, width: int, device: torch.device | str | None = None):
        self.rows = torch.zeros((), dtype=torch.float64, device=device)
        self.mean = torch.zeros(width, dtype=torch.float64, device=device)
        self.products = torch.zeros(width * (width + 1) // 2, device=device)

    def add(self, rows: torch.Tensor) -> None:
        """Adds rows, (n, I) in float32. Nothing is added if one of their products is NaN or infinite."""
        count = len(rows)
        if not count:
            return
        centre = rows.mean(0)
        centred = rows.new_empty(count + 1, rows.shape[1])
        torch.sub(rows, centre, out=centred[:-1])
        step = centre.double() + centred[:-1].mean(0) - self.mean  # the second term is what rounding left in the first
        share = count / (self.rows + count)
        centred[-1] = step * (self.rows * share).sqrt()  # one more row: what the move of the mean adds to the products
        product = centred.T @ centred
        finite = product.diagonal().isfinite().all()
        self.products.add_(torch.where(finite, packed(product), 0))
        self.mean.add_(torch.where(finite, step * share, 0))
        self.rows.add_(torch.where(finite, count, 0))

    def joined(self, other: CentredSums) -> CentredSums:
        """Returns the sums over the rows of both."""
        both = CentredSums(len(self.mean), self.mean.device)
        both.rows = self.rows + other.rows
        weight = other.rows / both.rows.clamp_min(1)
        step = other.mean - self.mean
        both.mean = self.mean + weight * step
        both.products = self.products + other.products
        both.products += packed(torch.outer(step, step * (self.rows * weight)).float())
        return both

    def copy_(self, other: CentredSums) -> None:
        """Replaces the sums by those of another object of the same width."""
        self.rows.copy_(other.rows)
        self.mean.copy_(other.mean)
        self.products.copy_(other.products)

    def equal(self, other: CentredSums) -> bool:
        """True if all sums are equal, bit for bit."""
        pairs = (self.rows, other.rows), (self.mean, other.mean), (self.products, other.products)
        return self.mean.device == other.mean.device and all(torch.equal(one, two) for one, two in pairs)

    def reduce(self, add_up: Callable[[torch.Tensor], object]) -> None:
        """Replaces the sums by those of all processes.

        Args:
            add_up: replaces a tensor by its sum over the processes, in place (`torch.distributed.all_reduce`).
        """
        rows, total = self.rows.clone(), self.mean * self.rows
        add_up(self.rows)
        add_up(total)
        mean = total / self.rows.clamp_min(1)
        step = self.mean - mean
        self.products += packed(torch.outer(step, step * rows).float())
        add_up(self.products)
        self.mean = mean

    def covariance(self) -> torch.Tensor:
        """Returns the covariance (I, I) in float64: the mean product of the deviations, zero if there are no rows.

        The last ones that were computed are kept, up to `KEPT` bytes: many cuts of one layer read the same. Do not
        change the result in place.
        """
        known = _KEPT.pop(id(self), None)
        version = int(self.rows)
        if known is None or known[0]() is not self or known[1] != version:
            known = weakref.ref(self), version, unpacked(self.products).div_(self.rows.clamp_min(1))
        _KEPT[id(self)] = known
        while sum(matrix.nbytes for _, _, matrix in _KEPT.values()) > KEPT and len(_KEPT) > 1:
            _KEPT.pop(next(iter(_KEPT)))
        return known[2]


def packed(matrix: torch.Tensor) -> torch.Tensor:
    """Returns the lower half of a symmetric matrix (n, n), row by row: (n * (n + 1) / 2,)."""
    return matrix[torch.ones_like(matrix, dtype=torch.bool).tril()]


def unpacked(half: torch.Tensor) -> torch.Tensor:
    """Returns the symmetric matrix (n, n), in float64, from its packed lower half."""
    size = int((2 * len(half)) ** 0.5)
    matrix = torch.zeros(size, size, dtype=torch.float64, device=half.device)
    matrix.masked_scatter_(torch.ones_like(matrix, dtype=torch.bool).tril_(), half.double())
    for start in range(0, size, COLUMNS):
        block = matrix[start : start + COLUMNS, start : start + COLUMNS]
        block += block.tril(-1).T
    copy_below(matrix, COLUMNS)
    return matrix
