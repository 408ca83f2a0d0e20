"""Loss curves are measured again where a budget needs them: at the widths that they suggest."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_networks import INPUT, build
from test_allocation import FOUND, Wide
from test_target import clock  # noqa: F401  (a fixture)

from sirfp.budget.curve import Curve
from sirfp.budget.finer_curves import ROUNDS, finer_curves
from sirfp.budget.limits import Limits
from sirfp.budget.target import TARGETS
from sirfp.errors import InputError

X = torch.randn(INPUT)


class Measured:
    """Takes the place of evidence: the loss of a group is a steep function of its width, with a step at a half."""

    def __init__(self, found):
        self.found, self.asked = found, []

    def loss(self, number: int, width: int, size: int) -> float:
        gone = 1 - width / size
        return (1 + number) * (gone**2 + 3 * (gone > 0.5) + 0.5 * (gone > 0.2))

    def curve(self, number, group, widths) -> Curve:
        losses = [self.loss(number, width, group.size) for width in widths]
        return Curve(group.name, group.size, (*widths, group.size), (*losses, 0.0))

    def curves(self, model, found, criterion, moments, limits, widths):
        self.asked.append(widths)
        return {g.name: self.curve(i, g, widths[g.name]) for i, g in enumerate(found) if g.name in widths}

    def total(self, widths) -> float:
        return sum(self.loss(i, widths[g.name], g.size) for i, g in enumerate(self.found))


def coarse(evidence, found, shares=(0.05, 0.9)):
    widths = {g.name: sorted({max(1, int(s * g.size)) for s in shares} - {g.size}) for g in found}
    return {g.name: evidence.curve(i, g, widths[g.name]) for i, g in enumerate(found)}


def finer(found, target, evidence, curves, limits=Limits(())):  # noqa: B008  (frozen)
    return finer_curves(build(Wide), X, found, None, target, evidence, None, curves, limits)


@pytest.mark.parametrize("quantity", sorted(TARGETS))
def test_the_widths_of_finer_curves_lose_less(clock, quantity):  # noqa: F811
    found, target = FOUND[Wide], TARGETS[quantity](0.6)
    evidence = Measured(found)
    curves = coarse(evidence, found)
    better = finer(found, target, evidence, curves)
    assert 1 <= len(evidence.asked) <= ROUNDS
    before, after = (target.likely_widths(build(Wide), X, found, each) for each in (curves, better))
    assert evidence.total(after) < evidence.total(before)
    for name, curve in better.items():
        assert set(curves[name].widths) <= set(curve.widths)
        assert len(curve.widths) <= len(curves[name].widths) + ROUNDS


def test_what_is_asked_for_first_are_the_widths_that_the_curves_suggest():
    found, target = FOUND[Wide], TARGETS["flops"](0.6)
    evidence = Measured(found)
    curves = coarse(evidence, found)
    wanted = {n: [w] for n, w in target.likely_widths(None, X, found, curves).items() if w not in curves[n].widths}
    finer(found, target, evidence, curves)
    assert evidence.asked[0] == wanted and wanted


def test_nothing_is_measured_twice_nor_where_the_width_is_given():
    found, target = FOUND[Wide], TARGETS["flops"](0.7)
    evidence, given = Measured(found), found.groups[0]
    every = {g.name: evidence.curve(i, g, list(range(1, g.size))) for i, g in enumerate(found)}
    assert finer(found, target, evidence, every) == every and not evidence.asked
    limits = Limits((), given=((given.name, max(1, given.size - 1)),))
    finer(found, target, evidence, coarse(evidence, found), limits)
    assert evidence.asked and not any(given.name in widths for widths in evidence.asked)


def test_a_budget_out_of_reach_says_so():
    found = FOUND[Wide]
    evidence = Measured(found)
    with pytest.raises(InputError, match="the least that can be kept is"):
        finer(found, TARGETS["flops"](0.001), evidence, coarse(evidence, found), Limits((), min_keep=0.5))
    assert np.isfinite(evidence.total({g.name: g.size for g in found}))
