"""Reads the entries of a plan's JSON; every error is an `InputError` that names the entry and says what it must be."""

from __future__ import annotations

import re
from typing import Any

from ..errors import InputError

LONGEST_NAME = 10_000
"""Maximum length of a name or text in a plan, in characters: far above module names, short enough for a message."""
_UNSHOWN = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
"""Control characters, lone surrogates and bidirectional overrides, which change how a terminal or page shows a name."""


def member(data: Any, key: str) -> Any:
    """Returns an entry of a mapping; other data as they are."""
    return data.get(key) if isinstance(data, dict) else data


def dictionary(value: Any, at: str) -> dict:
    """Returns a mapping."""
    if not isinstance(value, dict):
        raise InputError(f"{at} must be a mapping, got {type(value).__name__}")
    return value


def entries(data: dict, key: str) -> list:
    """Returns the list under a key; an empty one if there is none."""
    value = data.get(key, [])
    if not isinstance(value, list):
        raise InputError(f"plan.{key} must be a list, got {type(value).__name__}")
    return value


def mapping(data: dict, key: str, read) -> dict:
    """Returns the mapping under a key, its values read by `read(value, name of the entry)`."""
    values = dictionary(data.get(key, {}), f"plan.{key}")
    return {text(k, f"plan.{key}"): read(v, f"plan.{key}[{k!r}]") for k, v in values.items()}


def text(value: Any, at: str) -> str:
    """Returns a text of at most `LONGEST_NAME` characters, all of which terminals and pages show."""
    if not isinstance(value, str):
        raise InputError(f"{at} must be text, got {type(value).__name__}")
    if len(value) > LONGEST_NAME or _UNSHOWN.search(value):
        raise InputError(f"{at} must be a text of at most {LONGEST_NAME} printable characters, got {value!r:.40}")
    return value


def count(value: Any, at: str) -> int:
    """Returns a whole number of at least 0."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 60:
        raise InputError(f"{at} must be a whole number of at least 0, got {value!r:.40}")
    return value


def indices(value: Any, at: str) -> tuple[int, ...]:
    """Returns ascending indices."""
    if not isinstance(value, list):
        raise InputError(f"{at} must be a list of indices, got {type(value).__name__}")
    result = tuple(count(v, at) for v in value)
    if any(a >= b for a, b in zip(result, result[1:], strict=False)):
        raise InputError(f"{at} must be ascending indices, each once")
    return result


def pair(data: dict, key: str) -> tuple[int, int]:
    """Returns the (dense, pruned) numbers under a key; the dense one is at least 1."""
    value = entries(data, key)
    if len(value) != 2:
        raise InputError(f"plan.{key} must be [dense, pruned], got {len(value)} numbers")
    dense, pruned = (count(number, f"plan.{key}") for number in value)
    if not dense:
        raise InputError(f"plan.{key}: the dense model must have at least 1, got 0")
    return dense, pruned


def positive(value: Any, at: str) -> float:
    """Returns a number above 0."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < 1e18:
        raise InputError(f"{at} must hold numbers above 0, got {value!r:.40}")
    return float(value)
