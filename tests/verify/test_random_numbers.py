"""Two models are compared on the same random numbers, as of an autoencoder that samples."""

import copy

import torch
from torch import nn

from sirfp.verify import compare


class Samples(nn.Module):
    """Adds noise in evaluation mode too."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 3)

    def forward(self, x):
        x = self.a(x)
        return x + torch.randn_like(x)


def test_noise_of_two_models_is_the_same_and_random_numbers_go_on():
    model, x = Samples(), torch.rand(2, 4)
    state = torch.get_rng_state()
    assert compare(model, copy.deepcopy(model), x).relative == 0
    assert torch.equal(torch.get_rng_state(), state)
