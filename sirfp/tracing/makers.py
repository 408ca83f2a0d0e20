"""Operations whose results hold none of the channels of their inputs."""

from __future__ import annotations

UNLABELLED = frozenset(
    f"aten::{name}"
    for name in [
        "new_zeros",
        "new_ones",
        "new_empty",
        "new_full",
        "new_empty_strided",
        "size",
        "sym_size",
        "stride",
        "storage_offset",
        "_local_scalar_dense",
        "is_same_size",
        "equal",
        "allclose",
        "numel",
        "_linalg_check_errors",
    ]
)
"""Operations that read a shape, a single value, a report of errors or nothing of their inputs."""
MADE = frozenset(f"aten::{new}{name}" for new in ("", "new_") for name in ("zeros", "ones", "full"))
"""Operations that make a tensor of one value and of a given shape."""
REMADE = frozenset(
    f"aten::{name}" for name in ("unsqueeze", "zeros_like", "ones_like", "full_like", "clone", "_to_copy")
)
"""Operations that make such a tensor of another one."""
FILLING = frozenset(["aten::fill_", "aten::zero_"])
"""Operations that give all of a tensor one value; so do elementwise ones with numbers."""
