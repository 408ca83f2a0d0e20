"""Measures, before a budget is chosen, what a model loses if single groups of channels get narrower.

The curves are those from which `sirfp.prune` chooses widths (docs/method.md, section 7).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from .budget.curve_store import CurveStore
from .budget.curves import LEVELS
from .budget.evidence import CURVES, Evidence
from .budget.limits import Limits, check_count
from .budget.sensitivity import Sensitivity
from .criteria.calibration import Loss
from .errors import InputError
from .network.batches import Run
from .network.outputs import Outputs, only, with_everything
from .network.untouched import leave_inference, outside_inference_mode
from .network.wrappers import on_plain_model
from .session import PruningSession
from .surgery.earlier_cuts import earlier_plan
from .surgery.reconstruction import BATCHES

__all__ = ["sensitivity"]


@outside_inference_mode()
@on_plain_model
def sensitivity(
    model: nn.Module,
    example_inputs: Any,
    criterion: str | None = None,
    calibration: Iterable[Any] | None = None,
    *,
    levels: Sequence[float] = LEVELS,
    loss: Loss | None = None,
    forward: Run | None = None,
    reconstruction: int = BATCHES,
    divergence: Callable[[Any, Any], torch.Tensor] | None = None,
    outputs: Outputs | None = None,
    ignore: Iterable[str] = Limits.ignore,
    round_to: int = Limits.round_to,
    seed: int = 0,
    min_keep: float = Limits.min_keep,
    cache: str | os.PathLike[str] | None = None,
    **options: Any,
) -> tuple[Sensitivity, ...]:
    """Measures the loss curve of each group of channels. The model is not changed.

    Args:
        levels: shares of the channels that a group has now, in (0, 1), at which its curve is measured.
        criterion: as in `sirfp.prune`; decides which channels are removed first.
        model, example_inputs, calibration, loss, forward, divergence, outputs, ignore, round_to, seed, min_keep,
            options: as in `sirfp.prune`.
        reconstruction: the number of calibration batches for refits and curves; a quarter of their images is held out
            for the curves. 0: no refit.
        cache: a JSON file that keeps the curves of finished groups, so that an interrupted measurement of the same
            network on the same images goes on with the others, and a repeated one measures nothing; or None.

    Returns:
        The sensitivity of each group, in the order of the model.

    Raises:
        InputError: as `sirfp.prune`; there are fewer than two images; a level is out of range; the cache is another
            file, or is given together with a divergence, whose code it does not know.
    """
    levels = check_levels(levels)
    check_count("reconstruction", reconstruction, 0)
    if cache is not None and divergence is not None:
        raise InputError("a cache does not know the code of a divergence of your own: leave out cache or divergence")
    leave_inference(model)
    store = None if cache is None else CurveStore(cache)
    loss = with_everything(loss)
    with only(model, outputs):
        session = PruningSession(
            model, example_inputs,
            criterion=criterion, options=options, limits=Limits((), min_keep, round_to, ignore), seed=seed,
        )  # fmt: skip
        session.plan = earlier_plan(model)
        evidence = Evidence.of_calibration(
            model, example_inputs, session.criterion, calibration, CURVES, reconstruction or BATCHES,
            loss=loss, forward=forward, divergence=divergence,
        )  # fmt: skip
        evidence.levels, evidence.store = levels, store
        return session.measure(evidence, refit=reconstruction > 0)


def check_levels(levels: Sequence[float], called: str = "levels") -> tuple[float, ...]:
    """Returns levels from the largest to the smallest, each once.

    Raises:
        InputError: there is none, or one is not in (0, 1); the message calls the setting `called`.
    """
    wrong = [level for level in levels if not 0 < level < 1]
    if wrong or not levels:
        given = f"got {wrong[0]:g}" if wrong else "none is given"
        raise InputError(f"{called} must be shares of the channels kept, above 0 and below 1; {given}")
    return tuple(sorted(set(levels), reverse=True))
