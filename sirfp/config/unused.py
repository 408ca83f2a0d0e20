"""Settings of a config that have no effect beside its other settings.

A setting that only makes sense with another one is refused where its command-line flag and its Python argument are
(`SIRFP.LATENCY_RUNTIME`), and where the run would fail later. Others stand in recipes that several configs share; they
are named in the log, if they differ from their defaults.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from itertools import chain
from typing import Any, NamedTuple

from detectron2.config import CfgNode, get_cfg

from ..budget.evidence import CURVES
from ..budget.target import Latency, Target
from ..criteria import CRITERIA
from ..errors import InputError
from .keys import add_sirfp_config
from .projects import add_keys
from .values import leaves

SCHEDULE = "PhasedPolyLR"
"""The learning-rate schedule that knows of prunings."""
POLYNOMIAL = ("WarmupPolyLR", SCHEDULE)
"""The schedules that follow a polynomial of the iteration."""

logger = logging.getLogger(__name__)


class Need(NamedTuple):
    """What keys need to have an effect.

    Attributes:
        keys: full names of keys, or patterns.
        met: returns True if a config has what the keys need.
        why: the reason why they have no effect otherwise; a text, or a function of the config.
    """

    keys: tuple[str, ...]
    met: Callable[[CfgNode], Any]
    why: str | Callable[[CfgNode], str]


def needs_hook(name: str, *keys: str) -> Need:
    """Keys that only a hook reads."""
    return Need(keys, lambda cfg: name in cfg.SIRFP.HOOKS, f"SIRFP.HOOKS lacks {name}")


def prunes(cfg: CfgNode) -> bool:
    """True if a config's run is to remove channels."""
    return "PruneSteps" in cfg.SIRFP.HOOKS and bool(Target.from_config(cfg).share < 1 or cfg.SIRFP.KEEP)


def _widths(cfg: CfgNode) -> str:
    return cfg.SIRFP.WIDTHS or CRITERIA.find(cfg.SIRFP.CRITERION).widths


def _schedule(names: Sequence[str], *keys: str) -> Need:
    return Need(
        keys,
        lambda cfg: cfg.SOLVER.LR_SCHEDULER_NAME in names,
        lambda cfg: f"SOLVER.LR_SCHEDULER_NAME is {cfg.SOLVER.LR_SCHEDULER_NAME}, not {' or '.join(names)}",
    )


def _architecture(names: Sequence[str], *keys: str) -> Need:
    return Need(
        keys,
        lambda cfg: cfg.MODEL.META_ARCHITECTURE in names,
        lambda cfg: f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}, not {' or '.join(names)}",
    )


def _backbone(part: str, *keys: str) -> Need:
    return Need(
        keys,
        lambda cfg: part in cfg.MODEL.BACKBONE.NAME or cfg.PROJECT == "classification",
        lambda cfg: f"MODEL.BACKBONE.NAME is {cfg.MODEL.BACKBONE.NAME}, which has keys of its own",
    )


