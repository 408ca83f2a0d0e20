"""Channels-last weights: only tensors of four dimensions, and only where the model's code runs with them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sirfp.network.channels_last import use_channels_last, use_channels_last_if_possible


class Viewed(nn.Module):
    """Code that needs contiguous maps, as `view` does, or not."""

    def __init__(self, view: bool):
        super().__init__()
        self.view = view
        self.conv = nn.Conv2d(3, 8, 3)
        self.linear = nn.Linear(8 * 4 * 4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return self.linear(x.view(len(x), -1) if self.view else x.flatten(1))


@pytest.mark.parametrize("view", [True, False])
def test_a_model_that_needs_contiguous_maps_keeps_them(view):
    model, images = Viewed(view).eval(), torch.randn(2, 3, 6, 6)
    expected = model(images)
    use_channels_last_if_possible(model, images)
    assert model.conv.weight.is_contiguous(memory_format=torch.channels_last) != view
    assert model.conv.weight.is_contiguous() == view
    torch.testing.assert_close(model(images), expected)


def test_tensors_of_other_dimensions_stay_as_they_are():
    model = nn.ModuleList([nn.Conv3d(2, 4, 3), nn.Conv2d(2, 4, 3), nn.Conv1d(2, 4, 3), nn.LazyConv2d(4, 3)])
    model.register_buffer("volume", torch.zeros(1, 2, 3, 4, 5))
    parameters = {name: id(parameter) for name, parameter in model.named_parameters()}
    use_channels_last(model)
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == parameters
    assert model[0].weight.is_contiguous() and model[2].weight.is_contiguous() and model.volume.is_contiguous()
    assert model[1].weight.is_contiguous(memory_format=torch.channels_last)
