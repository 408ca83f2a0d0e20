"""Symmetric matrices of which only the blocks of columns from the diagonal down are computed."""

from __future__ import annotations

import torch

COLUMNS = 512
"""Number of columns that are computed or copied at once; larger blocks do not fit into caches."""


def copy_below(matrix: torch.Tensor, columns: int) -> None:
    """Copies what lies below the diagonal blocks of so many columns to above them, in place, (..., n, n)."""
    for start in range(0, matrix.shape[-1], columns):
        block, rest = slice(start, start + columns), slice(start + columns, None)
        matrix[..., block, rest] = matrix[..., rest, block].mT
