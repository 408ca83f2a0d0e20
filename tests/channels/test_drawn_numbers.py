"""Networks that draw random numbers in evaluation mode: what they compute is still compared."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sirfp.channels import find_groups


class Sampled(nn.Module):
    """Attention of a few positions that are drawn at random, scaled by a width of queries and keys."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale
        self.q, self.k, self.v, self.o = nn.Linear(6, 16), nn.Linear(6, 16), nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(self, x):
        chosen = torch.randint(x.shape[1], (4,))
        q, k, v = self.q(x), self.k(x)[:, chosen], self.v(x)[:, chosen]
        return self.o((q @ k.transpose(1, 2) * self.scale(q)).softmax(2) @ v)


@pytest.mark.parametrize("scale, sizes", [(lambda q: 0.25, [16, 12]), (lambda q: q.shape[2] ** -0.5, [12])])
def test_a_scale_by_the_width_keeps_it_where_positions_are_drawn(scale, sizes):
    torch.manual_seed(0)
    assert [group.size for group in find_groups(Sampled(scale).eval(), torch.randn(2, 9, 6))] == sizes


def test_noise_of_the_width_proves_nothing():
    class Noisy(Sampled):
        def forward(self, x):
            return self.o(nn.functional.dropout(self.v(x), 0.5, training=True))

    torch.manual_seed(0)
    assert [group.size for group in find_groups(Noisy(None).eval(), torch.randn(2, 9, 6))] == [12]
