"""Reconstruction: a fit computed by hand, exactness if channels are sums of others, and switching it off."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from small_networks import Residual
from torch import nn

import sirfp
from sirfp.channels import find_groups
from sirfp.network.forward import inference
from sirfp.prune import cut
from sirfp.surgery.reconstruction import fit, take_moments

IMAGE = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def test_a_fit_by_hand():
    """x2 = 2 x0 + 3, x0 and x1 independent with unit variance and means 1 and 0."""
    mean = torch.tensor([1.0, 0.0, 5.0])
    covariance = torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0], [2.0, 0.0, 4.0]])
    gone = np.array([False, False, True])
    factors, constants = fit(mean.double(), covariance.double(), gone, ridge=0.0)
    torch.testing.assert_close(factors, torch.tensor([[2.0], [0.0]], dtype=torch.float64), atol=1e-3, rtol=0)
    torch.testing.assert_close(constants, torch.tensor([3.0], dtype=torch.float64), atol=1e-3, rtol=0)
    shrunk, _ = fit(mean.double(), covariance.double(), gone, ridge=1.0)
    assert 0.99 < float(shrunk[0]) < 1.01


class Doubled(nn.Module):
    """A network whose channels 4 to 7 are sums of the others: removing them loses nothing."""

    def __init__(self, reader: nn.Module, norm: bool = False):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.reader = reader
        self.norm = nn.BatchNorm2d(6) if norm else nn.Identity()
        with torch.no_grad():
            mix = torch.randn(4, 4, generator=generator)
            self.first.weight[4:] = torch.einsum("ab,bikl->aikl", mix, self.first.weight[:4])
            self.first.bias[4:] = mix @ self.first.bias[:4]

    def forward(self, x):
        x = self.first(x)
        if isinstance(self.reader, nn.Linear):
            return self.reader(x.mean((2, 3)))
        return self.norm(self.reader(x))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Doubled(nn.Conv2d(8, 6, 1)),
        lambda: Doubled(nn.Conv2d(8, 6, 1, bias=False)),
        lambda: Doubled(nn.Linear(8, 6)),
        lambda: Doubled(nn.Conv2d(8, 6, 1, bias=False), norm=True),
        lambda: Doubled(nn.Conv2d(8, 6, 3)),
    ],
)
def test_channels_that_others_make_up_cost_nothing(make):
    torch.manual_seed(3)
    model = make().eval()
    batches = [torch.rand(8, 3, 12, 12, generator=torch.Generator().manual_seed(i)) for i in range(16)]
    with torch.no_grad():
        before = model(IMAGE)
    found = find_groups(model, IMAGE)
    keep = np.arange(found.atoms) < 4
    errors = []
    for moments in (None, take(model, found, batches)):
        pruned = make().eval()
        pruned.load_state_dict(model.state_dict())
        plan = cut(pruned, find_groups(pruned, IMAGE), keep, moments=moments)
        assert pruned.first.out_channels == 4 and plan.flops[1] < plan.flops[0]
        with torch.no_grad():
            errors.append(float((pruned(IMAGE) - before).norm() / before.std() / before.numel() ** 0.5))
    assert errors[1] < 0.05 < 0.3 < errors[0]  # what is left is the ridge's


def take(model, found, batches):
    with inference(model):
        return take_moments(model, found, batches)


def test_pruning_takes_it_from_the_calibration(monkeypatch):
    """Uses the first two of three batches, and none without reconstruction or calibration."""
    module, seen = sys.modules["sirfp.budget.evidence"], []
    monkeypatch.setattr(module, "take_moments", lambda model, found, batches, run: seen.append(list(batches)) or {})
    batches = [IMAGE * i for i in (1, 2, 3)]
    for criterion, calibration, count in (("sirfp", batches, 2), ("magnitude", batches, 2), ("magnitude", None, 2)):
        sirfp.prune(Residual(), IMAGE, criterion, 0.6, calibration, reconstruction=count)
    sirfp.prune(Residual(), IMAGE, "sirfp", 0.6, iter(batches), reconstruction=0)
    assert [len(taken) for taken in seen] == [2, 2]
    assert seen[0][1] is batches[1]
