"""A choice of channels as plain data: the output of `decide`, the input of `cut_to`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Choice:
    """The atoms to keep, and the budget that they meet.

    Attributes:
        keep: True for atoms to keep, (atoms,) of bool, in the order of the groups.
        budget: (name of the quantity, share of the dense model's quantity that may stay), as recorded in the plan; None
            if only widths of single layers were given.
        latency: seconds of one call (before the cut, after the cut), if latency is the budget; else None.
    """

    keep: np.ndarray
    budget: tuple[str, float] | None = None
    latency: tuple[float, float] | None = None
