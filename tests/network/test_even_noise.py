"""Noise is the same for tensors of other sizes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sirfp.network.even_noise import EvenNoise

DRAWS = {
    "rand": lambda x: torch.rand(x.shape),
    "rand_like": torch.rand_like,
    "randn": lambda x: torch.randn(x.shape),
    "randn_like": torch.randn_like,
    "uniform_": lambda x: torch.empty_like(x).uniform_(2, 3),
    "normal_": lambda x: torch.empty_like(x).normal_(4, 0.5),
    "bernoulli": lambda x: torch.bernoulli(torch.full_like(x, 0.7)),
    "bernoulli_": lambda x: x.new_empty(x.shape).bernoulli_(0.7),
    "without p": lambda x: x.new_empty(x.shape).bernoulli_(),
    "of tensors": lambda x: x.new_empty(x.shape).bernoulli_(torch.full_like(x, 0.7)),
    "gumbel": lambda x: F.gumbel_softmax(x[:, :4], dim=1),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_two_widths_get_the_same_noise(draw):
    taken = []
    for width in (5, 24):
        with EvenNoise():
            taken.append([draw(torch.zeros(3, width)) for _ in range(20)])
    for narrow, wide in zip(*taken, strict=True):
        assert torch.equal(narrow[:, :1], wide[:, :1]) and bool((wide == wide[0, 0]).all())
    assert len({float(x[0, 0]) for x in taken[0]}) > 1 or draw is DRAWS["gumbel"]


def test_numbers_lie_within_their_distribution():
    with EvenNoise():
        uniform = torch.stack([torch.empty(1).uniform_(2, 3) for _ in range(100)])
        normal = torch.stack([torch.empty(1).normal_(4, 0.5) for _ in range(100)])
        rare = torch.stack([torch.empty(1).bernoulli_(0.01) for _ in range(100)])
        usual = torch.stack([torch.empty(1).bernoulli_(0.9) for _ in range(7)])
    assert uniform.min() >= 2 and uniform.max() <= 3 and 0 < (normal - 4).abs().max() < 3
    assert rare.mean() < 0.1 and usual.all()


def test_drawing_until_a_number_fits_comes_to_an_end():
    fits = {"low": lambda u: u < 0.1, "high": lambda u: u > 0.9}
    with EvenNoise():
        for fit in fits.values():
            assert any(fit(torch.rand(1)) for _ in range(1000))


def test_integers_and_permutations_stay_as_they_are():
    torch.manual_seed(0)
    before = torch.randperm(50), torch.randint(9, (50,))
    torch.manual_seed(0)
    with EvenNoise():
        after = torch.randperm(50), torch.randint(9, (50,))
    assert torch.equal(before[0], after[0]) and torch.equal(before[1], after[1])
