"""Settings of a config that have no effect beside its other settings.

A setting that only makes sense with another one is refused where its command-line flag and its Python argument are
(`SIRFP.LATENCY_RUNTIME`), and where the run would fail later. Others stand in recipes that several configs share; they
are named in the log.
"""

from __future__ import annotations

import logging

from detectron2.config import CfgNode

from ..budget.evidence import CURVES
from ..budget.target import Latency, Target
from ..criteria import CRITERIA
from ..errors import InputError

SCHEDULE = "PhasedPolyLR"
"""The learning-rate schedule that knows of prunings."""

logger = logging.getLogger(__name__)


def check_used(cfg: CfgNode) -> None:
    """Checks settings that need another one.

    Raises:
        InputError: a runtime is to time a budget of latency, but there is another budget; or nothing takes the
            statistics that the criterion needs.
    """
    ours, target = cfg.SIRFP, Target.from_config(cfg)
    prunes = "PruneSteps" in ours.HOOKS and (target.share < 1 or ours.KEEP)
    if prunes and ours.LATENCY_RUNTIME != "pytorch" and not isinstance(target, Latency):
        raise InputError(
            f"SIRFP.LATENCY_RUNTIME {ours.LATENCY_RUNTIME} is to time a budget of latency, but no such budget is "
            "given: give SIRFP.KEEP_LATENCY, or leave it out"
        )
    criterion = CRITERIA.find(ours.CRITERION, "SIRFP.CRITERION")
    if prunes and criterion.needs in ("features", "gradients") and "Accumulate" not in ours.HOOKS:
        raise InputError(
            f"criterion {criterion.name!r} needs {criterion.needs} of training iterations, but SIRFP.HOOKS lacks "
            "Accumulate, which takes them; put it first"
        )


def unused(cfg: CfgNode) -> list[str]:
    """Returns a sentence for each setting that the config changes and that has no effect; the config must be valid."""
    ours, hooks = cfg.SIRFP, cfg.SIRFP.HOOKS
    found = []
    if "PruneSteps" in hooks and Target.from_config(cfg).share >= 1 and not ours.KEEP:
        found.append(
            "SIRFP.HOOKS has PruneSteps, but nothing is pruned: SIRFP.KEEP_FLOPS, KEEP_PARAMS and KEEP_LATENCY are 1"
        )
    widths = ours.WIDTHS or CRITERIA.find(ours.CRITERION).widths
    if ours.CURVE_IMAGES and widths != CURVES:
        found.append(f"SIRFP.CURVE_IMAGES {ours.CURVE_IMAGES} is not used: a {widths} decides the widths, not curves")
    for key in ("LR_FACTOR", "WEIGHT_DECAY_FACTOR"):
        if ours[key] != 1 and cfg.SOLVER.LR_SCHEDULER_NAME != SCHEDULE:
            name = cfg.SOLVER.LR_SCHEDULER_NAME
            found.append(f"SIRFP.{key} {ours[key]} is not used: SOLVER.LR_SCHEDULER_NAME is {name}, not {SCHEDULE}")
    if ours.RECOVER_NORM_ITERS and "Recover" not in hooks:
        found.append(f"SIRFP.RECOVER_NORM_ITERS {ours.RECOVER_NORM_ITERS} is not used: SIRFP.HOOKS lacks Recover")
    if ours.METRICS and "Report" not in hooks:
        found.append("SIRFP.METRICS is not used: SIRFP.HOOKS lacks Report")
    if cfg.MODEL.TEACHER.WEIGHTS and not cfg.MODEL.TEACHER.WEIGHT:
        found.append("MODEL.TEACHER.WEIGHTS is not used: MODEL.TEACHER.WEIGHT is 0, so that there is no teacher")
    return found


def warn_of_unused(cfg: CfgNode) -> None:
    """Logs a warning for each setting of a training run that has no effect."""
    for text in unused(cfg):
        logger.warning(text)
