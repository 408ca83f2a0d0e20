"""Channel groups of small networks: cut by random plans they equal the dense network with the same channels zero."""

from __future__ import annotations

import copy
from collections import OrderedDict

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from small_networks import (
    INPUT,
    NETWORKS,
    Attention,
    Gated,
    Residual,
    Shared,
    Transposed,
    WithoutRule,
    build,
    random_keep,
)
from torch import nn

from sirfp.channels import find_again, find_groups
from sirfp.errors import InputError
from sirfp.prune import plan_for
from sirfp.surgery import apply
from sirfp.verify import compare, mask


@pytest.mark.parametrize("kind", NETWORKS, ids=lambda k: k.__name__)
@pytest.mark.parametrize("seed", [0, 1])
def test_pruned_equals_masked_and_costs_what_was_said(kind, seed):
    model, x = build(kind, seed), torch.randn(INPUT)
    found = find_groups(model, x)
    assert found.groups
    keep = random_keep(found, seed)
    plan = plan_for(found, keep)
    pruned, masked = copy.deepcopy(model), copy.deepcopy(model)
    apply(pruned, plan)
    mask(masked, plan)
    difference = compare(masked, pruned, x)
    assert not difference.problem
    assert difference.relative < 1e-5
    assert plan.params[1] == sum(p.numel() for p in pruned.parameters()) < plan.params[0]
    for size, network in ((plan.flops[0], model), (plan.flops[1], pruned)):
        assert size == FlopCountAnalysis(network, x).unsupported_ops_warnings(False).total()


