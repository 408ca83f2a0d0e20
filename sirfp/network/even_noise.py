"""Draws one random number for all elements of a tensor, so that two runs of other widths get the same noise."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

FREE = 8
"""Every FREE-th number lies anywhere between 0 and 1, so that code that draws until a number fits comes to an end."""


class EvenNoise(TorchDispatchMode):
    """Fills, while active, each tensor of random numbers with a single one.

    The numbers depend on how many were drawn before, and on no size. Noise of a cut network and of the masked network
    is thus the same for all channels that both have. The numbers lie in the middle of their distribution, so that a
    dropout of at most half of the values drops none: a network that drops all shows nothing.

    Random permutations and integers stay as they are, and so do numbers that are not PyTorch's.
    """

    def __init__(self) -> None:
        super().__init__()
        self._numbers, self._drawn = random.Random(0), 0

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # see `ChannelTrace`

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        schema = getattr(func, "_schema", None)  # None for operations that run functions, such as `flex_attention`
        value_of = _VALUES.get(schema.name.removeprefix("aten::")) if schema else None
        if value_of is None or not isinstance(out, torch.Tensor):
            return out
        given = dict(zip([a.name for a in func._schema.arguments], args)) | kwargs  # noqa: B905
        return out.copy_(torch.as_tensor(value_of(self._number(), given)))

    def _number(self) -> float:
        """Returns the next number of the uniform distribution."""
        self._drawn += 1
        return self._numbers.random() if self._drawn % FREE == 0 else self._numbers.uniform(0.5, 0.75)


def _normal(u: float, given: dict[str, Any]) -> float:
    """Returns the quantile of a normal distribution, by the logistic distribution, which is close to it."""
    return given.get("mean", 0.0) + given.get("std", 1.0) * math.log(u / (1 - u)) / 1.7


def _bernoulli(u: float, p: Any) -> Any:
    """Returns whether a probability exceeds 1 - u, for a number or a tensor of probabilities."""
    return 1 - u < p


_VALUES: dict[str, Callable[[float, dict[str, Any]], Any]] = {
    "rand": lambda u, given: u,
    "rand_like": lambda u, given: u,
    "uniform_": lambda u, given: given.get("from", 0.0) + u * (given.get("to", 1.0) - given.get("from", 0.0)),
    "randn": _normal,
    "randn_like": _normal,
    "normal_": _normal,
    "exponential_": lambda u, given: -math.log(1 - u) / given.get("lambd", 1.0),
    "bernoulli": lambda u, given: _bernoulli(u, given.get("p", given["self"])),
    "bernoulli_": lambda u, given: _bernoulli(u, given.get("p", 0.5)),
}
"""{operation: its value for a number of the uniform distribution and the operation's arguments}."""
