"""Loss curves: noise is cleaned, losses between and below measured widths, hulls and JSON."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sirfp.budget.curve import Curve
from sirfp.errors import InputError

LOSSES = st.one_of(st.floats(-1, 100), st.just(math.nan), st.just(math.inf))


@st.composite
def curves(draw, losses=LOSSES) -> Curve:
    size = draw(st.integers(1, 300))
    below = sorted(draw(st.sets(st.integers(1, size), max_size=8)) - {size})
    return Curve("a", size, (*below, size), (*(draw(losses) for _ in below), 0.0))


@settings(deadline=None)
@given(curves())
def test_losses_are_finite_and_never_rise_with_the_width(curve):
    clean = curve.cleaned()
    assert all(math.isfinite(loss) and loss >= 0 for loss in clean.losses)
    assert list(clean.losses) == sorted(clean.losses, reverse=True) and clean.widths == curve.widths
    assert clean.cleaned() == clean
    everywhere = curve.over(np.arange(curve.size + 1))
    assert everywhere[0] == math.inf
    first = 1 if len(curve.widths) > 1 else curve.size
    assert np.isinf(everywhere[:first]).all() and np.isfinite(everywhere[first:]).all()
    assert (np.diff(everywhere[first:]) <= 1e-9).all()
    assert everywhere[-1] == curve.at(curve.size) == 0
    assert np.allclose([curve.at(width) for width in curve.widths], clean.losses)


@settings(deadline=None)
@given(curves())
def test_the_hull_is_convex_and_below_the_curve(curve):
    hull, clean = curve.hull(), curve.cleaned()
    slopes = np.diff(hull.losses) / np.diff(hull.widths)
    assert (np.diff(slopes) >= -1e-9).all()
    assert hull.widths[0] == clean.widths[0] and hull.losses[0] == clean.losses[0]
    assert (np.interp(clean.widths, hull.widths, hull.losses) <= np.array(clean.losses) + 1e-9).all()


def test_noise_is_averaged_and_a_broken_width_is_the_worst():
    assert Curve("a", 8, (2, 4, 6, 8), (3.0, 1.0, 2.0, 0.0)).cleaned().losses == (3.0, 1.5, 1.5, 0.0)
    assert Curve("a", 8, (2, 4, 6, 8), (math.nan, 3.0, -1e-6, 0.0)).cleaned().losses == (30.0, 3.0, 0.0, 0.0)
    assert Curve("a", 8, (2, 8), (math.inf, 0.0)).cleaned().losses == (1.0, 0.0)


def test_curves_are_joined_where_one_was_measured_again():
    coarse, finer = Curve("a", 8, (2, 4, 8), (3.0, 1.0, 0.0)), Curve("a", 8, (3, 4, 8), (2.0, 1.5, 0.0))
    assert coarse.joined(finer) == Curve("a", 8, (2, 3, 4, 8), (3.0, 2.0, 1.5, 0.0))
    for other in (Curve("b", 8, (8,), (0.0,)), Curve("a", 9, (9,), (0.0,))):
        with pytest.raises(InputError, match="cannot be joined"):
            coarse.joined(other)


def test_losses_between_are_those_of_a_disturbance_that_grows_linearly():
    curve = Curve("a", 100, (50, 100), (1.0, 0.0))
    assert [curve.at(width) for width in (50, 75, 90)] == pytest.approx([1.0, 0.25, 0.04])


def test_losses_below_the_smallest_measured_width_are_high():
    curve = Curve("a", 100, (40, 80, 100), (1.0, 0.9, 0.0))
    assert curve.at(20) >= 4 and curve.at(10) >= 16 and curve.at(39) > 1
    steep = Curve("a", 100, (90, 100), (1.0, 0.0))
    assert steep.at(50) >= 25  # ten atoms add 1 to the root
    flat = Curve("a", 100, (40, 100), (0.0, 0.0))
    assert flat.at(1) == 0


@settings(deadline=None)
@given(curves())
def test_json(curve):
    again = Curve.from_json(json.loads(json.dumps(curve.to_json(), allow_nan=False)))
    assert (again.group, again.size, again.widths) == (curve.group, curve.size, curve.widths)
    assert again.cleaned() == curve.cleaned()


@pytest.mark.parametrize("widths", [(), (4, 4, 8), (0, 8), (4, 6), (8, 4)])
def test_widths_that_make_no_curve(widths):
    with pytest.raises(InputError, match="ascending widths from 1 to 8"):
        Curve("a", 8, widths, (0.0,) * len(widths))


@pytest.mark.parametrize("losses", [(1.0,), (1.0, 0.5), (1.0, math.nan), (1.0, 0.0, 0.0)])
def test_losses_that_make_no_curve(losses):
    with pytest.raises(InputError, match="a loss for each of its 2 widths and end with 0"):
        Curve("a", 8, (4, 8), losses)


@pytest.mark.parametrize(
    "data",
    [
        None, 3, [], {}, {"group": "a"}, {"group": 1, "size": 8, "widths": [8], "losses": [0]},
        {"group": "a", "size": 8, "widths": [8.5], "losses": [0]}, {"group": "a", "size": 8, "widths": 8, "losses": 0},
        {"group": "a", "size": True, "widths": [8], "losses": [0]},
        {"group": "a", "size": 8, "widths": [8], "losses": ["0"]},
    ],
)  # fmt: skip
def test_data_that_is_no_curve(data):
    with pytest.raises(InputError, match="not a loss curve"):
        Curve.from_json(data)
