"""Measures how far rounding errors alone move a network's outputs.

Some networks magnify rounding errors: deformable convolutions with large offsets, deep networks without norms,
attention over large scores. Their pruned and their masked network compute the same numbers in another order, and then
differ by more than the usual tolerance, although the cut is right.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import nn

from ..network.untouched import copied_model
from ..structure.plan import PruningPlan
from .proof import EQUAL, Difference

logger = logging.getLogger(__name__)

DRAWS = 2
"""Number of times that the weights are changed; the largest effect counts."""
MARGIN = 2
"""Differences up to this many times the effect of changed weights are explained by rounding. The two orders of
summation are only one sample of the errors, and so is each draw."""
LARGEST = 0.01
"""Relative difference above which nothing is explained, and effect above which it explains nothing: a network that
rounding errors change by more cannot be verified."""


class Compared(Protocol):
    """Compares a masked model with another one, such as `sirfp.verify.compare`."""

    def __call__(
        self, a: nn.Module, b: nn.Module, inputs: Any, plan: PruningPlan, *, masked: bool = False
    ) -> Difference:
        """Returns how far the outputs differ; `masked` says that `b` is a masked model too."""


@dataclass(frozen=True)
class Judgement:
    """Whether a pruned model equals its masked model up to rounding errors.

    Attributes:
        equal: True if every output does.
        difference: the difference, of the output that decides: the largest one that nothing explains, else the largest.
        effect: the relative difference that rounding errors alone make in that output; None if it is unknown, or if the
            difference needs no explanation.
    """

    equal: bool
    difference: Difference
    effect: float | None = None


def judge(
    masked: nn.Module, pruned: nn.Module, inputs: Any, plan: PruningPlan, compared: Compared, tolerance: float = EQUAL
) -> Judgement:
    """Compares a pruned model with its masked model, and explains what differs more than the tolerance.

    Args:
        masked: the masked dense model.
        pruned: the pruned model.
        inputs: inputs of both.
        plan: the plan.
        compared: the comparison.
        tolerance: relative differences up to it need no explanation.
    """
    found = compared(masked, pruned, inputs, plan)
    if found.problem:
        return Judgement(False, found)
    if found.relative <= tolerance:
        return Judgement(True, found)
    effects = rounding_of_each(masked, inputs, plan, compared)
    odd = unexplained(found, effects, tolerance)
    decides = replace(found, relative=found.each[odd], where=odd) if odd else found
    return Judgement(not odd, decides, effects.get(decides.where))


def rounding(masked: nn.Module, inputs: Any, plan: PruningPlan, compared: Compared) -> float:
    """Returns the largest relative difference of any output, see `rounding_of_each`; infinity if it is unknown."""
    return max(rounding_of_each(masked, inputs, plan, compared).values(), default=float("inf"))


def rounding_of_each(masked: nn.Module, inputs: Any, plan: PruningPlan, compared: Compared) -> dict[str, float]:
    """Measures the relative differences that changes of all weights by a few units in the last place make.

    Args:
        masked: the masked dense model; it is not changed.
        inputs: its inputs.
        plan: the plan whose removed channels are zeroed.
        compared: the comparison in which the pruned model was found to differ.

    Returns:
        {path of an output: the largest difference}; empty if the model cannot be copied, or if the changes change the
        number or the shapes of the outputs, so that they say nothing of the values.
    """
    found: dict[str, float] = {}
    for seed in range(DRAWS):
        try:
            shaken = copied_model(masked)
        except Exception as error:  # the model may hold a lock or an open file
            logger.debug("the model cannot be copied: %s", error)
            return {}
        shake(shaken, seed)
        difference = compared(masked, shaken, inputs, plan, masked=True)
        if difference.problem:
            return {}
        for path, relative in difference.each.items():
            found[path] = max(relative, found.get(path, 0.0))
    return found


def is_rounding(difference: float, effect: float) -> bool:
    """True if a relative difference is explained by the effect of rounding errors (`rounding`)."""
    return effect <= LARGEST and difference <= min(MARGIN * effect, LARGEST)


def unexplained(found: Difference, effects: Mapping[str, float], tolerance: float) -> str:
    """Returns the output that differs most of those whose own rounding errors do not explain it; "" if there is none.

    Args:
        found: the differences of a pruned model.
        effects: the effects of rounding errors (`rounding_of_each`).
        tolerance: differences up to it need no explanation.
    """
    wrong = [
        (math.isnan(relative), relative, path)
        for path, relative in found.each.items()
        if not (relative <= tolerance or is_rounding(relative, effects.get(path, float("inf"))))
    ]
    return max(wrong, default=(False, 0.0, ""))[-1]


@torch.no_grad()
def shake(model: nn.Module, seed: int = 0) -> None:
    """Changes all weights of a model by a few units in the last place, in place.

    Args:
        model: the model.
        seed: chooses the changes.
    """
    generator = torch.Generator().manual_seed(seed)
    for tensor in model.parameters():
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator).to(tensor)
            tensor.mul_(1 + 8 * torch.finfo(tensor.dtype).eps * noise)
