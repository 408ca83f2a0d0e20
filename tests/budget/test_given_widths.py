"""Widths of single layers: shares and numbers of channels, patterns, ties, budgets for the rest."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from marks import drawn
from small_networks import INPUT, NETWORKS, Residual, build
from torch import nn

import sirfp
from sirfp.budget.given_widths import with_given_widths
from sirfp.budget.limits import Limits
from sirfp.budget.target import Flops
from sirfp.channels import find_groups
from sirfp.errors import InputError
from sirfp.session import PruningSession

X = torch.randn(INPUT, generator=torch.Generator().manual_seed(0))
BATCHES = [torch.randn(INPUT, generator=torch.Generator().manual_seed(seed)) for seed in range(1, 6)]
RESIDUAL = find_groups(build(Residual), X)


def widths(plan) -> dict[str, int]:
    return {name: len(kept) for name, kept in plan.kept.items()}


def resolved(keep, model=None, found=None, **limits) -> dict[str, int]:
    return with_given_widths(Limits(keep=keep, **limits), model or build(Residual), found or RESIDUAL).widths


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        ({"a.0": 0.5}, {"a.0": 5}),
        ({"a.*": 0.5}, {"a.0": 5}),
        ({"a": 0.5}, {"a.0": 5}),
        ({"a.0": 7, "c.0": 1.0}, {"a.0": 7, "c.0": 14}),
        ({"*": 0.5, "c.0": 3}, {"stem.0": 6, "a.0": 5, "b.0": 8, "c.0": 3}),
        ({"c.0": 3, "*": 0.5}, {"stem.0": 6, "a.0": 5, "b.0": 8, "c.0": 3}),  # a full name is before patterns
        ({"a*": 0.2, "*.0": 0.8}, {"stem.0": 10, "a.0": 8, "b.0": 13, "c.0": 11}),  # the last pattern decides
        ({"short.0": 0.25}, {"b.0": 4}),  # a layer that is tied to others
        ({"b.0": 8, "short.0": 8, "d.0": 8}, {"b.0": 8}),  # a table names all tied layers
        ({"a.0": 0.01}, {"a.0": 1}),
        ({"head": 1.0, "a.0": 2}, {"a.0": 2}),
        ({"head": 5, "a.0": 2}, {"a.0": 2}),  # the width that the output has
    ],
)
def test_names_and_patterns_give_groups_a_width(keep, expected):
    assert resolved(keep) == expected


@pytest.mark.parametrize(
    ("keep", "says"),
    [
        ({"shorn.0": 0.5}, "KEEP names 'shorn.0', which no layer of the model matches .did you mean short.0"),
        ({"a.1": 0.5}, "'a.1', which makes no channels of its own"),
        ({"head": 0.5}, "KEEP names 'head', whose channels cannot be cut: it is the model's output"),
        ({"head": 4}, "whose channels cannot be cut"),
        ({"a.0": 11}, "KEEP gives 'a.0': 11, but 'a.0' can keep 1 to 10 channels"),
        ({"a.0": 1}, "a single channel; write 1.0 to keep all"),
        ({"b.0": 8, "short.0": 9}, "'b.0': 8 and 'short.0': 9, but the channels of these layers belong together"),
        ({"a.0": True}, "must be a share .* got True"),
        ({"a.0": 0.0}, "must be a share"),
        ({"a.0": 1.5}, "must be a share"),
        ({"a.0": -3}, "must be a share"),
        ({"a.0": float("nan")}, "must be a share"),
        ({"a.0": "half"}, "must be a share .* got 'half'"),
        (["a.0"], "KEEP must map names of layers"),
    ],
)
def test_wrong_entries_are_refused_in_one_line(keep, says):
    with pytest.raises(InputError, match=says) as error:
        resolved(keep)
    assert "\n" not in str(error.value)


def test_widths_follow_round_to():
    assert resolved({"*": 0.5, "c.0": 0.3}, round_to=4) == {"stem.0": 8, "a.0": 4, "b.0": 8, "c.0": 4}
    with pytest.raises(InputError, match=r"can keep 4 to 14 channels in steps of 4 \(ROUND_TO 4\)"):
        resolved({"c.0": 6}, round_to=4)
    assert resolved({"c.0": 14, "a.0": 8}, round_to=4) == {"c.0": 14, "a.0": 8}


@pytest.mark.parametrize("criterion", ["magnitude", "sirfp_setwise"])
def test_without_a_budget_only_these_layers_are_cut(criterion):
    model = build(Residual)
    plan = sirfp.prune(model, X, criterion, calibration=BATCHES, keep={"a.0": 0.5, "c.0": 3})
    assert widths(plan) == {"stem.0": 12, "a.0": 5, "b.0": 16, "c.0": 3} and plan.budget is None
    assert model.c[0].out_channels == 3 and model(X).shape == (2, 5, 16, 16)


def test_the_channels_that_leave_are_those_of_the_lowest_scores():
    model = build(Residual)
    norms = model.a[0].weight.flatten(1).norm(dim=1)
    plan = sirfp.prune(model, X, "magnitude", keep={"a.0": 4})
    by_all = sirfp.prune(build(Residual), X, "magnitude", keep={"a.0": 4}, keep_flops=0.6)
    assert plan.kept["a.0"] == by_all.kept["a.0"]
    assert len(norms) == 10 and len(plan.kept["a.0"]) == 4


@drawn(24)
@given(
    st.sampled_from(["keep_flops", "keep_params"]), st.floats(0.35, 0.9), st.floats(0.2, 1.0), st.sampled_from([1, 2]),
    st.sampled_from([("a.0",), ("c.0", "stem.0"), ("b.0",)]),
)  # fmt: skip
def test_a_budget_decides_the_other_widths(quantity, share, kept, round_to, names):
    keep = dict.fromkeys(names, kept)
    expected = resolved(keep, round_to=round_to)
    try:
        plan = sirfp.prune(build(Residual), X, "magnitude", keep=keep, round_to=round_to, **{quantity: share})
    except InputError as error:
        assert "KEEP of" in str(error) and "the budget cannot be reached" in str(error)
        return
    found = widths(plan)
    assert {name: found[name] for name in expected} == expected
    dense, pruned = plan.flops if quantity == "keep_flops" else plan.params
    assert pruned <= share * dense


def test_curves_decide_the_other_widths_and_measure_none_of_these():
    session = PruningSession(build(Residual), X, limits=Limits((), keep={"a.0": 0.5}))
    from sirfp.budget.evidence import Evidence

    evidence = Evidence.of_calibration(session.model, X, session.criterion, BATCHES, "curves", 4)
    plan = session.prune(Flops(0.6), evidence, steps=1)
    assert len(plan.kept["a.0"]) == 5 and plan.flops[1] <= 0.6 * plan.flops[0]
    assert {one.group: len(one.points()) for one in session.measured[0]}["a.0"] == 1  # the dense network


def test_several_cuts_keep_shares_of_the_dense_network():
    model = build(Residual)
    session = PruningSession(model, X, criterion="magnitude", limits=Limits(keep={"a.0": 0.5, "c.0": 1.0}))
    for share in (0.8, 0.6):
        plan = session.prune(Flops(share))
    assert len(plan.kept["a.0"]) == 5 and len(plan.kept["c.0"]) == 14
    assert model.a[0].out_channels == 5


def test_a_model_that_was_cut_before_gets_shares_of_its_dense_widths():
    model = build(Residual)
    sirfp.prune(model, X, "magnitude", keep_flops=0.8, keep={"a.0": 0.8})
    again = sirfp.prune(model, X, "magnitude", keep={"a.0": 0.5, "c.0": 3})
    assert len(again.kept["a.0"]) == 5 and len(again.kept["c.0"]) == 3
    assert sirfp.prune(model, X, "magnitude", keep={"a.0": 0.5}).kept == again.kept
    with_budget = sirfp.prune(model, X, "magnitude", keep={"a.0": 4}, keep_flops=1.0)
    assert len(with_budget.kept["a.0"]) == 4


def test_a_budget_of_latency_leaves_these_widths():
    plan = sirfp.prune(build(Residual), X, "magnitude", keep={"c.0": 9}, keep_latency=1.0)
    assert widths(plan)["c.0"] == 9


@pytest.mark.parametrize("kind", NETWORKS, ids=lambda kind: kind.__name__)
def test_half_of_every_layer_computes_what_the_masked_network_does(kind):
    dense = build(kind)
    found = find_groups(dense, X)
    if not found.groups or any(group.inexact for group in found):
        return
    pruned = copy.deepcopy(dense)
    plan = sirfp.prune(pruned, X, "random", keep={"*": 0.5}, bias_correction=False, seed=1)
    assert all(abs(len(plan.kept[g.name]) - g.size / 2) <= 1 for g in found)
    sirfp.verify.mask(dense, plan)
    assert sirfp.verify.compare(dense, pruned, X, plan).relative < 1e-4


def test_a_whole_number_counts_channels_also_where_one_of_them_is_several():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.out = nn.Linear(8, 24), nn.Linear(24, 8)

        def forward(self, x):
            x = self.q(x).reshape(x.shape[0], x.shape[1], 4, 6).softmax(-1)
            return self.out(x.flatten(2))

    model, x = Heads().eval(), torch.randn(2, 5, 8)
    found = find_groups(model, x)
    group = next((g for g in found if g.name == "q"), None)
    if group is None or group.width == 1:
        pytest.skip("this network loses single channels")
    assert resolved({"q": 12}, model, found) == {"q": 12 // group.width}
    with pytest.raises(InputError, match="in steps of"):
        resolved({"q": 11}, model, found)
