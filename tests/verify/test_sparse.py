"""Networks whose code makes sparse tensors, as those for graphs do."""

from __future__ import annotations

import copy

import pytest
import torch
from cut_proofs import half_of
from torch import nn

from sirfp.channels import find_groups
from sirfp.prune import plan_for
from sirfp.surgery import apply
from sirfp.verify import compare, mask


class Graph(nn.Module):
    """Messages between the neighbours of neighbours, which a product of two sparse matrices finds."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor
        self.i, self.m, self.o = nn.Linear(4, 16), nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, x, edges):
        size = (len(x), len(x))
        near = torch.sparse_coo_tensor(edges, torch.ones(edges.shape[1], dtype=x.dtype), size)
        a, b = (near @ near).coalesce().indices()
        x = self.i(x) * self.factor(self)
        return self.o(self.m(x.index_add(0, a, x[b])).relu())


EDGES = torch.tensor([[0, 1, 2, 3, 4, 0], [1, 2, 3, 4, 0, 2]])


def test_they_are_cut():
    torch.manual_seed(0)
    network, x = Graph(lambda net: 2.0).eval(), torch.rand(5, 4)
    found = find_groups(network, (x, EDGES))
    assert [group.size for group in found] == [16, 12]
    plan = plan_for(found, half_of(found, 0, list(found)))
    cut, masked = copy.deepcopy(network), copy.deepcopy(network)
    apply(cut, plan)
    mask(masked, plan)
    assert compare(masked, cut, (x, EDGES), plan).relative < 1e-5


@pytest.mark.parametrize("factor", [lambda net: net.i.weight.shape[0] ** 0.5, lambda net: 16 / len(net.i.weight)])
def test_a_wrong_cut_is_found(factor):
    torch.manual_seed(0)
    assert [group.size for group in find_groups(Graph(factor).eval(), (torch.rand(5, 4), EDGES))] == [12]
