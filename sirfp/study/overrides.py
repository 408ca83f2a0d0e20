"""Checks the config keys of sirfp that a study overrides, before any run starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import InputError


def check_key(key: str, value: Any, at: str) -> None:
    """Checks one key of `SIRFP` and the type of its value.

    Raises:
        InputError: there is no such key, or not with such a value; begins with `at`, its place in the study's file.
    """
    from ..config.reading import load_config

    try:
        load_config("", [key, _as_word(value)])
    except InputError as error:
        raise InputError(f"{at}: {error}") from None


def check_options(criterion: str, overrides: Mapping[str, Any], at: str) -> None:
    """Checks the options that a study gives a criterion, as its run will.

    Args:
        criterion: its name in the registry.
        overrides: all config keys that its runs get.
        at: its place in the study's file.

    Raises:
        InputError: there is no such option, or not with such a value.
    """
    from ..config import options
    from ..config.reading import load_config

    own = {key: value for key, value in overrides.items() if key.startswith("SIRFP.")} | {"SIRFP.CRITERION": criterion}
    try:
        options.check_options(load_config("", [word for key, value in own.items() for word in (key, _as_word(value))]))
    except InputError as error:
        raise InputError(f"{at}: {error}") from None


def _as_word(value: Any) -> str:
    """A value as a command line has it."""
    return value if isinstance(value, str) else repr(value)
