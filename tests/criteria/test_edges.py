"""The edge term: which groups have it, and that unions and local search respect it."""

from __future__ import annotations

import logging

import pytest
import torch
from small_networks import build
from torch import nn
from torch.nn import functional

import sirfp
from sirfp.channels import find_groups
from sirfp.criteria import build_criterion
from sirfp.prune import calibrate


class Edges(nn.Module):
    """Channels that show edges beside channels that do not, in a backbone or not."""

    def __init__(self, prefix: str = "body", layers: int = 2):
        super().__init__()
        self.prefix = prefix
        self.add_module(prefix, nn.Sequential(*[nn.Conv2d(3, 12, 3, padding=1) for _ in range(layers)]))
        self.norms = nn.ModuleList([nn.BatchNorm2d(12) for _ in range(layers)])
        self.head = nn.Conv2d(12, 3, 1)
        for k, layer in enumerate(self._modules[prefix]):
            layer.weight.data *= torch.linspace(0.1, 1, 12).roll(3 * k)[:, None, None, None]

    def forward(self, x):
        parts = zip(self._modules[self.prefix], self.norms, strict=True)
        return self.head(functional.relu(sum(norm(layer(x)) for layer, norm in parts)))


def kept(model, **options):
    batches = [torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(k)) for k in range(3)]
    plan = sirfp.prune(model, batches[0], "sirfp", 0.6, batches, reconstruction=0, **options)
    return next(iter(plan.kept.values()))


def test_the_edge_term_has_an_effect_without_a_backbone_and_says_so(caplog):
    caplog.set_level(logging.WARNING, "sirfp")
    plain, strong = (kept(build(Edges), edge_weight=weight) for weight in (0.0, 1e6))
    assert plain != strong and caplog.text.count("no layer's name begins with 'backbone'") == 1
    caplog.clear()
    assert kept(build(Edges), edge_weight=1e6, edge_prefixes=("nothing",)) == plain
    assert "edge_weight has no effect: no layer's name begins with 'nothing' (edge_prefixes)" in caplog.text
    caplog.clear()
    torch.manual_seed(0)
    assert kept(Edges("backbone").eval(), edge_weight=1e6) != kept(Edges("backbone").eval())
    assert "edge_weight" not in caplog.text


def test_the_edge_term_of_a_network_of_timm_has_an_effect(caplog):
    import timm

    batches = [torch.randn(2, 3, 32, 32) for _ in range(2)]
    plans = []
    for weight in (0.0, 0.4, 1e6):
        torch.manual_seed(0)
        model = timm.create_model("test_resnet", num_classes=3).eval()
        criterion = build_criterion(
            "sirfp", model, find_groups(model, batches[0], trial=False).groups, edge_weight=weight
        )
        calibrate(model, criterion, batches)
        plans.append(torch.cat(list(criterion.scores().values())))
    assert all((a != b).any() for a, b in zip(plans, plans[1:], strict=False))


@pytest.mark.parametrize("coupled", ["graph", "union"])
@pytest.mark.parametrize("prefix", ["body", "backbone"])
def test_local_search_and_union_keep_what_the_edge_term_asks_for(coupled, prefix):
    torch.manual_seed(0)
    model = Edges(prefix).eval()
    build_of = {search: {"coupled": coupled, "search": search, "edge_weight": 1e6} for search in ("greedy", "local")}
    batches = [torch.randn(2, 3, 12, 12) for _ in range(3)]
    found = find_groups(model, batches[0])
    criteria = {search: build_criterion("sirfp", model, found.groups, **o) for search, o in build_of.items()}
    for criterion in criteria.values():
        calibrate(model, criterion, batches)
    [group] = found.groups
    score = criteria["greedy"].scores()[group.name]
    by_edge = torch.stack([criteria["greedy"]._average(f).edge() for f in group.features])
    by_edge = by_edge.mean(0) if coupled == "graph" else by_edge.amax(0)
    assert score.argsort().tolist() == by_edge.argsort().tolist()
    best = score.argsort()[6:].sort().values
    assert torch.equal(criteria["local"].refine(group, best), best)
    worst = score.argsort()[:6].sort().values  # from anywhere, the exchanges end where the edges are
    assert torch.equal(criteria["local"].refine(group, worst), best)


def test_local_search_on_a_union_takes_a_pair_as_redundant_as_where_it_is_least_so():
    model, batches = build(Edges), [torch.randn(2, 3, 12, 12) for _ in range(3)]
    [group] = find_groups(model, batches[0]).groups
    criterion = build_criterion("sirfp", model, [group], coupled="union", search="local")
    calibrate(model, criterion, batches)
    least = torch.stack(criterion._members(group)).abs().amin(0).fill_diagonal_(0)
    better = criterion.refine(group, torch.arange(6))
    gone = [i for i in range(12) if i not in better.tolist()]
    value = least[better][:, better].sum()
    for i in range(6):
        for other in gone:
            changed = better.clone()
            changed[i] = other
            assert least[changed][:, changed].sum() >= value - 1e-5
