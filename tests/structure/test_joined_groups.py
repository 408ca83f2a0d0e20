"""Plans of several cuts, between which other channels go together."""

import copy

import pytest
import torch
from torch import nn

import sirfp
from sirfp.structure.joined_groups import KeptGroups, Side, joined_groups

X = torch.rand(1, 3, 8, 8)
PLACE = ("a.weight", 0)


class Skip(nn.Module):
    """Two layers under one group norm; groups of six channels hold channels of both."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
        self.norm, self.head = nn.GroupNorm(8, 48), nn.Conv2d(48, 2, 1)

    def forward(self, x):
        a = self.a(x)
        return self.head(self.norm(torch.cat([self.b(a), a], 1)).relu())


def test_a_plan_after_which_other_channels_go_together_is_continued(tmp_path):
    torch.manual_seed(0)
    dense = Skip().eval()
    model, plans = copy.deepcopy(dense), []
    for share in (0.9, 0.7, 0.45):
        plans.append(sirfp.prune(model, X, "magnitude", keep_flops=share, bias_correction=False))
    assert {len(plan.kept) for plan in plans} != {len(plans[0].kept)}, "groups are others after some cut"
    for plan in plans:
        assert sirfp.PruningPlan.from_json(plan.to_json()) == plan
        for name, kept in plan.kept.items():
            assert len(kept) <= plan.channels[name]
    plan = plans[-1]
    assert len(plan.kept["a"]) / plan.channels["a"] == model.a.out_channels / 16
    sirfp.save(tmp_path / "small.safetensors", model)
    loaded = copy.deepcopy(dense)
    assert sirfp.load(tmp_path / "small.safetensors", loaded) == plan
    assert sirfp.verify.compare(model, loaded, X).relative == 0


def test_a_group_of_the_present_model_has_as_many_atoms_in_the_dense_one_as_its_channels_make():
    torch.manual_seed(0)
    model = Skip().eval()
    for share in (0.9, 0.7):
        plan = sirfp.prune(model, X, "magnitude", keep_flops=share, bias_correction=False)
    group = sirfp.find_groups(model, X)["a"]  # of one channel of each group of the norm
    assert plan.dense_size("a", group.size) == round(group.size * 16 / model.a.out_channels) > group.size
    assert plan.dense_size("another", 5) == 5


CASES = {
    "the same groups": (
        {"a": (0, 2, 4), "a#2": (6, 8)}, {"a": (0,), "a#2": (3, 4)}, {"a": 3, "a#2": 2}, (0, 2, 4, 6, 8), (0, 6, 8),
        {"a": (0,), "a#2": (6, 8)},
    ),
    "the first group stays whole, so that the second has its name": (
        {"a": (0, 2, 4), "a#2": (6, 8)}, {"a": (3,)}, {"a": 2}, (0, 2, 4, 6, 8), (0, 2, 4, 6),
        {"a": (0, 2, 4), "a#2": (6,)},
    ),
    "one group in place of two": (
        {"a": (0, 2, 4), "a#2": (6, 8)}, {"a": (0, 1, 4)}, {"a": 5}, (0, 2, 4, 6, 8), (0, 2, 8), {"a": (0, 2, 8)},
    ),
    "two groups in place of one": (
        {"a": (0, 2, 4, 6, 8)}, {"a": (1,), "a#2": (3,)}, {"a": 2, "a#2": 3}, (0, 2, 4, 6, 8), (2, 6), {"a": (2, 6)},
    ),
    "the group belongs to one of another place": (
        {"a": (0, 4)}, {}, {}, (0, 2, 4, 6), (2, 6), {"a": (2, 6)},
    ),
    "the group stays whole": ({"a": (0, 4)}, {}, {}, (0, 2, 4, 6), (0, 2, 4, 6), {"a": (0, 4)}),
    "a group that was whole before": ({}, {"a": (0, 3)}, {"a": 10}, tuple(range(10)), (0, 3), {"a": (0, 3)}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_groups_of_two_plans(case):
    first, later, sizes, before, after, expected = CASES[case]
    first = KeptGroups(first, dict.fromkeys(first, 5), dict.fromkeys(first, PLACE))
    later = KeptGroups(later, sizes, dict.fromkeys(later, PLACE))
    joined = joined_groups(first, later, {PLACE: Side(10, before, after)})
    assert joined.kept == expected and joined.kept.keys() == joined.channels.keys()
    assert all(len(kept) <= joined.channels[name] for name, kept in joined.kept.items())


def test_other_groups_of_what_neither_plan_cuts():
    first = KeptGroups({"a": (0,), "a#2": (4, 10)}, {"a": 1, "a#2": 2}, dict.fromkeys(["a", "a#2"], PLACE))
    later = KeptGroups({"a": (0, 1)}, {"a": 2}, {"a": PLACE})
    assert joined_groups(first, later, {}) == first
