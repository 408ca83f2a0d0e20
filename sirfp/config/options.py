"""Options of the criterion in a config: the keys of `SIRFP.OPTIONS`, and the older keys that they replaced.

`SIRFP.OPTIONS.EMA 0.9` sets the option `ema`. The names are the argument names of the criterion's constructor, in upper
case as for all keys; lower case is also read. Several criteria often share a config. Therefore an option of another
criterion is ignored with a line in the log. An option that no criterion has is an error.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.utils.logger import log_first_n

from ..criteria import CRITERIA, Criterion
from ..errors import InputError, near

PLACE, WIDTHS = "SIRFP.OPTIONS", "SIRFP.KEEP"
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
"""{older key of `SIRFP`: the option that it sets}; these keys, older than `SIRFP.OPTIONS`, are still read."""


def old_key(key: str) -> str:
    """Returns the older key of an option, e.g. SIRFP.EMA for SIRFP.OPTIONS.EMA; returns other keys unchanged."""
    before = {f"{PLACE}.{option.upper()}": f"SIRFP.{old}" for old, option in OLD_KEYS.items()}
    return before.get(key, key)


def name_in_capitals(cfg: CfgNode) -> None:
    """Renames the keys below `SIRFP.OPTIONS` to upper case, so that later values override earlier ones.

    Raises:
        InputError: a key occurs in both spellings.
    """
    ours = cfg.get("SIRFP")
    node: Any = ours.get("OPTIONS") if isinstance(ours, CfgNode) else None
    for key in list(node) if isinstance(node, CfgNode) else ():
        if key != str(key).upper():
            if str(key).upper() in node:
                raise InputError(f"{PLACE} has both {str(key).upper()} and {key}; keep only one of them")
            node[str(key).upper()] = node.pop(key)


def make_room(cfg: CfgNode, keys: Iterable[str]) -> None:
    """Sets options to None before their new values are merged.

    yacs refuses a new key, and a value of another type than the present one, but replaces None by any value.

    Args:
        cfg: the config into which the values will be merged.
        keys: full names of keys, e.g. SIRFP.OPTIONS.EMA; keys of other settings are ignored.
    """
    for key in keys:
        place, _, name = key.rpartition(".")
        if place == "SIRFP" and name in OLD_KEYS:
            cfg.SIRFP[name] = None
        elif place != WIDTHS and (node := _open_node(cfg, place)) is not None:
            node[name] = None
        elif key.startswith(f"{WIDTHS}."):  # the rest is a name of a layer, which may hold dots
            cfg.SIRFP.KEEP[key.removeprefix(f"{WIDTHS}.")] = None


def prepare(cfg: CfgNode, opts: list[str]) -> list[str]:
    """Prepares a config for merging options from the command line (see `make_room`).

    Args:
        cfg: the config; changed in place.
        opts: KEY, VALUE, KEY, VALUE, ...

    Returns:
        The same list, with the names of criteria's options in upper case, a key for each entry of a mapping such as
        `MODEL.TIMM.OPTIONS {'drop_path_rate': 0.1}`, and without the widths of single layers, which are set.

    Raises:
        InputError: `SIRFP.KEEP` is given as no mapping, or `SIRFP.KEEP.layer` no number.
    """
    rest = []
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        if key == WIDTHS:
            cfg.SIRFP.KEEP = _mapping(value)
        elif key.startswith(f"{WIDTHS}."):  # one layer, whose name may contain dots
            cfg.SIRFP.KEEP[key.removeprefix(f"{WIDTHS}.")] = _width(key, value)
        else:
            rest += _entries(cfg, key, value)
    rest = [(key.upper() if key.startswith(f"{PLACE}.") else key, value) for key, value in rest]
    make_room(cfg, [key for key, _ in rest])
    return [word for pair in rest for word in pair]


def _open_node(cfg: CfgNode, key: str) -> CfgNode | None:
    """Returns the part of a config that a key names if it takes new keys, else None."""
    node: Any = cfg
    for part in key.split("."):
        node = node.get(part) if isinstance(node, CfgNode) else None
    return node if isinstance(node, CfgNode) and node.is_new_allowed() else None


def _entries(cfg: CfgNode, key: str, text: str) -> list[tuple[str, str]]:
    """Returns a (key, value) pair for each entry of a mapping that is given for a part of a config with new keys."""
    if _open_node(cfg, key) is None:
        return [(key, text)]
    value = _value(text)
    if not isinstance(value, dict):
        raise InputError(f"{key} takes a mapping, such as \"{{'name': 0.1}}\", or {key}.name 0.1; got {text!r:.80}")
    return [(f"{key}.{name}", repr(entry)) for name, entry in value.items()]


def _mapping(text: str) -> CfgNode:
    """Reads the widths of single layers, such as `{'layer3.*': 0.5}`, from the command line."""
    value = _value(text)
    if not isinstance(value, dict):
        raise InputError(f"{WIDTHS} must map names of layers to widths, such as {{'layer3.*': 0.5}}, got {text!r:.80}")
    return CfgNode({str(name): width for name, width in value.items()}, new_allowed=True)


def _width(key: str, text: str) -> int | float:
    """Reads the width of a single layer, such as `0.5`, from the command line."""
    value = _value(text)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise InputError(f"{key} must be a share such as 0.5 or a number of channels such as 64, got {text!r:.80}")
    return value


def _value(text: str) -> Any:
    """Reads a value from the command line; None if it is no YAML."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None


