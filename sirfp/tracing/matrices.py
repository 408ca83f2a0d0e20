"""Rules for operations on the matrices in the last two dimensions: triangles, inverses and decompositions."""

from __future__ import annotations

import torch

from .table import rule


@rule(
    "tril", "tril_", "triu", "triu_", "linalg_inv_ex", "linalg_cholesky_ex", "linalg_matrix_exp", "linalg_qr",
    "_linalg_svd", "_linalg_eigh", "_linalg_det", "_linalg_slogdet", "linalg_lu_factor_ex", "linalg_pinv",
)  # fmt: skip
def matrices(trace, func, args, kwargs, out) -> None:
    """(..., n, m): keeps the labels of the dimensions before the matrix, and freezes its rows and columns."""
    dims = trace.dims(args[0])
    for labels in dims[-2:]:
        trace.labels.freeze(labels, f"{func._schema.name} works on matrices of these channels")
    for result in out if isinstance(out, (tuple, list)) else [out]:
        if isinstance(result, torch.Tensor) and result.dim() >= len(dims) - 2:
            trace.set(result, [*dims[:-2], *[None] * (result.dim() - len(dims) + 2)])
