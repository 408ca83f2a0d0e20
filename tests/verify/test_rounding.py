"""Differences that rounding errors explain are told from wrong cuts."""

from __future__ import annotations

import copy
import math
import threading

import pytest
import torch
from small_networks import Magnifier, TwoOutputs
from torch import nn

import sirfp
from sirfp.verify import Difference, compare, expand, furthest
from sirfp.verify.detectors import compare_continuous
from sirfp.verify.rounding import LARGEST, is_rounding, judge, rounding, rounding_of_each, unexplained


class Normed(nn.Module):
    """A network with a norm over channels, which a mask without statistics over the kept channels would change."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3), nn.GroupNorm(1, 16), nn.ReLU(), nn.Conv2d(16, 5, 3))

    def forward(self, x):
        return self.body(x)


class Refiner(nn.Module):
    """A detector that looks again at its least certain points, as PointRend does; some have nearly equal scores."""

    def __init__(self):
        super().__init__()
        self.body, self.score = nn.Conv2d(3, 64, 3), nn.Conv2d(64, 1, 1)
        self.again = nn.Linear(64, 2)

    def forward(self, batched):
        features = self.body(batched[0]["image"][None]).relu()
        scores = self.score(features).flatten()
        points = scores.topk(len(scores) * 3 // 4).indices
        return [{"instances": self.again(features.flatten(2)[0].T[points])}]


def pruned(model, inputs):
    """A dense network with zeroed channels, the pruned one, and the plan."""
    small, dense = copy.deepcopy(model), copy.deepcopy(model)
    plan = sirfp.prune(small, inputs, "random", 0.5)
    expand(dense, plan, small.state_dict())
    return dense, small, plan


@pytest.mark.parametrize("factor", [3e3, 1e4])
def test_a_network_that_magnifies_rounding_errors(factor):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 12, 12)
    dense, small, plan = pruned(Magnifier(factor).eval(), x)
    found = compare(dense, small, x, plan).relative
    effect = rounding(dense, x, plan, compare)
    assert 1e-4 < found <= 2 * effect < LARGEST * 2
    assert is_rounding(found, effect)
    with torch.no_grad():
        small.first.weight[0].mul_(1.01)
    assert not is_rounding(compare(dense, small, x, plan).relative, effect)


def test_a_network_that_rounding_errors_change_too_much_is_not_verified():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 12, 12)
    dense, small, plan = pruned(Magnifier(1e6).eval(), x)
    found, effect = compare(dense, small, x, plan).relative, rounding(dense, x, plan, compare)
    assert found > LARGEST and effect > LARGEST and not is_rounding(found, effect)


def test_statistics_over_channels_are_those_of_kept_channels_in_both_networks():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 12, 12)
    dense, _, plan = pruned(Normed().eval(), x)
    assert rounding(dense, x, plan, compare) < 1e-5


def test_the_points_of_a_detector_are_repeated():
    torch.manual_seed(0)
    inputs = [{"image": torch.randn(3, 120, 120)}]
    dense, small, plan = pruned(Refiner().eval(), inputs)
    assert compare_continuous(dense, small, inputs, plan).relative < 1e-4
    assert rounding(dense, inputs, plan, compare_continuous) < 1e-4
    with torch.no_grad():
        small.again.weight.mul_(1.01)
    assert compare_continuous(dense, small, inputs, plan).relative > 1e-3


def test_rounding_errors_of_one_output_do_not_explain_another():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 12, 12)
    dense, small, plan = pruned(TwoOutputs().eval(), x)
    effects = rounding_of_each(dense, x, plan, compare)
    assert unexplained(compare(dense, small, x, plan), effects, 1e-4) == ""
    judged = judge(dense, small, x, plan, compare)
    assert judged.equal and judged.effect == effects["output.magnified"] and judged.difference.relative > 1e-4
    with torch.no_grad():
        small.plain[2].weight.mul_(1.00015)
    found = compare(dense, small, x, plan)
    assert found.where == "output.magnified" and 1e-4 < found.each["output.plain"] < effects["output.magnified"]
    assert unexplained(found, effects, 1e-4) == "output.plain"
    judged = judge(dense, small, x, plan, compare)
    assert not judged.equal and judged.difference.where == "output.plain"
    assert judged.difference.relative == found.each["output.plain"] and judged.effect == effects["output.plain"]
    assert judge(dense, small, x, plan, compare, found.relative * 1.01).effect is None


@pytest.mark.parametrize("effect", [0.02, 1.0, math.inf, math.nan])
def test_an_effect_that_is_too_large_or_unknown_explains_nothing(effect):
    assert is_rounding(0.005, 0.005) and not is_rounding(0.005, effect)
    assert unexplained(Difference(0.005, "a", each={"a": 0.005}), {"a": effect}, 1e-4) == "a"
    assert unexplained(Difference(0.005, "a", each={"a": 0.005}), {}, 1e-4) == "a"


def test_a_model_that_cannot_be_copied_has_no_known_effect():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 12, 12)
    dense, _, plan = pruned(Normed().eval(), x)
    dense.lock = threading.Lock()
    assert rounding_of_each(dense, x, plan, compare) == {} and rounding(dense, x, plan, compare) == math.inf


@pytest.mark.parametrize("paths", ["abc", "bac", "bca"])
def test_nan_is_never_hidden_by_another_output(paths):
    values = {"a": (math.nan, 1.0), "b": (1.0, 1.0), "c": (1.0, 1.5)}
    one, two = ({path: torch.tensor([values[path][i]]) for path in paths} for i in (0, 1))
    found = furthest(one, two)
    assert found.where == "a" and math.isnan(found.relative) and found.each["c"] == 0.5
    assert unexplained(found, {"a": 1e-3, "c": 1e-3}, 1e-4) == "a"
