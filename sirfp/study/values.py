"""Checks single values of a study's file; each error is one line that starts with the value's place in the file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import InputError, near


def check_keys(node: Mapping[str, Any], known: Iterable[str], at: str) -> None:
    """Raises InputError for an unknown key; the message suggests the nearest known key."""
    for key in node:
        if key not in known:
            raise InputError(f"{at} has no key {key!r}{near(key, known) or '; known are ' + ', '.join(known)}")


def check_distinct(values: Iterable[Any], at: str) -> None:
    """Raises InputError if a value occurs twice."""
    values = list(values)
    for value in values:
        if values.count(value) > 1:
            raise InputError(f"{at} has {value} twice")


def required(node: Mapping[str, Any], key: str, at: str) -> Any:
    """The value of a key; raises InputError if it is missing or empty."""
    if node.get(key) is None:
        raise InputError(f"{at} lacks {key}")
    return node[key]


def as_block(value: Any, at: str) -> Mapping[str, Any]:
    """A block of KEY: VALUE lines."""
    if not isinstance(value, Mapping):
        raise InputError(f"{at} must be a block of KEY: VALUE lines, got {value!r}")
    return value


def as_list(value: Any, at: str) -> list[Any]:
    """A list."""
    if not isinstance(value, list):
        raise InputError(f"{at} must be a list, got {value!r}; write [{value}]")
    return value


def as_nonempty(value: Any, at: str) -> list[Any]:
    """A list with at least one entry."""
    if not as_list(value, at):
        raise InputError(f"{at} is empty")
    return value


def as_text(value: Any, at: str) -> str:
    """A text of at least one character."""
    if not isinstance(value, str) or not value:
        raise InputError(f"{at} must be a text, got {value!r}")
    return value


def as_name(value: Any, at: str) -> str:
    """A name that can be part of a folder's name."""
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", value):
        raise InputError(f"{at}: write letters, digits and . _ + -, first a letter or digit; got {value!r}")
    return value


def as_flag(value: Any, at: str) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise InputError(f"{at} must be true or false, got {value!r}")
    return value


def as_count(value: Any, at: str, least: int) -> int:
    """A whole number of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{at} must be a whole number of at least {least}, got {value!r}")
    return value


def as_budget(value: Any, at: str) -> float:
    """A share of FLOPs to keep, in (0, 1)."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < 1:
        raise InputError(f"{at}: a budget is a share of FLOPs between 0 and 1, got {value!r}")
    return float(value)


def as_seeds(value: Any, at: str) -> tuple[int, ...]:
    """A list of different seeds."""
    seeds = tuple(as_count(seed, at, 0) for seed in as_nonempty(value, at))
    check_distinct(seeds, at)
    return seeds
