"""Powers of a width by which code multiplies a statistic, as `x.shape[1] ** 0.5` in a norm that is written by hand.

A cut network computes `F.normalize(x, dim=1) * x.shape[1] ** 0.5` with the number of channels that are left. This is
the root mean square norm of these channels, as that of `nn.RMSNorm` is. A masked network has all channels, and its code
takes their number. Here such numbers are found, and replaced by those of the kept channels.
"""

from __future__ import annotations

from math import isclose
from typing import Any, NamedTuple

import torch

from ..tracing.codes import by_name
from ..tracing.tensor_table import TensorTable

OF_STATISTIC = {"linalg_vector_norm": -0.5, "norm": -0.5, "sum": -1.0}
"""The power of the width with which a statistic over channels is a mean over them."""
POWERS = {"sqrt": 0.5, "rsqrt": -0.5, "reciprocal": -1.0}
SAME = frozenset(
    ("clamp_min", "clamp", "add", "expand", "view", "unsqueeze", "squeeze", "clone", "alias", "_to_copy", "neg")
)
"""Operations after which a statistic still wants the same power."""


class Factor(NamedTuple):
    """The factor that a tensor wants, a power of a width, because it was computed from a statistic over channels."""

    width: int
    kept: int
    power: float


class KeptWidths:
    """Follows statistics over channels to the numbers that they are multiplied with or divided by.

    Args:
        replace: True to replace the numbers that are powers of the width by those of the kept channels.

    Attributes:
        found: whether there was such a number.
    """

    def __init__(self, replace: bool = False):
        self.replace, self.found = replace, False
        self._factors = TensorTable()

    def fit(self, name: str, args: tuple) -> tuple:
        """Returns the arguments of an operation, with its number replaced if it is the power that a factor wants."""
        if name not in ("mul", "div", "mul_", "div_") or len(args) < 2 or not isinstance(args[1], (int, float)):
            return args
        factor = self._factors.get(args[0])
        power = 0.0 if factor is None else factor.power if name.startswith("mul") else -factor.power
        if factor is None or not isclose(args[1], factor.width**power, rel_tol=1e-9):
            return args
        self.found = True
        return (args[0], factor.kept**power, *args[2:]) if self.replace else args

    def note(self, name: str, args: tuple, out: Any) -> None:
        """Notes what factor the result of an operation other than a statistic wants."""
        if not args or not isinstance(args[0], torch.Tensor) or not isinstance(out, torch.Tensor):
            return
        factor = self._factors.get(args[0])
        if factor is not None and name in SAME:
            self._factors[out] = factor
        elif factor is not None and name in POWERS:
            self._factors[out] = factor._replace(power=factor.power * POWERS[name])
        elif name in ("mul", "div") and len(args) > 1 and isinstance(args[1], torch.Tensor):
            other = self._factors.get(args[1])
            if other is not None:
                other = other._replace(power=other.power if name == "mul" else -other.power)
            if (factor is None) != (other is None):
                self._factors[out] = factor or other

    def note_statistic(self, func: Any, args: tuple, kwargs: dict, kept: list[torch.Tensor | None], out: Any) -> None:
        """Notes what factor a statistic wants, if it runs over one dimension and that loses channels.

        Args:
            func: the operation.
            args: its arguments, the first of them the tensor (..., C, ...).
            kwargs: its keyword arguments.
            kept: the kept indices of each dimension of the tensor; None for all.
            out: its result.
        """
        given = by_name(func, args, kwargs)
        dims = given.get("dim")
        dims = [dims] if isinstance(dims, int) else dims
        power = OF_STATISTIC.get(func._schema.name.removeprefix("aten::"))
        if power is None or dims is None or len(dims) != 1 or given.get("ord", given.get("p", 2)) != 2:
            return
        index = kept[dims[0] % len(kept)]
        if index is not None:
            self._factors[out] = Factor(args[0].shape[dims[0]], len(index), power)
