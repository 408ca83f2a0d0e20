"""Layers of Kolmogorov-Arnold networks: weights (outputs, inputs, basis functions) that a reshape makes a matrix."""

from __future__ import annotations

import copy

import pytest
import torch
from cut_proofs import half_of, prove
from torch import nn
from torch.nn import functional as F

from sirfp.prune import plan_for
from sirfp.surgery import apply
from sirfp.verify import compare, mask


class SplineLinear(nn.Module):
    """A sum of B-splines of each input, beside a linear layer of its SiLU; weights may be scaled for each input."""

    def __init__(self, inputs: int, outputs: int, scaled: bool, knots: int = 5, degree: int = 2):
        super().__init__()
        self.inputs, self.degree = inputs, degree
        line = torch.arange(-degree, knots + degree + 1) * (2 / knots) - 1
        self.register_buffer("grid", line.expand(inputs, -1).contiguous())
        self.base = nn.Parameter(torch.randn(outputs, inputs) / 8)
        self.spline = nn.Parameter(torch.randn(outputs, inputs, knots + degree) / 8)
        self.scale = nn.Parameter(torch.rand(outputs, inputs)) if scaled else None

    def bases(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inputs) -> (N, inputs, basis functions), by the recursion of de Boor."""
        x, grid = x.unsqueeze(-1), self.grid
        found = ((x >= grid[:, :-1]) & (x < grid[:, 1:])).to(x.dtype)
        for k in range(1, self.degree + 1):
            rising = (x - grid[:, : -(k + 1)]) / (grid[:, k:-1] - grid[:, : -(k + 1)])
            falling = (grid[:, k + 1 :] - x) / (grid[:, k + 1 :] - grid[:, 1:-k])
            found = rising * found[..., :-1] + falling * found[..., 1:]
        return found

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.spline if self.scale is None else self.spline * self.scale.unsqueeze(-1)
        splines = self.bases(x).reshape(len(x), -1)
        return F.linear(F.silu(x), self.base) + F.linear(splines, weight.view(len(weight), -1))


@pytest.mark.parametrize("scaled", [True, False])
def test_inputs_are_cut_with_all_their_basis_functions(scaled):
    torch.manual_seed(0)
    dense = nn.Sequential(*(SplineLinear(*widths, scaled) for widths in ((6, 12), (12, 10), (10, 4))))
    x = torch.rand(5, 6) * 2 - 1
    found = prove(copy.deepcopy(dense), x, exact=False)
    assert [(group.name, group.size) for group in found if group.size > 1] == [("0", 12), ("1", 10)]
    assert {(piece.tensor, piece.dim) for piece in found["0"].slices} >= {("1.spline", 1), ("1.grid", 0), ("1.base", 1)}
    plan = plan_for(found, half_of(found, 0, list(found)))
    cut, masked = copy.deepcopy(dense).double(), dense.double()
    apply(cut, plan)
    mask(masked, plan)
    assert compare(masked, cut, x.double(), plan).relative < 1e-10  # by the plan: knots that are zero make NaN
