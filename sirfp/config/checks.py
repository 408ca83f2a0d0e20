"""What a config must be before anything is built: ranges, names, and the order of hooks."""

from __future__ import annotations

from detectron2.config import CfgNode

from ..budget.target import Target
from ..errors import InputError, near
from .values import check_proposals, check_values


def validate(cfg: CfgNode) -> None:
    """Checks what can be checked before anything is built.

    Raises:
        InputError: a value is out of its range; names the key, the value and what would be right.
    """
    check_values(cfg)
    check_proposals(cfg)
    ours = cfg.SIRFP
    target = Target.from_config(cfg)
    between(ours.EMA, "SIRFP.EMA", 0, 1, "[)")
    between(ours.MIN_KEEP, "SIRFP.MIN_KEEP", 0, 1, "[]")
    for least, keys in (
        (1, ("STEPS", "ROUND_TO", "ACCUMULATE_PERIOD", "ACCUMULATE_STRIDE")),
        (0, ("MAX_NONFINITE",)),
        (0, ("ACCUMULATE_ITERS", "RECOVER_ITERS", "RECONSTRUCTION_ITERS", "EDGE_WEIGHT")),
        (0, ("IMPORTANCE_WEIGHT", "COST_EXPONENT")),
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
            raise InputError(f"SIRFP.HOOKS: Accumulate must stand before {name}, whose penalty is not of the loss")
    _check_criterion(ours.CRITERION)
    kinds = ("taylor", "dcfp")
    if ours.IMPORTANCE not in kinds:
        hint = near(ours.IMPORTANCE, kinds)
        raise InputError(f"SIRFP.IMPORTANCE must be taylor or dcfp, got {ours.IMPORTANCE!r}{hint}")
    if target.share < 1 and "PruneSteps" not in ours.HOOKS:
        raise InputError(
            f"SIRFP.KEEP_{target.name.upper()} {target.share} asks for pruning, but SIRFP.HOOKS lacks PruneSteps; "
            "the usual hooks are ['Accumulate', 'Report', 'PruneSteps', 'Recover']"
        )
    if {"Report", "PruneSteps"} <= set(ours.HOOKS) and ours.HOOKS.index("Report") > ours.HOOKS.index("PruneSteps"):
        raise InputError("SIRFP.HOOKS: Report must stand before PruneSteps, since it looks at the dense network")
    for key in ("MAX_ITER", "IMS_PER_BATCH"):
        if cfg.SOLVER[key] < 1:
            raise InputError(f"SOLVER.{key} must be at least 1, got {cfg.SOLVER[key]}")
    if cfg.SOLVER.BASE_LR <= 0:
        raise InputError(f"SOLVER.BASE_LR must be positive, got {cfg.SOLVER.BASE_LR}")


def _check_criterion(name: str) -> None:
    from ..criteria import CRITERIA

    CRITERIA.find(name, "SIRFP.CRITERION")


def between(value: float, name: str, low: float, high: float, ends: str) -> None:
    """Raises InputError unless a value lies in an interval; `ends` is "[]", "(]", "[)" or "()"."""
    above = value > low or (value == low and ends[0] == "[")
    below = value < high or (value == high and ends[1] == "]")
    if not (above and below):
        raise InputError(f"{name} must lie in {ends[0]}{low}, {high}{ends[1]}, got {value}")
