"""Norms and dropouts of one's own are tried in training mode: their code may do anything there."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from sirfp.channels import find_groups
from sirfp.network.steady import is_steady
from sirfp.prune import plan_for
from sirfp.surgery import apply
from sirfp.verify import mask

X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two convolutions of 16 and 12 channels, with something behind the first one."""

    def __init__(self, behind):
        super().__init__()
        self.a, self.behind, self.b, self.h = nn.Conv2d(3, 16, 3), behind, nn.Conv2d(16, 12, 3), nn.Conv2d(12, 4, 1)

    def forward(self, x):
        return self.h(F.relu(self.b(F.relu(self.behind(self.a(x))))))


class ByAttribute(nn.BatchNorm2d):
    def forward(self, x):
        out = super().forward(x)
        return out / self.num_features if self.training else out


class ByShape(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) * (x.shape[1] ** -0.5 if self.training else 0.25)


class OfInstances(nn.InstanceNorm2d):
    def forward(self, x):
        return super().forward(x) / (x.shape[1] if self.training else 16)


class Inherits(ByAttribute):
    """Has no code of its own."""


class ByProperty(nn.BatchNorm2d):
    """Its forward is PyTorch's; what that reads is not."""

    def __init__(self, channels):
        super().__init__(channels)
        del self.eps

    @property
    def eps(self):
        return float(self.num_features) if self.training else 1e-5

    @eps.setter
    def eps(self, value):
        pass

    @eps.deleter
    def eps(self):
        pass


class NoisyDropout(nn.Dropout):
    """Its noise differs between two widths, and must not hide that its scale does too."""

    def forward(self, x):
        return x * (torch.rand_like(x) > self.p) * (x.shape[1] / 16) if self.training else x


class OfBernoulli(nn.Dropout2d):
    def forward(self, x):
        kept = torch.bernoulli(torch.full_like(x[:, :, :1, :1], 1 - self.p))
        return x * kept * (x.shape[1] / 16) if self.training else x


WRONG = [ByAttribute, ByShape, OfInstances, Inherits, ByProperty, NoisyDropout, OfBernoulli]


def of(kind):
    torch.manual_seed(0)
    return Net(kind() if issubclass(kind, nn.modules.dropout._DropoutNd) else kind(16)).eval()


@pytest.mark.parametrize("kind", WRONG)
def test_what_depends_on_the_width_in_training_stays_whole(kind):
    model = of(kind)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = find_groups(model, X)
    assert [group.name for group in found] == ["b"]
    reasons = {frozen.name: frozen.reason for frozen in found.frozen}
    assert reasons["a"] == "cut, the model computes another output than with these channels zeroed in training"
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())  # running statistics too


class OwnStatistics(nn.BatchNorm2d):
    """Takes the statistics of the batch itself."""

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
        return (x - mean) / (variance + self.eps).sqrt() * self.weight[:, None, None] + self.bias[:, None, None]


class Clipped(nn.BatchNorm2d):
    """Clips the statistics of the batch in training."""

    def forward(self, x):
        out = super().forward(x)
        return out.clamp(-2, 2) if self.training else out


class KeptScale(nn.Dropout):
    def forward(self, x):
        return x * (torch.rand_like(x) > self.p) / (1 - self.p) if self.training else x


@pytest.mark.parametrize("kind", [OwnStatistics, Clipped, KeptScale])
def test_what_follows_the_width_in_training_is_cut(kind):
    assert [group.name for group in find_groups(of(kind), X)] == ["a", "b"]


@pytest.mark.parametrize("kind", [OwnStatistics, Clipped])
def test_a_cut_norm_of_ones_own_computes_in_training_what_the_masked_one_does(kind):
    model = of(kind).double()
    nn.init.uniform_(model.behind.weight)
    found = find_groups(model, X.double())
    keep = np.arange(found.atoms) % 3 > 0
    plan, cut, masked = plan_for(found, keep), copy.deepcopy(model), copy.deepcopy(model)
    apply(cut, plan)
    mask(masked, plan)
    assert cut.behind.num_features < 16
    torch.testing.assert_close(cut.train()(X.double()), masked.train()(X.double()), rtol=1e-10, atol=1e-10)


def test_only_code_of_the_libraries_is_known():
    known = [nn.BatchNorm2d, nn.InstanceNorm1d, nn.SyncBatchNorm, timm.layers.BatchNormAct2d]
    assert all(is_steady(kind(4)) for kind in known) and is_steady(nn.Dropout2d())
    assert not any(is_steady(of(kind).behind) for kind in WRONG)
    replaced = nn.BatchNorm2d(4)
    replaced.forward = lambda x: x / len(x)
    assert not is_steady(replaced)

    class Named(nn.BatchNorm2d):
        def __init__(self, channels):
            super().__init__(channels, eps=1e-3)

    assert is_steady(Named(4))
