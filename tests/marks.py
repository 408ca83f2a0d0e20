"""Which parameters of a test run in `make test`, and which in `make test-all` alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def slow_but(values: Iterable[Any], *quick: Any) -> list[Any]:
    """Returns the values as parameters of a test; all but the quick ones have the mark `slow`.

    Args:
        values: the values, in the order in which they run.
        quick: those of them that run in `make test`: one for each path through the tested code.
    """
    values = list(values)
    missing = [value for value in quick if value not in values]
    if missing:
        raise ValueError(f"{missing} are no parameters of this test: {values}")
    return [pytest.param(value, marks=[] if value in quick else pytest.mark.slow) for value in values]
