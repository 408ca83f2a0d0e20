"""The batch size and the memory format of the example inputs do not change what can be cut."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from sirfp.channels import find_groups


class Restrides(nn.Module):
    """Sets the steps of a map of one position in place, as convolutions do."""

    steps = staticmethod(lambda x: (x.shape[1], 1, x.shape[1], x.shape[1]))

    def __init__(self):
        super().__init__()
        self.a, self.b, self.pool = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1), nn.AdaptiveAvgPool2d(1)

    def forward(self, x):
        x = self.pool(self.a(x)).contiguous()
        return self.b(x.as_strided_(x.shape, self.steps(x)))


class Transposes(Restrides):
    """Exchanges images and channels in memory, which is another meaning."""

    steps = staticmethod(lambda x: (1, x.shape[0], 1, 1))


class Crops(Restrides):
    """Takes another part of memory of the same shape."""

    steps = staticmethod(lambda x: (0, 1, 1, 1))


@pytest.mark.parametrize("batch", [1, 2, 7, 8])
def test_steps_of_dimensions_of_length_one_mean_nothing(batch):
    found = find_groups(Restrides(), torch.randn(batch, 3, 6, 6))
    assert [g.name for g in found] == ["a"]


@pytest.mark.parametrize("kind", [Transposes, Crops])
@pytest.mark.parametrize("batch", [2, 8])
def test_other_steps_freeze(kind, batch):
    found = find_groups(kind(), torch.randn(batch, 3, 6, 6), trial=False)
    assert not found.groups and "as_strided_" in {f.name: f.reason for f in found.frozen}["a"]


@pytest.mark.parametrize("name", ["convnext_atto", "resnet10t", "test_vit", "edgenext_xx_small"])
def test_any_batch_and_format_gives_the_same_groups(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=4).eval()
    size = model.default_cfg["input_size"][-1] if "vit" in name else 64
    seen = set()
    for batch, form, dtype in [
        (1, torch.contiguous_format, torch.float32),
        (2, torch.contiguous_format, torch.float32),
        (7, torch.channels_last, torch.float32),
        (2, torch.channels_last, torch.bfloat16),
    ]:
        x = torch.randn(batch, 3, size, size).to(dtype).to(memory_format=form)
        found = find_groups(model.to(dtype).to(memory_format=form), x, trial=False)
        seen.add(tuple((g.name, g.size, len(g.slices)) for g in found))
    assert len(seen) == 1
