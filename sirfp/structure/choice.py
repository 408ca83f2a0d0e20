"""A choice of channels as data: what deciding gives and cutting takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Choice:
    """The atoms that stay, and the budget that they meet.

    Attributes:
        keep: which atoms stay, (atoms,) of bool, in order of the groups.
        budget: (name of the quantity, share of the dense model's that may stay), as the plan records it.
        latency: seconds of one call of the model before the cut and after it, where latency was the budget.
    """

    keep: np.ndarray
    budget: tuple[str, float]
    latency: tuple[float, float] | None = None