NEEDS: dict[str, tuple[Need, ...]] = {
    "": (
        Need(("SIRFP.CURVE_IMAGES",), lambda cfg: _widths(cfg) == CURVES,
             lambda cfg: f"a {_widths(cfg)} decides the widths, not curves"),
        _schedule((SCHEDULE,), "SIRFP.LR_FACTOR", "SIRFP.WEIGHT_DECAY_FACTOR"),
        _schedule(POLYNOMIAL, "SOLVER.POLY_LR_POWER"),
        _schedule(POLYNOMIAL[:1], "SOLVER.POLY_LR_CONSTANT_ENDING"),
        needs_hook("Recover", "SIRFP.RECOVER_NORM_ITERS"),
        needs_hook("Report", "SIRFP.METRICS"),
        needs_hook("GroupRegularization", "SIRFP.SPARSITY.GROWTH"),
        Need(("SIRFP.SPARSITY.WEIGHT",), lambda cfg: {"GroupRegularization", "SlimmingPenalty"} & set(cfg.SIRFP.HOOKS),
             "SIRFP.HOOKS has neither SlimmingPenalty nor GroupRegularization"),
        Need(("SIRFP.RECOVER_ITERS",), lambda cfg: cfg.SIRFP.STEPS > 1 or not prunes(cfg),
             "SIRFP.STEPS is 1: there are no iterations between two prunings"),
        Need(("SIRFP.CRITERION", "SIRFP.STEPS", "SIRFP.WIDTHS", "SIRFP.ROUND_TO", "SIRFP.MIN_KEEP", "SIRFP.IGNORE",
              "SIRFP.PARTITIONS", "SIRFP.RECONSTRUCTION_ITERS", "SIRFP.BIAS_CORRECTION", "SIRFP.TRIAL_DEVICE"),
             lambda cfg: "PruneSteps" in cfg.SIRFP.HOOKS, "SIRFP.HOOKS lacks PruneSteps: nothing is pruned"),
        Need(("MODEL.TEACHER.WEIGHTS", "MODEL.TEACHER.TEMPERATURE"), lambda cfg: cfg.MODEL.TEACHER.WEIGHT,
             "MODEL.TEACHER.WEIGHT is 0, so that there is no teacher"),
        _backbone("timm", "MODEL.TIMM.NAME", "MODEL.TIMM.WEIGHTS", "MODEL.TIMM.O*"),  # recipes share NORM
        _backbone("mit", "MODEL.MIT.*"),
        _architecture(("FCOS",), "MODEL.FCOS.*"),
        _architecture(("RetinaNet",), "MODEL.RETINANET.NUM_CLASSES"),
        _architecture(("GeneralizedRCNN", "PanopticFPN"), "MODEL.ROI_HEADS.NUM_CLASSES"),
        Need(("DATASETS.IMAGES.SPLITS",), lambda cfg: cfg.DATASETS.IMAGES.READER, "DATASETS.IMAGES.READER is empty"),
        Need(("INPUT.CROP.SIZE", "INPUT.CROP.TYPE"), lambda cfg: cfg.INPUT.CROP.ENABLED,
             "INPUT.CROP.ENABLED is False"),
    ),
}  # fmt: skip
"""{project: what its keys need}; those of "" hold for every config. Code of a project adds its own."""


def check_used(cfg: CfgNode) -> None:
    """Checks settings that need another one.

    Raises:
        InputError: a runtime is to time a budget of latency, but there is another budget; or nothing takes the
            statistics that the criterion needs.
    """
    ours, target = cfg.SIRFP, Target.from_config(cfg)
    if prunes(cfg) and ours.LATENCY_RUNTIME != "pytorch" and not isinstance(target, Latency):
        raise InputError(
            f"SIRFP.LATENCY_RUNTIME {ours.LATENCY_RUNTIME} is to time a budget of latency, but no such budget is "
            "given: give SIRFP.KEEP_LATENCY, or leave it out"
        )
    criterion = CRITERIA.find(ours.CRITERION, "SIRFP.CRITERION")
    if prunes(cfg) and criterion.needs in ("features", "gradients") and "Accumulate" not in ours.HOOKS:
        raise InputError(
            f"criterion {criterion.name!r} needs {criterion.needs} of training iterations, but SIRFP.HOOKS lacks "
            "Accumulate, which takes them; put it first"
        )


def unused(cfg: CfgNode) -> list[str]:
    """Returns a sentence for each need that is not met of keys that the config changes; the config must be valid."""
    found = []
    if "PruneSteps" in cfg.SIRFP.HOOKS and not prunes(cfg):
        found.append(
            "SIRFP.HOOKS has PruneSteps, but nothing is pruned: SIRFP.KEEP_FLOPS, KEEP_PARAMS and KEEP_LATENCY are 1"
        )
    changed = _changed(cfg)
    for need in chain.from_iterable(NEEDS.get(name, ()) for name in dict.fromkeys(("", cfg.PROJECT))):
        keys = [key for key in changed if any(fnmatchcase(key, pattern) for pattern in need.keys)]
        if keys and not need.met(cfg):
            why = need.why if isinstance(need.why, str) else need.why(cfg)
            named = ", ".join(f"{key} {changed[key]}" for key in keys)
            found.append(f"{named} {'is' if len(keys) == 1 else 'are'} not used: {why}")
    return found


def _changed(cfg: CfgNode) -> dict[str, Any]:
    """The keys whose values are not the defaults of Detectron2, sirfp and the config's project."""
    usual = get_cfg()
    add_sirfp_config(usual)
    add_keys(usual, cfg.PROJECT)
    defaults = dict(leaves(usual))
    return {key: value for key, value in leaves(cfg) if value != defaults.get(key, ...)}


def warn_of_unused(cfg: CfgNode) -> None:
    """Logs a warning for each setting of a training run, or of an evaluation, that has no effect."""
    for text in unused(cfg):
        logger.warning(text)
