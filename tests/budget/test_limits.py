"""Limits check themselves and are plain, comparable data."""

from __future__ import annotations

import dataclasses

import pytest

from sirfp.budget.limits import Limits
from sirfp.errors import InputError


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"min_keep": 1.5}, r"min_keep must lie in \[0, 1\], got 1.5"),
        ({"min_keep": float("nan")}, "min_keep must lie in"),
        ({"round_to": 0}, "round_to must be a whole number of at least 1, got 0"),
        ({"round_to": 8.0}, "round_to must be a whole number"),
    ],
)
def test_values_out_of_range_are_refused(given, says):
    with pytest.raises(InputError, match=says):
        Limits(**given)


def test_names_may_be_one_text_a_list_or_an_iterator():
    given = ("backbone", ["backbone"], iter(["backbone"]))
    assert {Limits(partitions=value, ignore=value) for value in given[:2]} == {
        Limits(("backbone",), ignore=("backbone",))
    }
    assert Limits(given[2]) == Limits(("backbone",))
    with pytest.raises(dataclasses.FrozenInstanceError):
        Limits().min_keep = 0.5