def written(cfg: CfgNode) -> dict[str, tuple[str, Any]]:
    """Returns the options that a config sets, {option: (the full name of the key that the user wrote, value)}.

    Raises:
        InputError: an older and a newer key set the same option to different values.
    """
    found = {str(key).lower(): (f"{PLACE}.{key}", value) for key, value in cfg.SIRFP.OPTIONS.items()}
    for old, option in OLD_KEYS.items():
        value = cfg.SIRFP[old]
        if value is None:
            continue
        key, new = found.get(option, ("", value))
        if new != value:
            raise InputError(
                f"SIRFP.{old} {value} and {key} {new} set the criterion's option {option} to two values; "
                f"remove SIRFP.{old}, the older key"
            )
        if not key:
            found[option] = f"SIRFP.{old}", value
    return found


def check_options(cfg: CfgNode) -> dict[str, Any]:
    """Checks the criterion and its options in a config, before anything is built.

    Returns:
        The arguments for the criterion's constructor, {option: value}.

    Raises:
        InputError: the criterion is unknown, no criterion has the option, or the option's value is not allowed.
    """
    criterion: type[Criterion] = CRITERIA.find(cfg.SIRFP.CRITERION, "SIRFP.CRITERION")
    given = written(cfg)
    for option, (key, value) in given.items():
        if option not in criterion.options():
            _check_other(criterion, option, key, value)
    own = {option: value for option, (_, value) in given.items() if option in criterion.options()}
    criterion.check_complete()
    return criterion.check_options(own, {option: key for option, (key, _) in given.items()})


def _check_other(criterion: type[Criterion], option: str, key: str, value: Any) -> None:
    """Checks an option that the chosen criterion does not have: another criterion must have it and allow the value."""
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
    """Returns the arguments for the criterion of a run; logs, once, which keys are old and which options are ignored.

    Raises:
        InputError: see `check_options`.
    """
    options = CRITERIA.find(cfg.SIRFP.CRITERION, "SIRFP.CRITERION").options()
    given = written(cfg)
    old = [key for key, _ in given.values() if not key.startswith(f"{PLACE}.")]
    if old:
        new = [f"{PLACE}.{OLD_KEYS[key.removeprefix('SIRFP.')].upper()}" for key in old]
        _say(f"{', '.join(old)}: the key is now {', '.join(new)}; the old key is still read")
    others = [key for option, (key, _) in given.items() if option not in options and key not in old]
    if others:
        _say(f"{', '.join(others)}: not used, because criterion {cfg.SIRFP.CRITERION} has no such option", logging.INFO)
    return check_options(cfg)


def _say(text: str, level: int = logging.WARNING) -> None:
    log_first_n(level, text, name=__name__, key="message")
