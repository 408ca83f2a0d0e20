"""Which parameters and how many random cases of a test run in `make test`, and which in `make test-all` alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import hypothesis
import pytest


def slow_but(values: Iterable[Any], *quick: Any) -> list[Any]:
    """Returns the values as parameters of a test; all but the quick ones have the mark `slow`.

    Args:
        values: the values, in the order in which they run; a tuple holds the values of several names.
        quick: those of them that run in `make test`: one for each path through the tested code.
    """
    values = list(values)
    missing = [value for value in quick if value not in values]
    if missing:
        raise ValueError(f"{missing} are no parameters of this test: {values}")
    each = [(value if isinstance(value, tuple) else (value,), value in quick) for value in values]
    return [pytest.param(*value, marks=[] if runs else pytest.mark.slow) for value, runs in each]


def drawn(cases: int) -> hypothesis.settings:
    """Returns the settings of a test of random cases, of which `make test` draws a quarter."""
    few = hypothesis.settings.default.derandomize  # see `pytest_configure` in conftest.py
    return hypothesis.settings(max_examples=cases // 4 if few else cases, deadline=None)
