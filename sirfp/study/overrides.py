"""Checks the config keys of sirfp that a study overrides, before any run starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import InputError


def check_key(key: str, value: Any, at: str) -> None:
    """Checks one key of `SIRFP` and the type of its value.

    Raises:
        InputError: there is no such key, or its value has the wrong type. The message starts with `at`, the key's
            place in the study's file.
    """
    from ..config.reading import load_config

    try:
        load_config("", [key, _as_word(value)])
    except InputError as error:
        raise InputError(f"{at}: {error}") from None


def check_options(criterion: str, overrides: Mapping[str, Any], at: str) -> None:
    """Checks the criterion's options in a study; the run makes the same check later.

    Args:
        criterion: name of the criterion in the registry.
        overrides: {config key: value} of all config keys that the criterion's runs get.
        at: place of the criterion in the study's file, for messages.

    Raises:
        InputError: the criterion has no such option, or the value is not valid.
    """
    from ..config import options
    from ..config.reading import load_config

    own = {key: value for key, value in overrides.items() if key.startswith("SIRFP.")} | {"SIRFP.CRITERION": criterion}
    try:
        options.check_options(load_config("", [word for key, value in own.items() for word in (key, _as_word(value))]))
    except InputError as error:
        raise InputError(f"{at}: {error}") from None


def _as_word(value: Any) -> str:
    """Formats a value for the command line."""
    return value if isinstance(value, str) else repr(value)
