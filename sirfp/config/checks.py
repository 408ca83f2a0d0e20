"""Checks of a config before anything is built: ranges, names, options of the criterion, the order of hooks."""

from __future__ import annotations

import math

from detectron2.config import CfgNode

from ..budget.evidence import WIDTHS, check_widths
from ..budget.limits import Limits, check_share
from ..budget.target import Target
from ..criteria.options import Within
from ..errors import InputError
from ..network.elsewhere import check_available
from .options import check_options
from .unused import check_used
from .values import check_proposals, check_values


def validate(cfg: CfgNode) -> None:
    """Checks everything in a config that can be checked before anything is built.

    Raises:
        InputError: a value is out of its range; the message names the key, the value and the allowed values.
    """
    check_values(cfg)
    check_proposals(cfg)
    ours = cfg.SIRFP
    target = Target.from_config(cfg)
    check_share("SIRFP.MIN_KEEP", ours.MIN_KEEP, zero=True)
    Limits.from_config(cfg)
    check_available(ours.TRIAL_DEVICE or None, "SIRFP.TRIAL_DEVICE")
    for least, keys in (
        (1, ("STEPS", "ROUND_TO", "ACCUMULATE_PERIOD")),
        (0, ("MAX_NONFINITE", "CURVE_IMAGES", "SEED")),
        (0, ("ACCUMULATE_ITERS", "RECOVER_ITERS", "RECONSTRUCTION_ITERS")),
        (0, ("LR_FACTOR", "WEIGHT_DECAY_FACTOR")),
    ):
        for key in keys:
            if ours[key] < least:
                raise InputError(f"SIRFP.{key} must be at least {least}, got {ours[key]}")
    for key, value in ours.SPARSITY.items():
        if value < 0:
            raise InputError(f"SIRFP.SPARSITY.{key} must be at least 0, got {value}")
    for name in {"SlimmingPenalty", "GroupRegularization"} & set(ours.HOOKS):
        if "Accumulate" in ours.HOOKS and ours.HOOKS.index("Accumulate") > ours.HOOKS.index(name):
            raise InputError(f"SIRFP.HOOKS: Accumulate must come before {name}, whose penalty is not part of the loss")
    check_options(cfg)
    if (target.share < 1 or ours.KEEP) and "PruneSteps" not in ours.HOOKS:
        key = f"KEEP_{target.name.upper()} {target.share}" if target.share < 1 else "KEEP"
        raise InputError(
            f"SIRFP.{key} requires pruning, but SIRFP.HOOKS lacks PruneSteps; "
            "the usual hooks are ['Accumulate', 'Report', 'PruneSteps', 'Recover']"
        )
    if {"Report", "PruneSteps"} <= set(ours.HOOKS) and ours.HOOKS.index("Report") > ours.HOOKS.index("PruneSteps"):
        raise InputError("SIRFP.HOOKS: Report must come before PruneSteps, because Report evaluates the dense network")
    _check_teacher(cfg)
    check_used(cfg)
    check_widths(ours.WIDTHS or WIDTHS[0], "SIRFP.WIDTHS")
    sides = cfg.INPUT.MIN_SIZE_TRAIN
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range" and len(sides) != 2:
        raise InputError(
            "INPUT.MIN_SIZE_TRAIN must be the least and the largest side, as MIN_SIZE_TRAIN_SAMPLING is 'range'; got "
            f"{tuple(sides)}" + (f", write ({sides[0]}, {sides[0]})" if len(sides) == 1 else "")
        )
    for key in ("MAX_ITER", "IMS_PER_BATCH"):
        if cfg.SOLVER[key] < 1:
            raise InputError(f"SOLVER.{key} must be at least 1, got {cfg.SOLVER[key]}")
    if cfg.SOLVER.KEEP_CHECKPOINTS < 0:
        raise InputError(f"SOLVER.KEEP_CHECKPOINTS must be at least 0, got {cfg.SOLVER.KEEP_CHECKPOINTS}")
    if cfg.SOLVER.BASE_LR <= 0:
        raise InputError(f"SOLVER.BASE_LR must be positive, got {cfg.SOLVER.BASE_LR}")


def _check_teacher(cfg: CfgNode) -> None:
    teacher = cfg.MODEL.TEACHER
    Within(0, math.inf, "[)").check(teacher.WEIGHT, "MODEL.TEACHER.WEIGHT")
    Within(0, math.inf, "()").check(teacher.TEMPERATURE, "MODEL.TEACHER.TEMPERATURE")
    if teacher.WEIGHT and not teacher.WEIGHTS and "PruneSteps" not in cfg.SIRFP.HOOKS:
        raise InputError(
            "MODEL.TEACHER.WEIGHT: the teacher is the network before the first cut, but SIRFP.HOOKS lacks PruneSteps; "
            "name the teacher's file in MODEL.TEACHER.WEIGHTS, or set the weight to 0"
        )
