"""A few cases of each fuzzing target, and cases that were findings before."""

from __future__ import annotations

import pytest
from scripts import loaded


@pytest.fixture(scope="module")
def fuzz():
    with loaded("benchmarks/fuzz.py") as module:
        yield module


@pytest.mark.parametrize(
    "name", ["plan", "pruned", "weights", "arrays", "config", "study", "boxes", "classmap", "marker"]
)
def test_no_edit_does_more_than_be_refused(fuzz, name):
    assert fuzz.attack(name, seed=1, cases=6 if name in ("config", "study") else 25) >= 0
