"""The budgets that a user can give: of FLOPs, parameters or measured latency, shares of the dense model's.

`Target.of` and `Target.from_config` make them. The classes are defined in `kinds`, `counted` and `timed`.
"""

from .counted import Flops, Params
from .kinds import TARGETS, ChooseWidths, Target
from .timed import Latency

__all__ = ["KEEP_FLOPS", "TARGETS", "ChooseWidths", "Flops", "Latency", "Params", "Target"]

KEEP_FLOPS = 0.4
"""The share of the FLOPs that `sirfp.prune` and `sirfp prune` keep if no budget is given; the paper removes 60%."""
