"""Checks the config keys of sirfp that a study overrides, before any run starts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..errors import InputError
from .values import as_block

SET_BY_STUDY = {
    "SEED": "seeds", "SIRFP.SEED": "seeds", "SIRFP.CRITERION": "criteria", "SIRFP.KEEP_FLOPS": "budgets",
    "SIRFP.STEPS": "steps", "SIRFP.START_ITER": "iterations", "SIRFP.ACCUMULATE_ITERS": "iterations",
    "SIRFP.RECOVER_ITERS": "iterations", "SOLVER.MAX_ITER": "iterations", "OUTPUT_DIR": "folder",
    "SIRFP.PLAN": "criteria",
}  # fmt: skip
"""{config key that only the study may set: the study's key for it}."""
WEIGHTS = "MODEL.WEIGHTS"


def read_overrides(value: Any, at: str, *, initial: bool = False) -> dict[str, Any]:
    """Reads a block {config key: value}. Keys that start with SIRFP are checked here, others by the run.

    Args:
        value: the block.
        at: place of the block in the study's file, for messages.
        initial: True if it may set `MODEL.WEIGHTS`, the initial weights of dense runs and of runs from scratch.

    Raises:
        InputError: a key is not valid, or only the study may set it.
    """
    found = {}
    for key, setting in as_block(value, at).items():
        if not re.fullmatch(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)*", str(key)):
            raise InputError(f"{at}: {key!r} is no config key; write it like SOLVER.BASE_LR")
        if key in SET_BY_STUDY:
            raise InputError(f"{at}: {key} is set by the study's {SET_BY_STUDY[key]}")
        if key == WEIGHTS and not initial:
            raise InputError(
                f"{at}: {key} is set by the study, since prunings start from the dense network; name the initial "
                "weights in overrides"
            )
        if key == WEIGHTS and not isinstance(setting, str):
            raise InputError(f'{at}: {key} must be a file or an address, or "" for random weights, got {setting!r}')
        if isinstance(setting, Mapping):
            raise InputError(f"{at}: write {key}.{next(iter(setting), 'KEY')} in full, not a block below {key}")
        if key.startswith("SIRFP."):  # other keys may belong to a project; only its script knows them
            check_key(key, setting, at)
        found[key] = setting
    return found


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
