"""Options of the criterion in a config: `SIRFP.OPTIONS`, and the keys that stood for them before.

`SIRFP.OPTIONS.EMA 0.9` gives the option `ema`. Names are those of the criterion's constructor, in upper case as all
keys; lower case is read too. A config is often shared by several criteria, so an option of another criterion is left
out with a line in the log; a name that no criterion has is an error.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils.logger import log_first_n

from ..criteria import CRITERIA, Criterion
from ..errors import InputError, near

PLACE = "SIRFP.OPTIONS"
OLD_KEYS = {
    "EMA": "ema",
    "EDGE_WEIGHT": "edge_weight",
    "COUPLED": "coupled",
    "SELF_SIMILARITY": "self_similarity",
    "NORMALIZE": "normalize",
    "PER_POSITION": "per_position",
    "POOLED": "pooled",
    "SEARCH": "search",
    "ACCUMULATE_STRIDE": "stride",
    "IMPORTANCE": "importance",
    "IMPORTANCE_WEIGHT": "importance_weight",
    "COST_EXPONENT": "cost_exponent",
}
"""Keys of `SIRFP` that gave an option before there was `SIRFP.OPTIONS`; they still do."""


def old_key(key: str) -> str:
    """The key in full that gave an option before, e.g. SIRFP.EMA of SIRFP.OPTIONS.EMA; other keys as they are."""
    before = {f"{PLACE}.{option.upper()}": f"SIRFP.{old}" for old, option in OLD_KEYS.items()}
    return before.get(key, key)


def name_in_capitals(cfg: CfgNode) -> None:
    """Gives the keys below `SIRFP.OPTIONS` upper case, so that a later value of one replaces an earlier one.

    Raises:
        InputError: one stands there in both spellings.
    """
    ours = cfg.get("SIRFP")
    node: Any = ours.get("OPTIONS") if isinstance(ours, CfgNode) else None
    for key in list(node) if isinstance(node, CfgNode) else ():
        if key != str(key).upper():
            if str(key).upper() in node:
                raise InputError(f"{PLACE} has both {str(key).upper()} and {key}; write one of them")
            node[str(key).upper()] = node.pop(key)


def make_room(cfg: CfgNode, keys: Iterable[str]) -> None:
    """Empties the places of options that are given next: yacs takes no value of another type than it has, nor new keys.

    Args:
        cfg: what the values will be merged into.
        keys: in full, as SIRFP.OPTIONS.EMA; others than of options are left alone.
    """
    for key in keys:
        place, _, name = key.rpartition(".")
        if place == PLACE:
            cfg.SIRFP.OPTIONS[name] = None
        elif place == "SIRFP" and name in OLD_KEYS:
            cfg.SIRFP[name] = None


def prepare(cfg: CfgNode, opts: list[str]) -> list[str]:
    """Makes room in a config for the options that KEY VALUE pairs name.

    Returns:
        The pairs, with the names of options in upper case.
    """
    keys = [key.upper() if key.startswith(f"{PLACE}.") else key for key in opts[::2]]
    make_room(cfg, keys)
    return [word for key, value in zip(keys, opts[1::2], strict=True) for word in (key, value)]


def written(cfg: CfgNode) -> dict[str, tuple[str, Any]]:
    """The options that a config gives, {option: (key in full, value)}; the key is the one that the user has written.

    Raises:
        InputError: an old key and a new one give it different values.
    """
    found = {str(key).lower(): (f"{PLACE}.{key}", value) for key, value in cfg.SIRFP.OPTIONS.items()}
    for old, option in OLD_KEYS.items():
        value = cfg.SIRFP[old]
        if value is None:
            continue
        key, new = found.get(option, ("", value))
        if new != value:
            raise InputError(
                f"SIRFP.{old} {value} and {key} {new} give the criterion's option {option} two values; "
                f"remove SIRFP.{old}, its old key"
            )
        if not key:
            found[option] = f"SIRFP.{old}", value
    return found


def check_options(cfg: CfgNode) -> dict[str, Any]:
    """Checks the criterion and the options that a config gives, before anything is built.

    Returns:
        The options that the criterion takes, as its constructor takes them.

    Raises:
        InputError: there is no such criterion, no criterion has such an option, or not with such a value.
    """
    criterion: type[Criterion] = CRITERIA.find(cfg.SIRFP.CRITERION, "SIRFP.CRITERION")
    given = written(cfg)
    for option, (key, value) in given.items():
        if option not in criterion.options():
            _check_other(criterion, option, key, value)
    own = {option: value for option, (_, value) in given.items() if option in criterion.options()}
    return criterion.check_options(own, {option: key for option, (key, _) in given.items()})


def _check_other(criterion: type[Criterion], option: str, key: str, value: Any) -> None:
    """Checks an option that is not the criterion's: another one must have it, with this value."""
    having = [other.options()[option] for other in CRITERIA.values() if option in other.options()]
    if not having:
        takes = ", ".join(criterion.options()) or "none"
        every = {name for other in CRITERIA.values() for name in other.options()}
        hint = near(option, criterion.options()) or near(option, every)
        raise InputError(f"{key}: criterion {criterion.name!r} takes no option {option!r}; it takes {takes}{hint}")
    errors = []
    for one in having:
        try:
            one.checked(value, key)
            return
        except InputError as error:
            errors.append(error)
    raise errors[0]


def criterion_options(cfg: CfgNode) -> dict[str, Any]:
    """The options that a run builds its criterion with; the log says, once, which keys are old or not its own.

    Raises:
        InputError: see `check_options`.
    """
    options = CRITERIA.find(cfg.SIRFP.CRITERION, "SIRFP.CRITERION").options()
    given = written(cfg)
    old = [key for key, _ in given.values() if not key.startswith(f"{PLACE}.")]
    if old:
        new = [f"{PLACE}.{OLD_KEYS[key.removeprefix('SIRFP.')].upper()}" for key in old]
        _say(f"{', '.join(old)}: the key is now {', '.join(new)}; the old one is still read")
    others = [key for option, (key, _) in given.items() if option not in options and key not in old]
    if others:
        _say(f"{', '.join(others)}: left out, as criterion {cfg.SIRFP.CRITERION} takes no such option")
    return check_options(cfg)


def _say(text: str) -> None:
    log_first_n(logging.WARNING, text, name=__name__, key="message")