@pytest.mark.parametrize("kind", NETWORKS, ids=lambda k: k.__name__)
def test_a_pruned_network_trains_on(kind):
    model, x = build(kind), torch.randn(INPUT)
    found = find_groups(model, x)
    apply(model, plan_for(found, random_keep(found, 3)))
    output = model.train()(x)
    sum(t.square().mean() for t in (output if isinstance(output, tuple) else (output,))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.shape == parameter.shape, name


def test_the_model_is_left_as_it_was():
    model, x = build(Residual).train(), torch.randn(INPUT)
    before = copy.deepcopy(model.state_dict())
    find_groups(model, x)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_residual_stream_is_one_group_seen_at_each_norm():
    found = find_groups(build(Residual), torch.randn(INPUT))
    assert [f.module for f in found["b.0"].features] == ["b.1", "short.1", "d.1"]
    assert {s.tensor for s in found["b.0"].slices} >= {"b.0.weight", "short.0.weight", "d.0.weight", "head.weight"}


def test_what_cannot_be_cut_is_named_with_its_reason():
    reasons = {f.name: f.reason for f in find_groups(build(WithoutRule), torch.randn(INPUT)).frozen}
    assert "index_fill" in reasons["a.0"] and "no rule" in reasons["a.0"]
    assert "slice" in reasons["d.0"]
    assert "fails" in reasons["c.0"] and "shape" in reasons["c.0"]
    assert "output" in reasons["head"]


def test_a_shared_head_is_one_group():
    names = [g.name for g in find_groups(build(Shared), torch.randn(INPUT))]
    assert sorted(names) == ["a.0", "tower.0.0", "tower.2.0"]


def test_attention_ties_queries_keys_and_values_over_heads():
    group = find_groups(build(Attention), torch.randn(INPUT))["qkv"]
    assert group.size == 6
    assert {(s.tensor, s.index.shape[1]) for s in group.slices} == {
        ("qkv.weight", 12),
        ("qkv.bias", 12),
        ("project.weight", 4),
    }


def test_gated_halves_go_together():
    group = find_groups(build(Gated), torch.randn(INPUT))["b"]
    piece = next(s for s in group.slices if s.tensor == "b.weight")
    assert piece.index.tolist() == [[i, i + 10] for i in range(10)]


def test_ignored_modules_stay_whole():
    model = build(Residual)
    found = find_groups(model, torch.randn(INPUT), ignore=["c.0"])
    assert "c.0" not in [g.name for g in found]
    assert any(f.name == "c.0" and "IGNORE" in f.reason for f in found.frozen)
    with pytest.raises(InputError, match="did you mean short"):
        find_groups(model, torch.randn(INPUT), ignore=["shorn"])
    blocks = nn.Sequential(OrderedDict(stages=model))
    with pytest.raises(InputError, match=r" stages( or |\?)"):  # it has no tensors but those of other modules
        find_groups(blocks, torch.randn(INPUT), ignore=["stges*"])


def test_ignoring_a_layer_keeps_what_it_makes_and_what_it_reads():
    found = find_groups(build(Transposed), torch.randn(INPUT), ignore=["up"])
    assert not [g.name for g in found if g.name in ("a.0", "up")]
    reasons = {f.name: f.reason for f in found.frozen}
    assert reasons["up"] == "IGNORE names up, whose outputs are kept"
    assert reasons["a.0"] == "IGNORE names up, whose inputs are kept"


@pytest.mark.parametrize(("pattern", "left"), [("*.0", set()), ("?", set()), ("a.0.weight", {"b.0", "c.0"})])
def test_patterns_match_modules_and_tensors(pattern, left):
    found = find_groups(build(Residual), torch.randn(INPUT), ignore=[pattern])
    assert {g.name for g in found} == left


def test_a_layer_with_two_names_can_be_ignored_by_either():
    found = [find_groups(build(Shared), torch.randn(INPUT), ignore=[name]) for name in ("alias.0", "tower.0")]
    assert [[g.name for g in each] for each in found] == [["tower.2.0"]] * 2


class Scaled(nn.Module):
    """A scale of shape (C, 1, 1) that is declared first."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.randn(8, 1, 1))
        self.a, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        return self.head(self.scale * self.a(x))


def test_a_group_has_the_name_of_what_makes_its_channels_and_not_of_a_scale():
    assert [g.name for g in find_groups(Scaled(), torch.randn(INPUT))] == ["a"]


class Auxiliary(nn.Module):
    """A branch that only runs in training."""

    def __init__(self, breaks: bool = False):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3)
        self.head, self.auxiliary, self.breaks = nn.Conv2d(6, 2, 1), nn.Conv2d(8, 2, 1), breaks

    def forward(self, x):
        x = self.a(x).relu()
        y = self.head(self.b(x).relu())
        if self.training and self.breaks:
            raise RuntimeError("needs targets")
        return (y, self.auxiliary(x)) if self.training else y


def test_a_training_branch_shrinks_with_what_feeds_it():
    group = find_groups(Auxiliary(), torch.randn(INPUT))["a"]
    assert ("auxiliary.weight", 1) in {(s.tensor, s.dim) for s in group.slices}


def test_a_training_branch_that_cannot_run_keeps_what_may_feed_it():
    found = find_groups(Auxiliary(breaks=True), torch.randn(INPUT))
    assert [g.name for g in found] == ["b"]
    assert any(f.name == "a" and "auxiliary" in f.reason for f in found.frozen)


class Unreached(nn.Module):
    """Layers that inference does not call and could read the same features; training fails without targets."""

    def __init__(self):
        super().__init__()
        self.a, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
        self.others = nn.ModuleList([nn.Conv2d(8, 2, 1) for _ in range(9)])

    def forward(self, x):
        if self.training:
            raise RuntimeError("needs targets")
        return self.head(self.a(x))


def test_of_several_reasons_the_first_in_the_model_is_given():
    reasons = {f.name: f.reason for f in find_groups(Unreached(), torch.randn(INPUT)).frozen}
    assert "others.0.weight" in reasons["a"]


class Deciding(nn.Module):
    """Whether two layers are coupled depends on a value of the input."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
        self.together = nn.Parameter(torch.ones(()))

    def forward(self, x):
        a, b = self.a(x), self.b(x)
        return self.head(a * b) if self.together > 0 else self.head(a) + b.mean()


def test_groups_that_are_found_again_are_those_that_were_tried():
    model, x = build(Deciding), torch.randn(INPUT)
    found = find_groups(model, x)
    nn.init.constant_(model.together, -1)
    again = find_again(model, x, (), found)
    assert [s.tensor for g in again for s in g.slices] == [s.tensor for g in found for s in g.slices]
    nn.init.constant_(model.together, 1)
    nn.init.constant_(model.head.bias, 3)
    assert find_again(model, x, (), found) is not found


class WritesIntoAView(nn.Module):
    """Adds channels to a part of a tensor made in the forward."""

    def __init__(self):
        super().__init__()
        self.a, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(12, 2, 1)

    def forward(self, x):
        canvas = torch.zeros(x.shape[0], 12, *x.shape[2:])
        canvas[:, 2:10] += self.a(x)
        return self.head(canvas)


def test_writing_into_a_view_freezes():
    found = find_groups(WritesIntoAView(), torch.randn(INPUT), trial=False)
    assert "a" not in [g.name for g in found]


class Reused(nn.Module):
    """Creates and deletes many tensors, so that Python reuses their ids."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3 if i == 0 else 6, 6, 1) for i in range(12)])
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x).relu()
            torch.ones(x.shape[1], 6) @ torch.ones(6, 2)
        return self.head(x)


def test_identities_that_are_used_again_carry_no_labels():
    found = find_groups(Reused(), torch.randn(INPUT))
    assert len(found) == 12 and not [f for f in found.frozen if f.name != "head"]
